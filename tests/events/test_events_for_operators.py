"""Troubles become Kubernetes Events, through the API stand-in: what they are about, and never a flood of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kproxy.containment import Containment
from kproxy.errors import InvalidObject
from kproxy.events.recorder import ApiSink, EventRecorder
from kproxy.events.series import BURST, WINDOW
from kproxy.lab.proxies import wait_for
from kproxy.model.events import Invalid
from kproxy.model.plans import Family
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from kproxy.sync.reporter import MOST_TOLD
from tests.fakes.apiserver import ApiServer
from tests.fakes.clocks import ManualClock
from tests.model.builders import changed, endpoint, service, slice_
from tests.status.nodes import OperatedNode, shop

PORTS = [{"name": "http", "port": 80, "nodePort": 30080}]


class Told:
    """A node that tells an API server. events: (reason, kind, namespace, name) of those that it has."""

    def __init__(self, node: OperatedNode, server: ApiServer, clock: ManualClock, outcomes: Counter[str]) -> None:
        self.node, self.server, self.clock, self.outcomes = node, server, clock, outcomes

    def events(self) -> list[dict[str, Any]]:
        return self.server.events

    def about(self) -> list[tuple[str, str, str, str]]:
        found = [(e["reason"], e["regarding"]) for e in self.events()]
        return sorted((reason, of["kind"], of.get("namespace", ""), of["name"]) for reason, of in found)

    def failures(self) -> int:
        """How many of the last syncs failed, after another turn once the wait for it is over."""
        self.node.clock.advance(1)
        self.node.step()
        return sum(bool(sync.error) for sync in self.node.store.status(self.node.health).families[0].syncs)

    def settled(self, number: int) -> None:
        """Wait until so many notices were posted, dropped or given up."""
        assert wait_for(lambda: self.outcomes.total() >= number, 60), self.outcomes


@pytest.fixture
def told() -> Iterator[Told]:
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer())
        client = ApiClient(ClientSettings(master=server.url))
        stack.callback(client.close)
        clock, outcomes = ManualClock(), Counter[str]()
        count = lambda outcome: outcomes.update([outcome])  # noqa: E731
        recorder = EventRecorder(ApiSink(client), "node1", clock, Containment(clock), count, 4096)
        recorder.start()
        stack.callback(recorder.stop)
        node = stack.enter_context(OperatedNode(recorder.record))
        yield Told(node, server, clock, outcomes)


def test_services_that_want_one_node_port_are_each_told(told: Told) -> None:
    told.node.start(*(service(n, "shop", clusterIP=f"10.96.0.{i}", ports=PORTS) for i, n in enumerate(("a", "b"))))
    told.settled(2)
    assert told.about() == [("Conflict", "Service", "shop", "a"), ("Conflict", "Service", "shop", "b")]
    notes = {event["note"] for event in told.events()}
    assert notes == {"node port 30080/TCP is asked for by shop/a:http, shop/b:http; only one of them gets it"}
    assert {event["type"] for event in told.events()} == {"Warning"}


def test_a_service_that_the_kernel_refuses_and_one_that_is_invalid(told: Told) -> None:
    told.node.tables[Family.IPV4].refuse = lambda table, chain, rule: "bad/refused" in rule
    told.node.start(
        service("refused", "bad", clusterIP="10.96.9.3"),
        slice_("refused-1", [endpoint("10.250.1.1")], "refused", namespace="bad"),
        *shop(3),
    )
    told.node.step(Invalid(InvalidObject("Service", "shop/odd", "spec.ports[0].port", "must be 1 to 65535, is 0")))
    told.settled(2)
    assert told.about() == [("NotProgrammed", "Service", "bad", "refused"), ("Unusable", "Service", "shop", "odd")]
    assert any("spec.ports[0].port: must be 1 to 65535" in event["note"] for event in told.events())


def test_a_node_that_fails_for_long_says_it_once_and_then_how_often(told: Told) -> None:
    told.node.start(*shop(1))
    told.node.tables[Family.IPV4].fail_at = set(range(10_000))
    told.node.step(changed(service("web-0", "shop", clusterIP="10.96.0.0", externalIPs=["192.0.2.1"])))
    told.clock.advance(10)
    assert wait_for(lambda: told.failures() >= 4, 60, 0.05)
    told.settled(2)
    assert told.about() == [("SyncFailed", "Node", "", "node1")]
    note = told.events()[0]["note"]
    assert note.startswith("IPv4 rules could not be programmed: iptables-nft-restore: exit status 4: ")
    told.clock.advance(WINDOW)
    told.node.step(Invalid(InvalidObject("Service", "shop/odd", "", "bad")))  # the next notice brings what is due
    told.settled(4)
    assert sorted(told.about()) == [("SyncFailed", "Node", "", "node1"), ("Unusable", "Service", "shop", "odd")]
    (repeat,) = [event for event in told.events() if "series" in event]
    assert repeat["series"]["count"] >= 4
    assert (told.server.served["create", "Event"], told.server.served["patch", "Event"]) == (2, 2)


def test_a_thousand_bad_services_are_told_of_in_a_few_events(told: Told) -> None:
    told.node.start()
    problems = [Invalid(InvalidObject("Service", f"shop/bad-{i}", "", "bad")) for i in range(1000)]
    rivals = [service(f"rival-{i}", "shop", clusterIP=f"10.97.{i >> 8}.{i & 255}", ports=PORTS) for i in range(300)]
    told.node.step(*problems, *(changed(item) for item in rivals))
    told.settled(1000 + MOST_TOLD)
    found = Counter(event["reason"] for event in told.events())
    assert found == {"Unusable": BURST, "Conflict": min(BURST, MOST_TOLD)}
    assert told.outcomes["dropped"] == 1000 - BURST
