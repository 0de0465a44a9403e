"""A fault in rendered rules is found: every wrong mask, lost rule or other probability is a difference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from kproxy.model.objects import Object
from kproxy.model.plans import Family
from kproxy.modes.nftables import names
from kproxy.modes.nftables.render import Layout
from kproxy.netfilter import objects as nft
from kproxy.preflight.classes import Class, Space, Tracer, classes
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.nftables import NftablesTracer
from tests.model.builders import cidr, endpoint, service, slice_
from tests.preflight.nodes import preview_of, space_of

PODS = [endpoint("10.244.1.7", "node1"), endpoint("10.244.2.8", "node2"), endpoint("10.244.2.9", "node2")]
PORTS = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]
ITEMS: list[Object] = [
    cidr("kubernetes", "10.96.0.0/16", "fd00:96::/64"),
    service("web", type="NodePort", ports=PORTS, externalIPs=["198.51.100.1"]),
    slice_("web-4", PODS, "web"),
    service(
        "lb",
        type="LoadBalancer",
        clusterIP="10.96.0.2",
        clusterIPs=["10.96.0.2"],
        externalTrafficPolicy="Local",
        ports=[{**PORTS[0], "nodePort": 30082}],
        loadBalancerSourceRanges=["192.0.2.0/24"],
        ingress=[{"ip": "203.0.113.1"}],
    ),
    slice_("lb-4", PODS, "lb"),
    service("none", clusterIP="10.96.0.3", clusterIPs=["10.96.0.3"]),
]
PREVIEW, HOST = preview_of(ITEMS, detectLocalMode="ClusterCIDR")
SPACE = space_of(PREVIEW, Family.IPV4, HOST)
RULES, LAYOUT = PREVIEW.iptables(Family.IPV4), PREVIEW.nftables_layout(Family.IPV4)


def found(before: Tracer, after: Tracer, space: Space = SPACE) -> list[Class]:
    return [each for each in classes(space, before, after) if each.differs]


LINE = r"(?m)^-A {}.*\n"
IPTABLES = {
    "wider pod CIDR": (r"! -s 10\.244\.0\.0/16", "! -s 10.244.0.0/15"),
    "narrower pod CIDR": (r"! -s 10\.244\.0\.0/16", "! -s 10.244.0.0/17"),
    "missing hairpin": (LINE.format(r"KUBE-SEP-\S+ -s 10\.244\.1\.7/32"), ""),
    "hairpin of another endpoint": (r"(KUBE-SEP-\S+) -s 10\.244\.1\.7/32", r"\1 -s 10.244.1.6/32"),
    "hairpin of a network": (r"(KUBE-SEP-\S+) -s 10\.244\.1\.7/32", r"\1 -s 10.244.1.6/31"),
    "probability off by one": ("--probability 0.3333333333", "--probability 0.2500000000"),
    "missing probability": (r"-m statistic --mode random --probability 0\.50+ ", ""),
    "endpoint left out": (LINE.format(r"KUBE-SVC-\S+ .*-> 10\.244\.2\.9:"), ""),
    "wrong target port": (r"--to-destination 10\.244\.1\.7:\d+", "--to-destination 10.244.1.7:81"),
    "wrong target": (r"--to-destination 10\.244\.1\.7:", "--to-destination 10.244.1.8:"),
    "wrong port": (r"(KUBE-SERVICES -d 10\.96\.0\.1/32 .*)--dport 80", r"\1--dport 81"),
    "port as a range": (r"(KUBE-SERVICES -d 10\.96\.0\.1/32 .*)--dport 80", r"\1--dport 80:81"),
    "wrong protocol": (r"(KUBE-SERVICES -d 10\.96\.0\.1/32 )-p tcp(.*)-m tcp", r"\1-p udp\2-m udp"),
    "wrong cluster IP": (r"KUBE-SERVICES -d 10\.96\.0\.1/32", "KUBE-SERVICES -d 10.96.0.4/32"),
    "wrong mark": ("--set-xmark 0x4000/0x4000", "--set-xmark 0x8000/0x8000"),
    "inverted mark": (r"-m mark ! --mark 0x4000/0x4000 -j RETURN", "-m mark --mark 0x4000/0x4000 -j RETURN"),
    "no masquerading of external traffic": (LINE.format(r"KUBE-EXT-\S+ .*masquerade traffic for"), ""),
    "no masquerading of the node's own": (LINE.format(r"KUBE-EXT-\S+ .*masquerade LOCAL traffic"), ""),
    "pods not let to all endpoints": (LINE.format(r"KUBE-EXT-\S+ -s .*pod traffic"), ""),
    "policy Local forgotten": (r"-j KUBE-SVL-\S+", "-j ACCEPT"),
    "node ports unreachable": (LINE.format(r"KUBE-SERVICES .*-j KUBE-NODEPORTS"), ""),
    "wrong node port": (r"(nat|KUBE-NODEPORTS .*)--dport 30080", r"\1--dport 30081"),
    "addresses that are not the node's": ("-m addrtype --dst-type LOCAL", "-m addrtype ! --dst-type LOCAL"),
    "wider source range": (r"-s 192\.0\.2\.0/24", "-s 192.0.2.0/23"),
    "source range not enforced": (LINE.format("KUBE-PROXY-FIREWALL"), ""),
    "no refusal": (LINE.format("KUBE-SERVICES .*has no endpoints.*"), ""),
    "dropped, not refused": ("-j REJECT", "-j DROP"),
    "not from the node": (LINE.format("OUTPUT .*KUBE-SERVICES"), ""),
    "no guard of loopback": (LINE.format("KUBE-FIREWALL .*"), ""),
    "narrower guard of loopback": (r"! -s 127\.0\.0\.0/8 -d 127\.0\.0\.0/8", "! -s 127.0.0.0/8 -d 127.0.0.0/9"),
    "a foreign rule": (r"(?m)^COMMIT", "-A FORWARD -d 10.244.2.8/32 -p tcp -m tcp --dport 80 -j DROP\nCOMMIT"),
    "a rule of an interface": (r"(?m)^COMMIT", "-A FORWARD -i cbr0 -p icmp -j DROP\nCOMMIT"),
}


@pytest.mark.parametrize("fault", IPTABLES)
def test_fault_in_iptables_rules(fault: str) -> None:
    pattern, instead = IPTABLES[fault]
    text = re.sub(pattern, instead, RULES, count=1)
    assert text != RULES
    assert found(IptablesTracer(RULES, Family.IPV4, HOST), IptablesTracer(text, Family.IPV4, HOST), INTERFACES)


INTERFACES = Space(Family.IPV4, SPACE.addresses, ("eth0", "cbr0"))
Change = Callable[[Any], Any]


def _elements(name: str, change: Change) -> Callable[[Layout], Layout]:
    """Changes the first element of a set; to None, to leave it out."""

    def apply(layout: Layout) -> Layout:
        first, *others = layout.elements[name]
        changed = (change(first), *others)
        return replace(layout, elements={**layout.elements, name: tuple(e for e in changed if e is not None)})

    return apply


def _statements(kind: type, change: Change) -> Callable[[Layout], Layout]:
    """Changes all statements of a kind; to None, to leave them out."""

    def changed(rule: Iterable[Any]) -> tuple[Any, ...]:
        found = (change(s) if isinstance(s, kind) else s for s in rule)
        return tuple(s for s in found if s is not None)

    def apply(layout: Layout) -> Layout:
        chains = {n: replace(c, rules=tuple(map(changed, c.rules))) for n, c in layout.chains.items()}
        return replace(layout, chains=chains)

    return apply


NFTABLES = {
    "element missing": _elements(names.SERVICES, lambda e: None),
    "wrong port": _elements(names.SERVICES, lambda e: replace(e, key=(*e.key[:2], e.key[2] + 1))),
    "refused": _elements(names.SERVICES, lambda e: replace(e, data=nft.Verdict(names.REFUSE))),
    "wrong endpoint": _elements(names.ENDPOINTS, lambda e: replace(e, data=("10.244.9.9", 80))),
    "missing endpoint": _elements(names.ENDPOINTS, lambda e: None),
    "missing hairpin": _elements(names.HAIRPINS, lambda e: None),
    "missing cluster IP": _elements(names.CLUSTER_IPS, lambda e: None),
    "wider source range": _elements(names.SOURCES, lambda e: replace(e, key=(*e.key[:3], "192.0.2.0/23"))),
    "wider range of cluster IPs": _elements(names.SERVICE_CIDRS, lambda e: replace(e, key=("10.96.0.0/15",))),
    "wrong node port": _elements(names.NODE_PORTS, lambda e: replace(e, key=("tcp", 30081))),
    "wider pod CIDR": _statements(nft.AddressIn, lambda s: replace(s, cidr="10.244.0.0/15") if s.negate else s),
    "no masquerading": _statements(nft.MarkSet, lambda s: None),
    "other mark": _statements(nft.MarkSet, lambda s: nft.MarkSet(1 << 15)),
    "no choice": _statements(nft.DnatByMap, lambda s: replace(s, key=(*s.key[:-1], nft.Random(1)))),
    "choice off by one": _statements(
        nft.DnatByMap, lambda s: replace(s, key=(*s.key[:-1], nft.Random(s.key[-1].modulus + 1, s.key[-1].offset)))
    ),
    "refused, not dropped": _statements(nft.Drop, lambda s: nft.Reject()),
    "not only the node's": _statements(nft.FibLocal, lambda s: None),
}


@pytest.mark.parametrize("fault", NFTABLES)
def test_fault_in_an_nftables_table(fault: str) -> None:
    layout = NFTABLES[fault](LAYOUT)
    assert layout != LAYOUT
    assert found(NftablesTracer(LAYOUT, HOST), NftablesTracer(layout, HOST))


def test_without_a_fault_nothing_is_found() -> None:
    for tracer in (IptablesTracer(RULES, Family.IPV4, HOST), NftablesTracer(LAYOUT, HOST)):
        assert found(tracer, tracer) == []
