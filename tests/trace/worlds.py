"""A node with Services, asked what becomes of packets: 172.18.0.2 (fd00:18::2), with pods in 10.244.1.0/24."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple

from kproxy.config.files import from_text
from kproxy.model.node_info import NodeInfo as NodeHost
from kproxy.model.objects import Kind, Object
from kproxy.model.plans import Family, Protocol
from kproxy.modes.preview import Preview, load
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.nftables import NftablesTracer
from kproxy.trace.outcome import Affinity, Fate, Host, Outcome, Probe, Verdict
from tests.model.builders import KINDS
from tests.trace.differences import meant
from tests.trace.oracle import Chances, Node

ADDRESSES = ("127.0.0.1", "172.18.0.2", "10.244.1.1", "192.168.9.7", "::1", "fd00:18::2", "fd00:10:244:1::1")
NODE_IPS = ("172.18.0.2", "fd00:18::2")
CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/48"

Trace = Callable[[Probe, Affinity | None], Outcome]
MakeTracer = Callable[[Preview, Family, Host], Trace]


def iptables(preview: Preview, family: Family, host: Host) -> Trace:
    return IptablesTracer(preview.iptables(family), family, host).trace


def nftables(preview: Preview, family: Family, host: Host) -> Trace:
    return NftablesTracer(preview.nftables_layout(family), host).trace


TRACERS: dict[str, MakeTracer] = {"iptables": iptables, "nftables": nftables}


class Client(NamedTuple):
    """Who sends a packet, and by which interface it comes; "" from the node itself."""

    ip: str
    interface: str = ""


class World:
    """One node's rules in one mode and family. nftables mode masquerades as the configuration has it for iptables."""

    def __init__(
        self,
        mode: str,
        objects: Iterable[Object],
        family: Family = Family.IPV4,
        more: Iterable[str] = (),
        **config: Any,
    ) -> None:
        """more: further addresses of the node. config: fields of the configuration."""
        kinds: dict[Kind, list[Object]] = {}
        for item in objects:
            kinds.setdefault(KINDS[type(item)], []).append(item)
        state, problems = load("node1", kinds)
        assert {p.field.partition("[")[0] for p in problems} <= {"spec.loadBalancerSourceRanges"}
        own = (*ADDRESSES, *more)
        preview = Preview(state, configuration(**config), NodeHost(ips=NODE_IPS, addresses=own))
        self.mode = mode
        self.node = Node.of(preview.settings(family), own, state.service_cidrs)
        self.plans = list(preview.families[family].plans.values())
        self.trace = TRACERS[mode](preview, family, self.node.host)

    def ask(
        self,
        client: Client,
        ip: str,
        port: int = 80,
        protocol: Protocol = Protocol.TCP,
        affinity: Affinity | None = None,
    ) -> Chances:
        """What such a packet meets."""
        return self.trace(Probe(client.ip, ip, protocol, port, client.interface), affinity).chances

    def means(self, meets: Chances, client: Client, ip: str, port: int) -> Chances:
        """What it must meet in this mode where it MEETS this in iptables mode."""
        probe = Probe(client.ip, ip, Protocol.TCP, port, client.interface)
        return meant(self.mode, self.plans, self.node, probe, meets)


def configuration(**fields: Any) -> Any:
    alike = {k: v for k, v in fields.get("iptables", {}).items() if k in ("masqueradeAll", "masqueradeBit")}
    head = {"nftables": alike, "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    return from_text(json.dumps({**head, "clusterCIDR": CLUSTER_CIDRS, **fields}))


def to(*endpoints: str, masqueraded: bool = False) -> Chances:
    """Each of the endpoints as likely as the others."""
    share = Fraction(1, len(endpoints))
    return {Verdict(Fate.DELIVERED, endpoint, masqueraded): share for endpoint in sorted(endpoints)}
