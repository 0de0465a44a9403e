"""Plans of Service ports for the tests of modes: a short way to write them, and random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import strategies as st

from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan

Plans = dict[PortKey, ServicePlan]

NODE_IP = "172.30.0.11"
PODS = {Family.IPV4: "10.244.1.", Family.IPV6: "fd00:244:1::"}
CLUSTER_IPS = {Family.IPV4: "10.96.0.", Family.IPV6: "fd00:96::"}


def build_plan(
    name: str = "web",
    protocol: Protocol = Protocol.TCP,
    family: Family = Family.IPV4,
    *,
    cluster: Iterable[int] = (1, 2),
    local: Iterable[int] = (),
    **fields: Any,
) -> ServicePlan:
    """Port http of default/NAME, at a cluster IP that depends on NAME.

    cluster, local: endpoints by the last part of their address, each serving on 8080. fields: of the plan.
    """
    port = fields.get("port", 80)
    everywhere, here = (tuple(endpoints(family, numbers)) for numbers in (cluster, local))
    here = tuple(Endpoint(each.ip, each.port, local=True) for each in here)
    reachable = tuple(sorted({str(each): each for each in (*everywhere, *here)}.values(), key=str))
    values: dict[str, Any] = {
        "key": PortKey("default", name, "http" if port == 80 else f"p{port}", protocol),
        "family": family,
        "cluster_ip": f"{CLUSTER_IPS[family]}{1 + sum(name.encode()) % 200}",
        "port": port,
        "cluster": everywhere,
        "local": here,
        "reachable": reachable,
        "all_local": tuple(each for each in reachable if each.local),
        "has_endpoints": bool(reachable),
    }
    return ServicePlan(**(values | fields))


def endpoints(family: Family, numbers: Iterable[int]) -> Iterable[Endpoint]:
    return (Endpoint(f"{PODS[family]}{number}", 8080) for number in numbers)


def by_key(*plans: ServicePlan) -> Plans:
    return {plan.key: plan for plan in plans}


def changed(old: Plans, new: Plans) -> set[PortKey]:
    """The ports that differ."""
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


# ---------------------------------------------------------------- random ones

SOME = st.lists(st.integers(1, 5), max_size=3, unique=True).map(sorted)


@st.composite
def any_plan(draw: st.DrawFn, name: str, protocol: Protocol, port: int = 80) -> ServicePlan:
    """A plan in which whoever serves local traffic serves all."""
    local = draw(SOME)
    load_balancer = draw(st.sampled_from([(), ("203.0.113.5",)]))
    ranges = draw(st.sampled_from([(), ("172.30.0.0/24",)])) if load_balancer else ()
    return build_plan(
        name,
        protocol,
        port=port,
        cluster=sorted({*draw(SOME), *local}),
        local=local,
        node_port=draw(st.sampled_from([0, 30000 + sum(name.encode()) % 100 + port])),
        # Two Services may ask for one address and port, which may be the node's.
        external_ips=draw(st.sampled_from([(), ("198.51.100.7",), (NODE_IP,)])),
        load_balancer_ips=load_balancer,
        source_ranges=ranges,
        admits_nobody=not ranges and draw(st.booleans()),
        node_in_source_ranges=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 10800])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
    )


def any_plans(
    *ports: tuple[Any, ...], most: int = 5, plan: Callable[..., st.SearchStrategy[ServicePlan]] = any_plan
) -> st.SearchStrategy[Plans]:
    """Up to MOST plans out of a few PORTS (arguments of PLAN), so that one set is often a change of another."""
    chosen = st.lists(st.sampled_from(ports), unique=True, max_size=most)
    return chosen.flatmap(lambda found: st.tuples(*(plan(*port) for port in found))).map(lambda made: by_key(*made))
