"""Interfaces, addresses and routes inside namespaces, by rtnetlink."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pyroute2 import IPRoute

from kproxy.lab.namespaces import Namespace

IFA_F_NODAD = 0x02  # include/uapi/linux/if_addr.h: usable at once
FOREVER = 0xFFFFFFFF

HOST_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
    # Tests count refusals, so they must not be rate-limited.
    "ipv4/icmp_ratelimit": "0",
    "ipv6/icmp/ratelimit": "0",
}


def up(space: Namespace, interface: str = "lo") -> None:
    """Bring an interface up."""

    def work() -> None:
        with IPRoute() as ip:
            ip.link("set", index=_index(ip, interface), state="up")

    space.call(work)


def connect(near: Namespace, near_name: str, far: Namespace, far_name: str) -> None:
    """Join two namespaces by a pair of virtual Ethernet interfaces, both up."""

    def work() -> None:
        with IPRoute() as ip:
            ip.link("add", ifname=near_name, kind="veth", peer={"ifname": far_name, "net_ns_fd": far.fd})
            ip.link("set", index=_index(ip, near_name), state="up")

    near.call(work)
    up(far, far_name)


def bridge(space: Namespace, name: str, ports: Iterable[str]) -> None:
    """Join interfaces of the namespace by a bridge."""

    def work() -> None:
        with IPRoute() as ip:
            ip.link("add", ifname=name, kind="bridge", br_mcast_snooping=0)
            master = _index(ip, name)
            ip.link("set", index=master, state="up")
            for port in ports:
                ip.link("set", index=_index(ip, port), master=master)

    space.call(work)


def address(space: Namespace, interface: str, *addresses: str) -> None:
    """Add addresses to an interface, each as IP/LEN. The first of a family is the source of its packets."""

    def work() -> None:
        with IPRoute() as ip:
            index = _index(ip, interface)
            for place, text in enumerate(addresses):
                each = ipaddress.ip_interface(text)
                options = {"flags": IFA_F_NODAD} if each.version == 6 else {}
                if each.version == 6 and place:  # among equals Linux prefers the newest, unless it is deprecated
                    options |= {"preferred_lft": 0, "valid_lft": FOREVER}
                ip.addr("add", index=index, address=str(each.ip), prefixlen=each.network.prefixlen, **options)

    space.call(work)


def route(space: Namespace, interface: str, *networks: str, via: str = "") -> None:
    """Route networks (IP/LEN) through an interface, to the gateway `via` or, without one, directly."""

    def work() -> None:
        with IPRoute() as ip:
            index = _index(ip, interface)
            for network in networks:
                scope = {"scope": 253} if not via and ":" not in network else {}  # RT_SCOPE_LINK
                ip.route("add", dst=network, oif=index, **({"gateway": via} if via else scope))

    space.call(work)


def _index(ip: IPRoute, name: str) -> int:
    (index,) = ip.link_lookup(ifname=name)
    return int(index)
