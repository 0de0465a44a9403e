"""Derives each mode's settings from the configuration and the node. Pure, so that `render` can show any node."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kproxy.config import gates
from kproxy.config.fields import DetectLocalMode, KubeProxyConfiguration
from kproxy.kernel.constants import LOOPBACK_NETWORK
from kproxy.model.addresses import canonical_cidr, canonical_ip, contains, is_link_local, is_loopback
from kproxy.model.node_info import (
    DetectLocal,
    DetectLocalBy,
    NodeInfo,
    NodePortAddresses,
    family_of,
    node_port_addresses,
)
from kproxy.model.plans import Family
from kproxy.modes.iptables.render import Settings
from kproxy.modes.ipvs.fragments import Settings as IpvsSettings
from kproxy.modes.nftables.fragments import Settings as NftablesSettings
from kproxy.modes.userspace.listeners import LOOPBACK
from kproxy.modes.userspace.render import Settings as UserspaceSettings

DEFAULT_SCHEDULER = "rr"
ANY_ADDRESS = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}
LARGE_CLUSTER_ENDPOINTS = 1000  # beyond it, kube-proxy leaves out the comments of the Services' own chains


@dataclass(frozen=True, slots=True)
class Features:
    """What the kernel and its tools can do. nfacct: rules may count in nfacct counters. random_fully: iptables knows
    MASQUERADE's option --random-fully."""

    nfacct: bool = False
    random_fully: bool = True


USUAL = Features()
"""What `render` assumes of a host that it does not know."""


def node_ips(config: KubeProxyConfiguration, node: NodeInfo | None, found: Iterable[str]) -> tuple[str, ...]:
    """The node's own address in each family: the bind address, else the Node object's, else, if that has none at all,
    what the host shows."""
    bind = canonical_ip(config.bind_address)
    given = [bind] if bind and bind not in ("0.0.0.0", "::") else []
    ips: dict[Family, str] = {}
    for ip in (*given, *(node.ips if node and node.ips else found)):
        ips.setdefault(family_of(ip), ip)
    return tuple(ips.values())


def detect_local(config: KubeProxyConfiguration, family: Family, node: NodeInfo) -> DetectLocal:
    """How this node's pods are recognised in one family; empty when the configuration has nothing for it."""
    match config.detect_local_mode:
        case DetectLocalMode.BRIDGE_INTERFACE:
            return DetectLocal(DetectLocalBy.INTERFACE, config.detect_local.bridge_interface)
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            return DetectLocal(DetectLocalBy.INTERFACE, config.detect_local.interface_name_prefix + "+")
        case DetectLocalMode.NODE_CIDR:
            cidrs: Iterable[str] = node.pod_cidrs
        case _:
            cidrs = config.cluster_cidrs
    for text in cidrs:
        cidr = canonical_cidr(text)
        if cidr and family_of(cidr) is family:
            return DetectLocal(DetectLocalBy.CIDR, cidr)
    return DetectLocal()


def excluded_networks(config: KubeProxyConfiguration) -> tuple[str, ...]:
    """The networks of ipvs.excludeCIDRs, whose virtual servers belong to others, in any mode; without host bits."""
    return tuple(cidr for text in config.ipvs.exclude_cidrs if (cidr := canonical_cidr(text)))


def addresses_for_node_ports(config: KubeProxyConfiguration, family: Family, node: NodeInfo) -> NodePortAddresses:
    """Where node ports answer in one family."""
    return node_port_addresses(family, config.node_port_addresses, node.ips, node.addresses)


def node_port_ips(config: KubeProxyConfiguration, family: Family, node: NodeInfo) -> tuple[str, ...]:
    """The node's addresses in one family that take node ports."""
    found = addresses_for_node_ports(config, family, node)
    if found.match_all:
        return tuple(ip for ip in node.addresses if family_of(ip) is family)
    return found.ips


def localhost_networks(config: KubeProxyConfiguration, family: Family) -> tuple[str, ...]:
    """The networks on loopback where the forwarder serves TCP node ports, in modes whose rules cannot.

    Those that nodePortAddresses names: one that merely contains loopback does not count. Empty with the feature gate
    off. Source: KEP-6032.
    """
    if not config.gate_enabled(gates.LOCALHOST_NODE_PORTS):
        return ()
    named = LOOPBACK_NETWORK[family]
    asked = {named if text == "localhost" else canonical_cidr(text) or "" for text in config.node_port_addresses}
    if family is Family.IPV6:
        return (named,) if named in asked else ()
    networks = (ipaddress.IPv4Network(cidr) for cidr in asked if cidr and family_of(cidr) is family)
    loopback = ipaddress.IPv4Network(named)
    return tuple(str(n) for n in ipaddress.collapse_addresses(n for n in networks if n.subnet_of(loopback)))


