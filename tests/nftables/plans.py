"""Plans to render, and ways to look at a layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import strategies as st

from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodePortAddresses
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.render import Layout, lay_out, render_base, render_port
from kproxy.netfilter.objects import Chain, Element, Goto, Jump, Verdict

POD_CIDR = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:244::/32"}
LOCALHOST = {Family.IPV4: ("127.0.0.1/32", "127.0.4.0/30"), Family.IPV6: ("::1/128",)}
NODE_IP = {Family.IPV4: "172.30.0.11", Family.IPV6: "fd00:30::11"}


def address(family: Family, network: int, number: int) -> str:
    """10.NETWORK.0.NUMBER, fd00:NETWORK::NUMBER"""
    return f"10.{network}.0.{number}" if family is Family.IPV4 else f"fd00:{network}::{number}"


def build_plan(
    name: str = "web",
    *,
    family: Family = Family.IPV4,
    protocol: Protocol = Protocol.TCP,
    cluster: Iterable[int] = (1, 2),
    local: Iterable[int] = (),
    **fields: Any,
) -> ServicePlan:
    """A plan with an address of its own, 10.96.0.N port 80; `cluster` and `local` list endpoints by their last part."""
    ends = {n: Endpoint(address(family, 244, n), 8080, n in tuple(local)) for n in (*cluster, *local)}
    values: dict[str, Any] = {
        "key": PortKey("default", name, "http", protocol),
        "family": family,
        "cluster_ip": address(family, 96, 1 + sum(name.encode()) % 200),
        "port": 80,
        "cluster": tuple(ends[n] for n in cluster),
        "local": tuple(ends[n] for n in local),
        "reachable": tuple(sorted(ends.values(), key=str)),
        "has_endpoints": bool(ends),
    }
    return ServicePlan(**(values | fields))


def settings(family: Family = Family.IPV4, **fields: Any) -> Settings:
    """Settings with the lab's pod network."""
    values: dict[str, Any] = {"detect_local": DetectLocal(DetectLocalBy.CIDR, POD_CIDR[family])}
    return Settings(family, **(values | fields))


def layout_of(*plans: ServicePlan, **fields: Any) -> Layout:
    """Everything for these plans."""
    chosen = settings(**({"family": plans[0].family if plans else Family.IPV4} | fields))
    return lay_out(render_base(chosen), [(p.key, render_port(p, chosen)) for p in plans])


def elements(layout: Layout, name: str) -> list[str]:
    """The elements of a set or map as "KEY" or "KEY : DATA"."""
    return [written(e) for e in layout.elements.get(name, ())]


def written(element: Element) -> str:
    key = " . ".join(map(str, element.key))
    data = element.data
    if data is None:
        return key
    return f"{key} : {data if isinstance(data, Verdict) else ' . '.join(map(str, data))}"


def destinations(chains: Iterable[Chain]) -> Iterator[str]:
    """The chains to which rules of CHAINS jump, without verdict maps."""
    for chain in chains:
        for rule in chain.rules:
            for statement in rule:
                if isinstance(statement, Goto | Jump):
                    yield statement.chain


# ---------------------------------------------------------------- anything at all

SOURCES = {
    Family.IPV4: ["172.30.0.0/24", "172.30.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "203.0.113.5/32"],
    Family.IPV6: ["fd00:30::/64", "fd00:30::/32", "fd00::/8", "::/0", "2001:db8::5/128"],
}
OUTSIDE = {Family.IPV4: ["203.0.113.5", "203.0.113.6"], Family.IPV6: ["2001:db8::5", "2001:db8::6"]}


def subsets(values: list[str], most: int = 2) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


@st.composite
def any_plan(draw: st.DrawFn, name: str, family: Family) -> ServicePlan:
    """A plan as the planner makes them, with addresses that other plans may have as well."""
    own = build_plan(name, family=family).cluster_ip
    local = draw(st.lists(st.integers(1, 5), max_size=3, unique=True))
    cluster = sorted({*draw(st.lists(st.integers(1, 5), max_size=3, unique=True)), *local})
    balancers = draw(subsets(OUTSIDE[family]))
    ranges = draw(subsets(SOURCES[family], 3)) if balancers else ()
    return build_plan(
        name,
        family=family,
        protocol=draw(st.sampled_from(Protocol)),
        cluster=cluster,
        local=sorted(local),
        all_local=tuple(Endpoint(address(family, 244, n), 8080, True) for n in sorted(local)),
        # One that was taken from another Service, whose deletion is not known yet.
        cluster_ip=draw(st.sampled_from([own, own, address(family, 96, 250)])),
        node_port=draw(st.sampled_from([0, 30000, 30001])),
        external_ips=draw(subsets([*OUTSIDE[family], NODE_IP[family]])),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
        load_balancer_ips=balancers,
        source_ranges=ranges,
        admits_nobody=not ranges and draw(st.booleans()),
        node_in_source_ranges=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 60, 10800])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
    )


@st.composite
def any_plans(draw: st.DrawFn, family: Family) -> list[ServicePlan]:
    return [draw(any_plan(name, family)) for name in draw(st.lists(st.sampled_from("abcde"), unique=True))]


@st.composite
def any_settings(draw: st.DrawFn, family: Family) -> Settings:
    node_ports = NodePortAddresses(False, (NODE_IP[family],), loopback=draw(st.booleans()))
    return Settings(
        family=family,
        masquerade_mark=1 << draw(st.integers(0, 31)),
        masquerade_all=draw(st.booleans()),
        detect_local=draw(
            st.sampled_from(
                [
                    DetectLocal(),
                    DetectLocal(DetectLocalBy.CIDR, POD_CIDR[family]),
                    DetectLocal(DetectLocalBy.INTERFACE, "cbr0"),
                    DetectLocal(DetectLocalBy.INTERFACE, "veth+"),
                ]
            )
        ),
        node_port_addresses=draw(st.sampled_from([NodePortAddresses(), node_ports])),
        service_cidrs=draw(
            st.sampled_from([(), (f"{address(family, 96, 0)}/{16 if family is Family.IPV4 else 112}",)])
        ),
        tcp_be_liberal=draw(st.booleans()),
        random_fully=draw(st.booleans()),
        refuses_localhost=(served := draw(st.sampled_from([None, (), LOCALHOST[family]]))) is not None,
        localhost_networks=served or (),
    )
