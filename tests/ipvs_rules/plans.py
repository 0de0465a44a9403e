"""Plans and settings to render in IPVS mode, and random ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.modes.ipvs.fragments import Settings
from tests.plans import CLUSTER_IPS, SOME, build_plan, endpoints

NODE_ADDRESSES = {
    Family.IPV4: ("172.18.0.2", "192.168.9.7"),
    Family.IPV6: ("fd00:18::2", "fd00:19::7"),
}


def port(protocol: Protocol = Protocol.TCP, family: Family = Family.IPV4, **fields: Any) -> ServicePlan:
    """Port http of default/web, without endpoints. all_local: by the last part of their address, as `cluster`."""
    all_local = tuple(replace(each, local=True) for each in endpoints(family, fields.pop("all_local", ())))
    values = {"cluster": (), "cluster_ip": f"{CLUSTER_IPS[family]}1", "all_local": all_local}
    return build_plan(fields.pop("name", "web"), protocol, family, **(values | fields))


def node_settings(family: Family = Family.IPV4, **fields: Any) -> Settings:
    """A node with two addresses, both of which take node ports."""
    ips = NODE_ADDRESSES[family]
    return Settings(**{"family": family, "node_addresses": frozenset(ips), "node_port_ips": ips} | fields)


@st.composite
def any_plan(draw: st.DrawFn, family: Family) -> ServicePlan:
    """A plan of that family."""
    four = family is Family.IPV4
    outside = ["198.51.100.7", "198.51.100.8"] if four else ["2001:db8::7", "2001:db8::8"]
    # An operator may hand out an address of the node, and a load balancer one that is an external IP as well.
    ips = st.lists(st.sampled_from([*outside, NODE_ADDRESSES[family][0]]), max_size=2, unique=True).map(tuple)
    return port(
        draw(st.sampled_from(list(Protocol))),
        family,
        name=draw(st.sampled_from("abc")),
        cluster_ip=draw(st.sampled_from(["10.96.0.1", "10.96.0.2"] if four else ["fd00:96::1", "fd00:96::2"])),
        port=draw(st.sampled_from([80, 443])),
        cluster=draw(SOME),
        local=draw(SOME),
        all_local=draw(SOME),
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


def any_settings(family: Family) -> st.SearchStrategy[Settings]:
    return st.builds(
        node_settings,
        st.just(family),
        scheduler=st.sampled_from(["rr", "sh", "mh"]),
        node_port_ips=st.sampled_from([NODE_ADDRESSES[family], NODE_ADDRESSES[family][:1], ()]),
    )
