"""Plans and portals for tests of userspace mode's rules, and a tracer of their rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from kproxy.model.node_info import DetectLocal, DetectLocalBy
from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.modes.iptables.render import text
from kproxy.modes.userspace.listeners import Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base
from kproxy.modes.xtables.rules import Fragment
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.outcome import Host
from tests.plans import NODE_IP, SOME, Plans, any_plans, build_plan

NODE = NODE_IP
BY_CIDR = Settings(Family.IPV4, NODE, detect_local=DetectLocal(DetectLocalBy.CIDR, "10.244.0.0/16"))
BY_INTERFACE = Settings(Family.IPV4, NODE, detect_local=DetectLocal(DetectLocalBy.INTERFACE, "veth+"))


def portal(plan: ServicePlan, cluster: int = 40000, local: int = 40001) -> Portal:
    """The plan with these proxy ports, as far as it needs them."""
    needed = listeners(plan)
    return Portal(plan, cluster if Reach.CLUSTER in needed else 0, local if Reach.LOCAL in needed else 0)


@st.composite
def plan_of(draw: st.DrawFn, name: str, protocol: Protocol) -> ServicePlan:
    """A plan as the model makes it: whoever serves local traffic serves all, and lists that nothing uses are empty."""
    balancer = draw(st.sampled_from([(), ("203.0.113.5",), ("203.0.113.5", "203.0.113.6")]))
    fields: dict[str, Any] = {
        "node_port": draw(st.sampled_from([0, 30000 + sum(name.encode()) % 100])),
        "external_ips": draw(st.sampled_from([(), ("198.51.100.7",)])),
        "load_balancer_ips": balancer,
        "source_ranges": draw(st.sampled_from([(), ("172.30.0.0/24",), ("10.0.0.0/8", "192.0.2.0/24")])),
        "affinity_seconds": draw(st.sampled_from([0, 10800])),
        "internal_local": draw(st.booleans()),
        "external_local": draw(st.booleans()),
    }
    fields["node_in_source_ranges"] = "172.30.0.0/24" in fields["source_ranges"]
    accessible = bool(fields["node_port"] or fields["external_ips"] or balancer)
    local, others = draw(SOME), draw(SOME)
    if accessible or not fields["internal_local"]:
        fields["cluster"] = sorted({*local, *others})
        fields["has_endpoints"] = bool(fields["cluster"])
    else:
        fields["cluster"], fields["has_endpoints"] = (), bool(local or others)
    uses_local = fields["internal_local"] or (accessible and fields["external_local"])
    return build_plan(name, protocol, local=local if uses_local else (), **fields)


def plans(protocols: Iterable[Protocol] = (Protocol.TCP, Protocol.UDP)) -> st.SearchStrategy[Plans]:
    return any_plans(*((name, protocol) for name in "abc" for protocol in protocols), most=4, plan=plan_of)


# ---------------------------------------------------------------- packets


def frontends(plan: ServicePlan) -> Iterable[tuple[str, str, int]]:
    """Each kind of address that leads to the plan, one address of that kind, and its port."""
    yield "cluster IP", plan.cluster_ip, plan.port
    for kind, ips in (("external IP", plan.external_ips), ("load balancer IP", plan.load_balancer_ips)):
        yield from ((kind, ip, plan.port) for ip in ips)
    if plan.node_port:
        yield "node port", NODE, plan.node_port


def tracer(plan: ServicePlan, fragment: Fragment, settings: Settings) -> IptablesTracer:
    """Traces packets through the rules of a node with this one port. Every interface has the node's address."""
    rules = text(render_base(settings), [(plan.key, fragment)])
    return IptablesTracer(rules, settings.family, Host(frozenset({NODE}), {"veth5": NODE, "eth0": NODE}))
