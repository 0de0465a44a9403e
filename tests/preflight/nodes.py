"""The node of tests.trace.worlds, as what preflight compares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.model.node_info import NodeInfo, family_of
from kproxy.model.objects import Kind, Object
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load
from kproxy.preflight.classes import Space, Tracer, interface_names
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.nftables import NftablesTracer
from kproxy.trace.outcome import Host
from tests.model.builders import KINDS
from tests.trace.worlds import ADDRESSES, NODE_IPS, configuration


def preview_of(items: Iterable[Object], **config: Any) -> tuple[Preview, Host]:
    """What a node of these objects would program. config: fields of the configuration."""
    kinds: dict[Kind, list[Object]] = {}
    for item in items:
        kinds.setdefault(KINDS[type(item)], []).append(item)
    state, _ = load("node1", kinds)
    found: KubeProxyConfiguration = configuration(**config)
    return Preview(state, found, NodeInfo(ips=NODE_IPS, addresses=ADDRESSES)), Host(frozenset(ADDRESSES))


def tracer_of(preview: Preview, mode: str, family: Family, host: Host) -> Tracer:
    if mode == "iptables":
        return IptablesTracer(preview.iptables(family), family, host)
    return NftablesTracer(preview.nftables_layout(family), host)


def space_of(preview: Preview, family: Family, host: Host) -> Space:
    own = frozenset(ip for ip in host.addresses if family_of(ip) is family)
    names = set(re.findall(r" -i (\S+)", preview.iptables(family)))
    return Space(family, own, interface_names(names))
