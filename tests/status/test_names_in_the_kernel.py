"""The names of a Service port in each mode, which exist in its kernel."""

from __future__ import annotations

from kproxy.model.plans import Family
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.nftables.names import NODE_PORTS, SERVICES
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.listeners import ListenerKey, Reach
from kproxy.netfilter.objects import Verdict
from tests import plans
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.iptables import FakeTables
from tests.ipvs_mode import rigs as ipvs
from tests.nftables.plans import build_plan
from tests.nftables_mode import rigs as nftables
from tests.userspace.portal_plans import BY_CIDR


def test_iptables_mode_names_chains() -> None:
    tables = FakeTables()
    dataplane = IptablesDataplane(Settings(Family.IPV4), tables)
    plan = build_plan(node_port=30080)
    dataplane.apply({plan.key: plan}, None)
    names = dataplane.names(plan)
    assert sorted(name[:9] for name in names) == ["KUBE-EXT-", "KUBE-SVC-"]
    assert all(f":{name} - " in tables.save() for name in names)


def test_nftables_mode_names_entries_of_maps() -> None:
    rig = nftables.Rig()
    plan = build_plan(node_port=30080, external_ips=("203.0.113.5",), load_balancer_ips=("203.0.113.6",))
    rig.want(plan)
    _, _, held = rig.held()
    entries = {
        f"{e.set} {{ {' . '.join(map(str, e.key))} : {e.data} }}"
        for name in (SERVICES, NODE_PORTS)
        for e in held[name]
        if isinstance(e.data, Verdict)
    }
    assert set(rig.dataplane.names(plan)) == entries
    assert any(f"{plan.cluster_ip} . tcp . {plan.port} : goto " in entry for entry in entries)


def test_ipvs_mode_names_virtual_servers() -> None:
    rig = ipvs.Rig()
    plan = plans.build_plan(node_port=30080)
    rig.apply(plans.by_key(plan))
    names = rig.dataplane.names(plan)
    assert set(names) == {str(key) for key in rig.servers()} - {str(ipvs.FOREIGN.key)}
    assert f"TCP {plans.NODE_IP}:30080" in names


def test_userspace_mode_names_proxy_ports() -> None:
    forwarder = FakeForwarder()
    dataplane = UserspaceDataplane(BY_CIDR, FakeTables(), forwarder)
    plan = plans.build_plan("web", node_port=30080)
    assert dataplane.names(plan) == ()
    dataplane.apply({plan.key: plan}, None)
    port = forwarder.ports[Family.IPV4, ListenerKey(plan.key, Reach.CLUSTER)]
    assert dataplane.names(plan) == (f"proxy port {port} (cluster)",)
