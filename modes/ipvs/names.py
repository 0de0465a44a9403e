"""Names of chains and ipsets in IPVS mode, the same as kube-proxy's, so that a node can change hands as it is.

Chains that iptables mode has as well (KUBE-SERVICES, KUBE-MARK-MASQ, ...) are in kproxy.modes.xtables.names.
"""

from __future__ import annotations

from typing import NamedTuple

from kproxy.model.plans import Family

# Chains.
NODE_PORT = "KUBE-NODE-PORT"  # without the S of iptables mode's
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
SOURCE_RANGES = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER = "KUBE-IPVS-FILTER"
IPVS_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"

# Sets, by their IPv4 names without "KUBE-".
LOOP_BACK = "LOOP-BACK"  # endpoints on this node that connect to themselves: client and endpoint have one address
CLUSTER_IP = "CLUSTER-IP"  # cluster IPs and ports
EXTERNAL_IP = "EXTERNAL-IP"  # external IPs and ports, policy Cluster
EXTERNAL_IP_LOCAL = "EXTERNAL-IP-LOCAL"  # the same, policy Local
LB = "LOAD-BALANCER"  # load balancers' IPs and ports, whatever the policy
LB_LOCAL = "LOAD-BALANCER-LOCAL"  # those of them with policy Local, which keep the client's address
LB_FIREWALL = "LOAD-BALANCER-FW"  # those of them that only some sources may reach
LB_SOURCE_CIDR = "LOAD-BALANCER-SOURCE-CIDR"  # those sources, with the load balancers' IPs and ports
LB_SOURCE_IP = "LOAD-BALANCER-SOURCE-IP"  # the same for a source that is the IP itself: the node's own connections
NODE_PORT_TCP = "NODE-PORT-TCP"  # node ports, whatever the policy
NODE_PORT_UDP = "NODE-PORT-UDP"
NODE_PORT_SCTP = "NODE-PORT-SCTP-HASH"  # with the node's addresses: bitmap:port knows TCP and UDP only
NODE_PORT_LOCAL_TCP = "NODE-PORT-LOCAL-TCP"  # those of them with policy Local
NODE_PORT_LOCAL_UDP = "NODE-PORT-LOCAL-UDP"
NODE_PORT_LOCAL_SCTP = "NODE-PORT-LOCAL-SCTP-HASH"
HEALTH_CHECK_NODE_PORT = "HEALTH-CHECK-NODE-PORT"  # where Services answer load balancers' health checks
IPVS_IPS = "IPVS-IPS"  # the addresses on kube-ipvs0

_IP, _PORT = "hash:ip", "bitmap:port"
_IP_PORT, _IP_PORT_IP, _IP_PORT_NET = "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net"

_TYPES = {
    LOOP_BACK: _IP_PORT_IP,
    CLUSTER_IP: _IP_PORT,
    EXTERNAL_IP: _IP_PORT,
    EXTERNAL_IP_LOCAL: _IP_PORT,
    LB: _IP_PORT,
    LB_FIREWALL: _IP_PORT,
    LB_LOCAL: _IP_PORT,
    LB_SOURCE_IP: _IP_PORT_IP,
    LB_SOURCE_CIDR: _IP_PORT_NET,
    NODE_PORT_TCP: _PORT,
    NODE_PORT_LOCAL_TCP: _PORT,
    NODE_PORT_UDP: _PORT,
    NODE_PORT_LOCAL_UDP: _PORT,
    NODE_PORT_SCTP: _IP_PORT,
    NODE_PORT_LOCAL_SCTP: _IP_PORT,
    HEALTH_CHECK_NODE_PORT: _PORT,
    IPVS_IPS: _IP,
}
LONGEST = 31  # IPSET_MAXNAMELEN without the final NUL (include/uapi/linux/netfilter/ipset/ip_set.h)


class IpSet(NamedTuple):
    """A set: its full name, and its type by ipset's names. A bitmap holds ports 0 to 65535."""

    name: str
    type: str


def set_name(short: str, family: Family) -> str:
    """The full name of a set, as in KUBE-CLUSTER-IP and KUBE-6-CLUSTER-IP, cut to the kernel's limit."""
    return f"KUBE-{'' if family is Family.IPV4 else '6-'}{short}"[:LONGEST]


def sets(family: Family) -> tuple[IpSet, ...]:
    """Every set of a family. All of them are always created: some rules that match on them are always there."""
    return tuple(IpSet(set_name(short, family), type_) for short, type_ in _TYPES.items())
