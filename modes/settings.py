"""From configuration, Node and host to what the model and the modes are told. Pure.

The host's part comes in as values, so `render` can show what another node would program.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kproxy.config.fields import DetectLocalMode, KubeProxyConfiguration
from kproxy.model.addresses import canonical_cidr, canonical_ip, is_link_local, is_loopback
from kproxy.model.node_info import (
    DetectLocal,
    DetectLocalBy,
    NodePortAddresses,
    NodeView,
    family_of,
    node_port_addresses,
)
from kproxy.model.planner import Place
from kproxy.model.plans import Family
from kproxy.modes.iptables.render import Settings
from kproxy.modes.ipvs.fragments import Settings as IpvsSettings
from kproxy.modes.nftables.fragments import Settings as NftablesSettings
from kproxy.modes.userspace.render import Settings as UserspaceSettings

DEFAULT_SCHEDULER = "rr"
LARGE_CLUSTER_ENDPOINTS = 1000  # beyond it, kube-proxy leaves out the comments of the Services' own chains


@dataclass(frozen=True, slots=True)
class Host:
    """What the node itself shows. node_ips: its own address, at most one a family. addresses: all, without lengths."""

    node_ips: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    nfacct: bool = False
    random_fully: bool = True


def node_ips(config: KubeProxyConfiguration, node: NodeView | None, found: Iterable[str]) -> tuple[str, ...]:
    """The node's own address in each family: the bind address, else the Node object's, else what the host shows."""
    bind = canonical_ip(config.bind_address)
    given = [bind] if bind and bind not in ("0.0.0.0", "::") else []
    ips: dict[Family, str] = {}
    for ip in (*given, *(node.ips if node else ()), *found):
        ips.setdefault(family_of(ip), ip)
    return tuple(ips.values())


def place(node_name: str, node: NodeView | None, host: Host, external_ips: bool = True) -> Place:
    """Where the plans are for. external_ips: whether those are served."""
    ips = {family_of(ip): ip for ip in reversed(host.node_ips)}
    zone = node.zone if node else ""
    return Place(node_name, zone, ips.get(Family.IPV4, ""), ips.get(Family.IPV6, ""), external_ips)


def detect_local(config: KubeProxyConfiguration, family: Family, node: NodeView | None) -> DetectLocal:
    """How this node's pods are told apart in one family; nothing when the configuration has nothing for the family."""
    match config.detect_local_mode:
        case DetectLocalMode.BRIDGE_INTERFACE:
            return DetectLocal(DetectLocalBy.INTERFACE, config.detect_local.bridge_interface)
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            return DetectLocal(DetectLocalBy.INTERFACE, config.detect_local.interface_name_prefix + "+")
        case DetectLocalMode.NODE_CIDR:
            cidrs: Iterable[str] = node.pod_cidrs if node else ()
        case _:
            cidrs = (text.strip() for text in config.cluster_cidrs)
    for text in cidrs:
        cidr = canonical_cidr(text)
        if cidr and family_of(cidr) is family:
            return DetectLocal(DetectLocalBy.CIDR, cidr)
    return DetectLocal()


def excluded_networks(config: KubeProxyConfiguration) -> tuple[str, ...]:
    """The networks whose virtual servers are somebody else's, in any mode, without host bits."""
    return tuple(cidr for text in config.ipvs.exclude_cidrs if (cidr := canonical_cidr(text)))


def addresses_for_node_ports(config: KubeProxyConfiguration, family: Family, host: Host) -> NodePortAddresses:
    """Where node ports answer in one family."""
    return node_port_addresses(family, config.node_port_addresses, host.node_ips, host.addresses)


def iptables_settings(
    config: KubeProxyConfiguration, family: Family, node: NodeView | None, host: Host, endpoints: int
) -> Settings:
    """What the iptables rules of one family depend on besides the plans. endpoints: the size of the cluster."""
    return Settings(
        family=family,
        masquerade_mark=1 << config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        localhost_node_ports=config.iptables.localhost_node_ports,
        detect_local=detect_local(config, family, node),
        node_port_addresses=addresses_for_node_ports(config, family, host),
        nfacct=host.nfacct,
        tcp_be_liberal=config.conntrack.tcp_be_liberal,
        random_fully=host.random_fully,
        comments=endpoints <= LARGE_CLUSTER_ENDPOINTS,
    )


def ipvs_settings(config: KubeProxyConfiguration, family: Family, node: NodeView | None, host: Host) -> IpvsSettings:
    """What IPVS mode's virtual servers, sets and rules of one family depend on besides the plans.

    Loopback never takes node ports: IPVS masquerades nothing there, so no endpoint could answer.
    """
    asked = addresses_for_node_ports(config, family, host)
    own = [ip for ip in host.addresses if family_of(ip) is family and not is_loopback(ip)]
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
        random_fully=host.random_fully,
        exclude_cidrs=excluded_networks(config),
    )


def nftables_settings(
    config: KubeProxyConfiguration,
    family: Family,
    node: NodeView | None,
    host: Host,
    service_cidrs: Iterable[str] = (),
) -> NftablesSettings:
    """What nftables mode's rules of one family depend on besides the plans. service_cidrs: of both families."""
    cidrs = (canonical_cidr(text) for text in service_cidrs)
    return NftablesSettings(
        family=family,
        masquerade_mark=1 << config.nftables.masquerade_bit,
        masquerade_all=config.nftables.masquerade_all,
        detect_local=detect_local(config, family, node),
        node_port_addresses=addresses_for_node_ports(config, family, host),
        service_cidrs=tuple(c for c in cidrs if c and family_of(c) is family),
        tcp_be_liberal=config.conntrack.tcp_be_liberal,
        random_fully=host.random_fully,
    )


def userspace_settings(
    config: KubeProxyConfiguration, family: Family, node: NodeView | None, host: Host
) -> UserspaceSettings:
    """What userspace mode's rules of one family depend on besides the plans and their proxy ports."""
    # A node may be known by an address that is not on it (one-to-one NAT): what is led there would leave the node.
    own = [ip for ip in host.node_ips if family_of(ip) is family and ip in host.addresses]
    return UserspaceSettings(
        family=family,
        node_ip=next(iter(own), "127.0.0.1" if family is Family.IPV4 else "::1"),
        localhost_node_ports=config.iptables.localhost_node_ports,
        detect_local=detect_local(config, family, node),
        node_port_addresses=addresses_for_node_ports(config, family, host),
    )


def waits_for_pod_cidr(config: KubeProxyConfiguration, node: NodeView | None) -> bool:
    """Mode NodeCIDR cannot work before the node has been given its pod CIDR."""
    return config.detect_local_mode is DetectLocalMode.NODE_CIDR and not (node and node.pod_cidrs)
