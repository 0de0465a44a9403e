"""Every call of a kernel, of conntrack and of observers raises, once and then for ever, over kernels in memory.

A second node, which nobody disturbs, says what the kernels should hold in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kproxy.config.fields import ProxyMode
from kproxy.conntrack.stale_flows import Flow
from kproxy.errors import InvalidObject
from kproxy.model import objects
from kproxy.model.events import Event, Invalid
from kproxy.model.objects import Kind
from kproxy.model.plans import Family, Protocol
from tests.model.builders import DUAL, changed, deleted, endpoint, listed, service, slice_
from tests.model.builders import node as a_node
from tests.saboteur.fake_nodes import FakeNode
from tests.saboteur.points import IPTABLES, IPVS, NFTABLES, USERSPACE, Unforeseen

V4, V6 = Family.IPV4, Family.IPV6
TABLES = {("tables_v6", "save"), ("tables_v6", "restore")}
CALLS = {
    IPTABLES: TABLES,
    USERSPACE: TABLES | {("forwarder", "update"), ("forwarder", "alive")},
    NFTABLES: {("nftables", "apply"), ("nftables", "generation"), ("nftables", "listing"), ("diary", "drifted")},
    IPVS: TABLES
    | {("ipvs", "servers"), ("ipvs", "reals"), ("ipvs", "apply")}
    | {("sets", "held"), ("sets", "apply")}
    | {("device", "ensure"), ("device", "held"), ("device", "change")},
}
COMMON = {("conntrack", "flows"), ("conntrack", "delete"), ("node", "current"), ("node", "external_ips")} | {
    ("quiet", "update_health_checks"),
    ("quiet", "conntrack"),
    ("quiet", "synced"),
    *(("diary", call) for call in ("applied", "node", "queued", "planned", "starting", "finished")),
}
HARMLESS = {part for part, _ in COMMON} - {"node"}
"""Parts without which both families are programmed all the same."""
DNS = [{"name": "dns", "port": 53, "protocol": "UDP"}]
SERVICES = [
    service("web", clusterIPs=DUAL),
    service("dns", clusterIPs=["10.96.0.10", "fd00:96::10"], ports=DNS),
]


def served_by(pod: str) -> objects.EndpointSlice:
    return slice_("dns-4", [endpoint(pod)], "dns", ports=DNS)


FIRST = [
    listed(Kind.SERVICE, *SERVICES),
    listed(Kind.ENDPOINT_SLICE, slice_("web-4", [endpoint("10.244.0.1")]), served_by("10.244.0.2")),
]
BAD = InvalidObject("Service", "default/bad", "spec", "is a string")
STEPS: list[list[Event]] = [
    [
        changed(slice_("web-4", [endpoint("10.244.0.1"), endpoint("10.244.0.3")])),
        changed(served_by("10.244.0.4")),
        changed(service("api", clusterIPs=["10.96.0.20", "fd00:96::20"])),
        changed(a_node(zone="zone-b")),
        Invalid(BAD),
    ],
    [
        deleted(SERVICES[0]),
        changed(service("late", clusterIPs=["10.96.0.30", "fd00:96::30"])),
        changed(served_by("10.244.0.5")),
        changed(a_node(zone="zone-c")),
        Invalid(BAD),
    ],
    [changed(service("last", clusterIPs=["10.96.0.40", "fd00:96::40"])), changed(a_node(zone="zone-d")), Invalid(BAD)],
]
"""What happens while the call fails once, while it fails for ever, and after that."""
CASES = [(mode, part, call) for mode, calls in CALLS.items() for part, call in sorted(calls | COMMON)]


class Broken:
    """Makes one call of an object raise. hits: how often it did."""

    def __init__(self, owner: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hits, self._left, real = 0, 0, getattr(owner, call)

        def sabotaged(*args: Any, **kwargs: Any) -> Any:
            if self._left > 0:
                self._left -= 1
                self.hits += 1
                raise Unforeseen(f"sabotage of {call}")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, call, sabotaged)

    @contextmanager
    def for_calls(self, number: int) -> Iterator[None]:
        """Raise in the next `number` calls, as long as the block lasts."""
        self._left = number
        try:
            yield
        finally:
            self._left = 0


def started(mode: ProxyMode) -> FakeNode:
    node = FakeNode(mode)
    node.run(1, *FIRST)
    return node


def disturb(node: FakeNode, step: int) -> None:
    """What other programs do: a flow to an endpoint that is about to go, rules flushed, and so a full check."""
    node.conntrack.add(Flow(Protocol.UDP, "10.244.9.9", 5000 + step, "10.96.0.10", 53, "10.244.0.99", 53))
    if node.mode is NFTABLES:
        node.nftables.flush()
        return
    node.tables_v6.flush("nat")
    if node.mode is IPVS:
        node.ipvs.clear(V6)
        node.device.flush(V6)
    for proxier in node.proxiers.values():
        proxier.change_periods(0.0, 3600.0)


def proceed(node: FakeNode, step: int, seconds: float) -> None:
    disturb(node, step)
    node.run(seconds, *STEPS[step])


def holds(node: FakeNode) -> list[list[Any]]:
    return [node.holds(family) for family in Family]


@pytest.mark.parametrize(("mode", "part", "call"), CASES, ids=[f"{m.value}-{p}.{c}" for m, p, c in CASES])
def test_a_call_that_fails_costs_what_it_is_about(
    mode: ProxyMode, part: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, twin = started(mode), started(mode)
    assert holds(node) == holds(twin)
    broken = Broken(getattr(node, part), call, monkeypatch)

    with broken.for_calls(1):
        proceed(node, 0, 10)
        assert broken.hits == 1, "nobody makes this call"
    proceed(twin, 0, 10)
    assert holds(node) == holds(twin)

    with broken.for_calls(1_000_000):
        proceed(node, 1, 20)
    proceed(twin, 1, 20)
    assert broken.hits > 1
    if part in HARMLESS or part == "tables_v6":
        assert node.holds(V4) == twin.holds(V4)
    if part in HARMLESS:
        assert node.holds(V6) == twin.holds(V6)

    proceed(node, 2, 70)
    proceed(twin, 2, 70)
    assert holds(node) == holds(twin)
    assert node.containment.failing() == []


FIRST_CALLS = [
    (IPTABLES, "tables_v6", "restore"),
    (USERSPACE, "forwarder", "update"),
    (NFTABLES, "nftables", "apply"),
    (IPVS, "tables_v6", "restore"),
    (IPVS, "sets", "create"),
]


@pytest.mark.parametrize(("mode", "part", "call"), FIRST_CALLS)
def test_the_first_sync_fails_for_long_and_then_works(
    mode: ProxyMode, part: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, twin = FakeNode(mode), started(mode)
    with Broken(getattr(node, part), call, monkeypatch).for_calls(1_000_000):
        node.run(60, *FIRST)
        assert node.containment.failing() != []
    node.run(60)
    assert holds(node) == holds(twin)
