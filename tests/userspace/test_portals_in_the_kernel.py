"""Portal rules in a real kernel, through both backends: it takes them, and gives them back as they are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Family, Protocol
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings as IptablesSettings
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.render import Settings
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.iptables import FakeTables
from tests.network_namespaces import InNamespace, fresh_namespace
from tests.plans import Plans, build_plan, by_key

NODE = {Family.IPV4: "172.30.0.11", Family.IPV6: "fd00:30::11"}
PODS = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:244::/32"}
SETTINGS = {
    "plain": lambda family: Settings(family, NODE[family]),
    "pods by CIDR": lambda family: Settings(
        family, NODE[family], detect_local=DetectLocal(DetectLocalBy.CIDR, PODS[family])
    ),
    "pods by interface, some addresses": lambda family: Settings(
        family,
        NODE[family],
        False,
        DetectLocal(DetectLocalBy.INTERFACE, "veth+"),
        NodePortAddresses(False, (NODE[family],), False),
    ),
}


@pytest.fixture
def netns() -> Iterator[InNamespace]:
    tools = ("iptables-nft-restore", "iptables-legacy-restore", "ip6tables-nft-restore")
    with fresh_namespace("portals", *tools) as space:
        yield InNamespace(space)


@pytest.fixture(params=list(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    return found


@pytest.fixture(params=list(Family), ids=lambda family: family.value)
def real(request: pytest.FixtureRequest, netns: InNamespace, backend: Backend) -> HostTables:
    """A real kernel's tables of each family, through each backend."""
    return HostTables(netns, request.param, Command(backend, f"-{backend}", (1, 8, 9)))


def plans(family: Family) -> Plans:
    """One of every kind."""
    four = family is Family.IPV4
    outside: dict[str, Any] = {
        "node_port": 30080,
        "external_ips": ("198.51.100.7" if four else "2001:db8::7",),
        "load_balancer_ips": ("203.0.113.5" if four else "2001:db8:113::5",),
    }
    kinds: dict[str, dict[str, Any]] = {
        "inside": {},
        "outside": outside,
        "local": outside | {"external_local": True, "local": (1,), "node_port": 30081},
        "elsewhere": {"external_local": True, "node_port": 30082},
        "ranges": outside
        | {
            "source_ranges": ("172.30.0.0/24" if four else "fd00:30::/64",),
            "node_in_source_ranges": True,
            "node_port": 30083,
            "health_check_node_port": 32000,
        },
        "none": {"cluster": (), "node_port": 30084},
        "internal": {"internal_local": True, "cluster": (), "local": (1,)},
    }
    ports = ((name, protocol) for name in kinds for protocol in Protocol)
    return by_key(*(build_plan(name, protocol, family, **kinds[name]) for name, protocol in ports))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_second_comparison_writes_nothing(real: HostTables, settings: str) -> None:
    wanted, forwarder = plans(real.family), FakeForwarder()
    chosen = SETTINGS[settings](real.family)
    dataplane = UserspaceDataplane(chosen, real, forwarder)
    outcome = dataplane.apply(wanted, None)
    assert {key.protocol for key in outcome.rejected} == {Protocol.SCTP}
    assert dataplane.apply(wanted, None).transactions == 0, "what was written reads as what is wanted"
    memory = FakeTables(real.family, real.backend)
    UserspaceDataplane(chosen, memory, FakeForwarder()).apply(wanted, None)
    assert rules(real.save()) == rules(memory.save())


def test_both_ways_between_the_modes(real: HostTables) -> None:
    wanted = plans(real.family)
    fresh = FakeTables(real.family, real.backend)
    userspace = UserspaceDataplane(Settings(real.family, NODE[real.family]), real, FakeForwarder())
    iptables = IptablesDataplane(IptablesSettings(real.family), real)
    userspace.apply(wanted, None)
    before = rules(real.save())
    assert iptables.apply(wanted, None).rejected == {}
    IptablesDataplane(IptablesSettings(real.family), fresh).apply(wanted, None)
    assert rules(real.save()) == rules(fresh.save())
    userspace.apply(wanted, None)
    assert rules(real.save()) == before


def rules(saved: str) -> list[str]:
    return sorted(line for line in saved.splitlines() if line.startswith("-A"))
