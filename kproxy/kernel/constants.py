"""Numbers and names of the kernel's interfaces that more than one package needs, each of them once.

Leaves out: what one codec alone uses, which stands in that codec, and the name of the device kube-ipvs0, which the
model needs as well (`kproxy.model.node_info.SERVICE_DEVICE`). These are values without any I/O, so pure modules may
import this one of `kproxy.kernel`.

Sources: include/uapi/linux/{netlink,netfilter,in}.h, include/uapi/linux/netfilter/nfnetlink.h, proxier.go of
kube-proxy.
"""

from __future__ import annotations

import socket

from kproxy.model.plans import Family

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_IPSET, NFNL_SUBSYS_ACCT, NFNL_SUBSYS_NFTABLES = 1, 6, 7, 10

ADDRESS_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
NFPROTO = {family: int(number) for family, number in ADDRESS_FAMILY.items()}
"""netfilter's numbers of the families (NFPROTO_IPV4, NFPROTO_IPV6) are those of the socket calls."""
ADDRESS_BITS = {Family.IPV4: 32, Family.IPV6: 128}
"""The prefix length of a single address."""

LOOPBACK_NETWORK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1/128"}

PROTOCOL_NUMBERS = {"tcp": int(socket.IPPROTO_TCP), "udp": int(socket.IPPROTO_UDP), "sctp": int(socket.IPPROTO_SCTP)}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
"""The nfacct counter of packets that a rule dropped because conntrack called their state INVALID."""
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"
"""The nfacct counter of packets to node ports that were accepted on a loopback address."""
NFACCT_COUNTERS = (INVALID_DROPPED, LOCALHOST_ACCEPTED)


def address_family(address: str) -> socket.AddressFamily:
    """The socket family of an address in text form; the address is not checked."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET
