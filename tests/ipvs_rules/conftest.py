"""Plans to render, and random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.ipvs.fragments import Settings

NODE_ADDRESSES = {
    Family.IPV4: ("172.18.0.2", "192.168.9.7"),
    Family.IPV6: ("fd00:18::2", "fd00:19::7"),
}
PODS = {Family.IPV4: "10.244.1.", Family.IPV6: "fd00:244:1::"}


def endpoints(family: Family, *numbers: int, local: bool = False) -> tuple[Endpoint, ...]:
    """Pods by the last part of their address, serving on 8080."""
    return tuple(Endpoint(f"{PODS[family]}{n}", 8080, local) for n in numbers)


def build_plan(protocol: Protocol = Protocol.TCP, family: Family = Family.IPV4, **fields: Any) -> ServicePlan:
    """Port http of default/web. `cluster`, `local`, `here`: endpoints by the last part of their address."""
    cluster = endpoints(family, *fields.pop("cluster", ()))
    local = endpoints(family, *fields.pop("local", ()), local=True)
    reachable = tuple({str(e): e for e in (*cluster, *local)}.values())
    return ServicePlan(
        key=PortKey("default", fields.pop("name", "web"), "http", protocol),
        family=family,
        cluster_ip=fields.pop("cluster_ip", "10.96.0.1" if family is Family.IPV4 else "fd00:96::1"),
        port=fields.pop("port", 80),
        cluster=cluster,
        local=local,
        all_local=endpoints(family, *fields.pop("all_local", ()), local=True),
        reachable=reachable,
        has_endpoints=bool(reachable),
        **fields,
    )


def build_settings(family: Family = Family.IPV4, **fields: Any) -> Settings:
    """A node with two addresses, both of which take node ports."""
    ips = NODE_ADDRESSES[family]
    return Settings(**{"family": family, "node_addresses": frozenset(ips), "node_port_ips": ips} | fields)


@pytest.fixture(scope="session")
def plan() -> Callable[..., ServicePlan]:
    return build_plan


@pytest.fixture(scope="session")
def settings() -> Callable[..., Settings]:
    return build_settings


@st.composite
def _plans(draw: st.DrawFn, family: Family) -> ServicePlan:
    some = st.lists(st.integers(1, 5), max_size=3, unique=True).map(sorted)
    four = family is Family.IPV4
    outside = ["198.51.100.7", "198.51.100.8"] if four else ["2001:db8::7", "2001:db8::8"]
    # An operator may hand out an address of the node, and a load balancer one that is an external IP as well.
    ips = st.lists(st.sampled_from([*outside, NODE_ADDRESSES[family][0]]), max_size=2, unique=True).map(tuple)
    return build_plan(
        draw(st.sampled_from(list(Protocol))),
        family,
        name=draw(st.sampled_from("abc")),
        cluster_ip=draw(st.sampled_from(["10.96.0.1", "10.96.0.2"] if four else ["fd00:96::1", "fd00:96::2"])),
        port=draw(st.sampled_from([80, 443])),
        cluster=draw(some),
        local=draw(some),
        all_local=draw(some),
        node_port=draw(st.sampled_from([0, 0, 30080])),
        external_ips=draw(ips),
        load_balancer_ips=draw(ips),
        source_ranges=draw(st.sampled_from([(), ("10.0.0.0/8", "10.1.2.3/32") if four else ("fd00::/16",)])),
        node_in_source_ranges=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 10800])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
    )


@pytest.fixture(scope="session")
def any_plan() -> st.SearchStrategy[ServicePlan]:
    """A plan of either family."""
    return st.sampled_from(list(Family)).flatmap(_plans)


@pytest.fixture(scope="session")
def any_settings() -> Callable[[Family], st.SearchStrategy[Settings]]:
    """Settings of one family."""

    def build(family: Family) -> st.SearchStrategy[Settings]:
        return st.builds(
            build_settings,
            st.just(family),
            scheduler=st.sampled_from(["rr", "sh", "mh"]),
            node_port_ips=st.sampled_from([NODE_ADDRESSES[family], NODE_ADDRESSES[family][:1], ()]),
        )

    return build
