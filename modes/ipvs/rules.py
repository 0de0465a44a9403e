"""Renders the iptables rules of IPVS mode, which match on ipsets and are the same for any number of Services. Pure.

Rules are in the option order in which iptables-save prints them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kproxy.model.node_info import DetectLocalBy
from kproxy.model.plans import Family
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.ipvs.names import set_name
from kproxy.modes.xtables.names import FORWARD, MARK_MASQ, POSTROUTING, PROXY_FIREWALL, SERVICES
from kproxy.modes.xtables.rules import Base

COMMENTS = {
    names.LOOP_BACK: "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    names.CLUSTER_IP: "Kubernetes service cluster ip + port for masquerade purpose",
    names.EXTERNAL_IP: "Kubernetes service external ip + port for masquerade and filter purpose",
    names.EXTERNAL_IP_LOCAL: "Kubernetes service external ip + port with externalTrafficPolicy=local",
    names.LB: "Kubernetes service lb portal",
    names.LB_LOCAL: "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
    names.LB_FIREWALL: "Kubernetes service load balancer ip + port for load balancer with sourceRange",
    names.LB_SOURCE_CIDR: "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    names.LB_SOURCE_IP: "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    names.NODE_PORT_TCP: "Kubernetes nodeport TCP port for masquerade purpose",
    names.NODE_PORT_LOCAL_TCP: "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
    names.NODE_PORT_UDP: "Kubernetes nodeport UDP port for masquerade purpose",
    names.NODE_PORT_LOCAL_UDP: "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
    names.NODE_PORT_SCTP: "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    names.NODE_PORT_LOCAL_SCTP: (
        "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'"
    ),
    names.HEALTH_CHECK_NODE_PORT: "Kubernetes health check node port",
}
NEW = "-m conntrack --ctstate NEW"
TO_NODE = "-m addrtype --dst-type LOCAL"
# From another machine: not through a bridge, as from a container of this node, and not from a process of this node.
FROM_ELSEWHERE = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"


def render_base(settings: Settings, filled: Collection[str]) -> Base:
    """The chains, rules and jumps of a node.

    filled: the full names of the sets that are not empty. Rules on the others are left out, as in kube-proxy.
    """
    rules = _Rules(settings, filled)
    owned = {
        ("filter", FORWARD): tuple(rules.forward()),
        ("filter", names.NODE_PORT): (f"{rules.on(names.HEALTH_CHECK_NODE_PORT, 'dst')} -j ACCEPT",),
        ("filter", PROXY_FIREWALL): tuple(
            rules.if_filled(names.LB_FIREWALL, f"dst,dst -j {names.SOURCE_RANGES}"),
        ),
        ("filter", names.SOURCE_RANGES): tuple(rules.source_ranges()),
        ("filter", names.IPVS_FILTER): tuple(rules.ipvs_filter()),
        ("nat", SERVICES): tuple(rules.services()),
        ("nat", POSTROUTING): tuple(rules.postrouting()),
        ("nat", names.NODE_PORT): tuple(rules.node_ports()),
        ("nat", names.LOAD_BALANCER): (
            *rules.if_filled(names.LB_LOCAL, "dst,dst -j RETURN"),
            f"-j {MARK_MASQ}",
        ),
        ("nat", MARK_MASQ): (f"-j MARK --set-xmark {rules.mark}/{rules.mark}",),
    }
    return Base(owned, {("filter", names.IPVS_OUT_FILTER): ()}, {}, _jumps())


class _Rules:
    """Renders the chains' rules; it holds what every chain needs."""

    __slots__ = ("_family", "_filled", "_settings", "mark")

    def __init__(self, settings: Settings, filled: Collection[str]) -> None:
        self._settings = settings
        self._family = settings.family
        self._filled = filled
        self.mark = f"{settings.masquerade_mark:#x}"

    def on(self, short: str, how: str, before: str = "") -> str:
        """A match on a set, with its comment. how: the addresses and ports of the packet to look up, and the target."""
        return f'{before}-m comment --comment "{COMMENTS[short]}" {self._bare(short, how)}'

    def if_filled(self, short: str, rest: str, before: str = "") -> Iterator[str]:
        """The rule on a set, unless the set is empty."""
        if self._has(short):
            yield self.on(short, rest, before)

    def _bare(self, short: str, how: str) -> str:
        return f"-m set --match-set {set_name(short, self._family)} {how}"

    def _has(self, short: str) -> bool:
        return set_name(short, self._family) in self._filled

    # -- nat

    def services(self) -> Iterator[str]:
        """Marks what is to be masqueraded, and accepts what goes to IPVS, past the other rules of the hook."""
        yield f"-s {'127.0.0.0/8' if self._family is Family.IPV4 else '::1/128'} -j RETURN"
        yield from self.if_filled(names.LB, f"dst,dst -j {names.LOAD_BALANCER}")
        if self._has(names.CLUSTER_IP):
            yield self._masquerade_off_cluster()
        yield from self.if_filled(names.EXTERNAL_IP, f"dst,dst -j {MARK_MASQ}")
        for short in (names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL):
            yield from self.if_filled(short, f"dst,dst {FROM_ELSEWHERE} -j ACCEPT")
            yield from self.if_filled(short, f"dst,dst {TO_NODE} -j ACCEPT")
        yield f"{TO_NODE} -j {names.NODE_PORT}"
        for short in (names.CLUSTER_IP, names.LB):
            if self._has(short):
                yield f"{self._bare(short, 'dst,dst')} -j ACCEPT"

    def _masquerade_off_cluster(self) -> str:
        """Masquerades traffic to a cluster IP that does not come from a pod, so that replies come back this way."""
        detect, how, before = self._settings.detect_local, "dst,dst", ""
        if not self._settings.masquerade_all:
            match detect.by:
                case DetectLocalBy.CIDR:
                    before = f"! -s {detect.value} "
                case DetectLocalBy.INTERFACE:
                    before = f"! -i {detect.value} "
                case _:
                    # The node's own connections have the cluster IP, which is on kube-ipvs0, as source.
                    how = "src,dst"
        return f"{self.on(names.CLUSTER_IP, how, before)} -j {MARK_MASQ}"

    def node_ports(self) -> Iterator[str]:
        """Marks what is to be masqueraded; policy Local keeps the client's address."""
        for proto, local, every, how in (
            ("tcp", names.NODE_PORT_LOCAL_TCP, names.NODE_PORT_TCP, "dst"),
            ("udp", names.NODE_PORT_LOCAL_UDP, names.NODE_PORT_UDP, "dst"),
            ("sctp", names.NODE_PORT_LOCAL_SCTP, names.NODE_PORT_SCTP, "dst,dst"),
        ):
            yield from self.if_filled(local, f"{how} -j RETURN", f"-p {proto} ")
            yield from self.if_filled(every, f"{how} -j {MARK_MASQ}", f"-p {proto} ")

    def postrouting(self) -> Iterator[str]:
        # An endpoint that connects to itself through the Service would see its own address and bypass the Service.
        yield from self.if_filled(names.LOOP_BACK, "dst,dst,src -j MASQUERADE")
        yield f"-m mark ! --mark {self.mark}/{self.mark} -j RETURN"
        # Cleared, so that the packet is not masqueraded again when it comes back through another stack.
        yield f"-j MARK --set-xmark {self.mark}/0x0"
        fully = " --random-fully" if self._settings.random_fully else ""
        yield f'-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE{fully}'

    # -- filter

    def forward(self) -> Iterator[str]:
        yield f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {self.mark}/{self.mark} -j ACCEPT'
        established = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        yield f'-m comment --comment "kubernetes forwarding conntrack rule" {established}'

    def source_ranges(self) -> Iterator[str]:
        for short in (names.LB_SOURCE_CIDR, names.LB_SOURCE_IP):
            yield from self.if_filled(short, "dst,dst,src -j RETURN")
        yield "-j DROP"

    def ipvs_filter(self) -> Iterator[str]:
        """Lets only Services' ports through: whatever else listens on the node would answer on their addresses too."""
        for short in (names.LB, names.CLUSTER_IP, names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL):
            yield f"{self._bare(short, 'dst,dst')} -j RETURN"
        yield f"{self._bare(names.HEALTH_CHECK_NODE_PORT, 'dst')} -j RETURN"
        yield f"{NEW} {self._bare(names.IPVS_IPS, 'dst')} -j REJECT"


def _jumps() -> dict[tuple[str, str], tuple[str, ...]]:
    def jump(comment: str, target: str) -> str:
        return f'-m comment --comment "{comment}" -j {target}'

    firewall = jump("kube-proxy firewall rules", PROXY_FIREWALL)
    portals = jump("kubernetes service portals", SERVICES)
    access = "kubernetes ipvs access filter"
    return {
        ("filter", "INPUT"): (
            jump(access, names.IPVS_FILTER),
            firewall,
            jump("kubernetes health check rules", names.NODE_PORT),
        ),
        ("filter", "FORWARD"): (firewall, jump("kubernetes forwarding rules", FORWARD)),
        ("filter", "OUTPUT"): (jump(access, names.IPVS_OUT_FILTER),),
        ("nat", "PREROUTING"): (portals,),
        ("nat", "OUTPUT"): (portals,),
        ("nat", "POSTROUTING"): (jump("kubernetes postrouting rules", POSTROUTING),),
    }