def serves_localhost(config: KubeProxyConfiguration, family: Family) -> bool:
    """Whether the forwarder serves node ports on the address that it listens on, where no rules lead others to it."""
    return any(contains(network, LOOPBACK[family]) for network in localhost_networks(config, family))


def health_check_ips(config: KubeProxyConfiguration, node: NodeInfo, families: Collection[Family]) -> frozenset[str]:
    """Where the health check node ports of a Service of these families listen: IPs; "0.0.0.0" and "::" for all of one
    family, "" for all of both."""
    found = {family: addresses_for_node_ports(config, family, node) for family in Family}
    if all(each.match_all for each in found.values()):
        return frozenset({""})
    ips = ((ANY_ADDRESS[family],) if found[family].match_all else found[family].ips for family in families)
    return frozenset(ip for some in ips for ip in some)


def iptables_settings(
    config: KubeProxyConfiguration, family: Family, node: NodeInfo, endpoints: int, features: Features = USUAL
) -> Settings:
    """What the iptables rules of one family depend on besides the plans. endpoints: the size of the cluster."""
    return Settings(
        family=family,
        masquerade_mark=1 << config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        localhost_node_ports=config.iptables.localhost_node_ports,
        detect_local=detect_local(config, family, node),
        node_port_addresses=addresses_for_node_ports(config, family, node),
        nfacct=features.nfacct,
        tcp_be_liberal=config.conntrack.tcp_be_liberal,
        random_fully=features.random_fully,
        comments=endpoints <= LARGE_CLUSTER_ENDPOINTS,
    )


def ipvs_settings(
    config: KubeProxyConfiguration, family: Family, node: NodeInfo, features: Features = USUAL
) -> IpvsSettings:
    """What IPVS mode's virtual servers, sets and rules of one family depend on besides the plans.

    Loopback never takes node ports: IPVS masquerades nothing there, so no endpoint could answer.
    """
    asked = addresses_for_node_ports(config, family, node)
    own = [ip for ip in node.addresses if family_of(ip) is family and not is_loopback(ip)]
    return IpvsSettings(
        family=family,
        scheduler=config.ipvs.scheduler or DEFAULT_SCHEDULER,
        masquerade_mark=1 << config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        detect_local=detect_local(config, family, node),
        node_addresses=frozenset(own),
        node_port_ips=tuple(
            ip for ip in (own if asked.match_all else asked.ips) if not is_loopback(ip) and not is_link_local(ip)
        ),
        random_fully=features.random_fully,
        exclude_cidrs=excluded_networks(config),
    )


def nftables_settings(
    config: KubeProxyConfiguration, family: Family, node: NodeInfo, features: Features = USUAL
) -> NftablesSettings:
    """What nftables mode's rules of one family depend on besides the plans."""
    cidrs = (canonical_cidr(text) for text in node.service_cidrs)
    return NftablesSettings(
        family=family,
        masquerade_mark=1 << config.nftables.masquerade_bit,
        masquerade_all=config.nftables.masquerade_all,
        detect_local=detect_local(config, family, node),
        node_port_addresses=addresses_for_node_ports(config, family, node),
        service_cidrs=tuple(c for c in cidrs if c and family_of(c) is family),
        tcp_be_liberal=config.conntrack.tcp_be_liberal,
        random_fully=features.random_fully,
        refuses_localhost=config.gate_enabled(gates.LOCALHOST_NODE_PORTS),
        localhost_networks=localhost_networks(config, family),
    )


def userspace_settings(config: KubeProxyConfiguration, family: Family, node: NodeInfo) -> UserspaceSettings:
    """What userspace mode's rules of one family depend on besides the plans and their proxy ports."""
    # A node may be known by an address that is not on it (one-to-one NAT): what is led there would leave the node.
    own = [ip for ip in node.ips if family_of(ip) is family and ip in node.addresses]
    return UserspaceSettings(
        family=family,
        node_ip=next(iter(own), "127.0.0.1" if family is Family.IPV4 else "::1"),
        localhost_node_ports=config.iptables.localhost_node_ports,
        detect_local=detect_local(config, family, node),
        node_port_addresses=addresses_for_node_ports(config, family, node),
    )


def waits_for_pod_cidr(config: KubeProxyConfiguration, node: NodeInfo | None) -> bool:
    """Whether nothing can be programmed yet: mode NodeCIDR needs the pod CIDR, which the node does not have."""
    return config.detect_local_mode is DetectLocalMode.NODE_CIDR and not (node and node.pod_cidrs)
