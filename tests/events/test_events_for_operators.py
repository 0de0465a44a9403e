"""Kubernetes Events of a node in trouble, at the API stand-in: their objects, and their limited number."""

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


class Reporting:
    """A node that posts Events to an API server."""

    def __init__(self, node: OperatedNode, server: ApiServer, clock: ManualClock, outcomes: Counter[str]) -> None:
        self.node, self.server, self.clock, self.outcomes = node, server, clock, outcomes

    def events(self) -> list[dict[str, Any]]:
        return self.server.events

    def about(self) -> list[tuple[str, str, str, str]]:
        found = [(e["reason"], e["regarding"]) for e in self.events()]
        return sorted((reason, of["kind"], of.get("namespace", ""), of["name"]) for reason, of in found)

    def failures(self) -> int:
        """Return how many of the last syncs failed, after another one."""
        self.node.clock.advance(1)
        self.node.step()
        return sum(bool(sync.error) for sync in self.node.store.status(self.node.health).families[0].syncs)

    def settled(self, number: int) -> None:
        """Wait until so many notices were posted, dropped or have failed."""
        assert wait_for(lambda: self.outcomes.total() >= number, 60), self.outcomes


@pytest.fixture
def reporting() -> Iterator[Reporting]:
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer())
        for name in ("shop", "bad"):
            server.apply({"kind": "Namespace", "metadata": {"name": name}})
        client = ApiClient(ClientSettings(master=server.url))
        stack.callback(client.close)
        clock, outcomes = ManualClock(), Counter[str]()
        count = lambda outcome: outcomes.update([outcome])  # noqa: E731
        recorder = EventRecorder(ApiSink(client), "node1", clock, Containment(clock), count, 4096)
        recorder.start()
        stack.callback(recorder.stop)
        node = stack.enter_context(OperatedNode(recorder.record))
        yield Reporting(node, server, clock, outcomes)


def test_each_service_with_the_same_node_port_has_an_event(reporting: Reporting) -> None:
    reporting.node.start(*(service(n, "shop", clusterIP=f"10.96.0.{i}", ports=PORTS) for i, n in enumerate(("a", "b"))))
    reporting.settled(2)
    assert reporting.about() == [("Conflict", "Service", "shop", "a"), ("Conflict", "Service", "shop", "b")]
    notes = {event["note"] for event in reporting.events()}
    assert notes == {"node port 30080/TCP is asked for by shop/a:http, shop/b:http; only one of them gets it"}
    assert {event["type"] for event in reporting.events()} == {"Warning"}


def test_a_service_that_the_kernel_refuses_and_one_that_is_invalid(reporting: Reporting) -> None:
    reporting.node.tables[Family.IPV4].refuse = lambda table, chain, rule: "bad/refused" in rule
    reporting.node.start(
        service("refused", "bad", clusterIP="10.96.9.3"),
        slice_("refused-1", [endpoint("10.250.1.1")], "refused", namespace="bad"),
        *shop(3),
    )
    reporting.node.step(Invalid(InvalidObject("Service", "shop/odd", "spec.ports[0].port", "must be 1 to 65535, is 0")))
    reporting.settled(2)
    assert reporting.about() == [("NotProgrammed", "Service", "bad", "refused"), ("Unusable", "Service", "shop", "odd")]
    assert any("spec.ports[0].port: must be 1 to 65535" in event["note"] for event in reporting.events())


def test_repeated_failures_of_a_node_are_counted_on_one_event(reporting: Reporting) -> None:
    reporting.node.start(*shop(1))
    reporting.node.tables[Family.IPV4].fail_at = set(range(10_000))
    reporting.node.step(changed(service("web-0", "shop", clusterIP="10.96.0.0", externalIPs=["192.0.2.1"])))
    reporting.clock.advance(10)
    assert wait_for(lambda: reporting.failures() >= 4, 60, 0.05)
    reporting.settled(2)
    assert reporting.about() == [("SyncFailed", "Node", "", "node1")]
    note = reporting.events()[0]["note"]
    assert note.startswith("IPv4 rules could not be programmed: iptables-nft-restore: exit status 4: ")
    reporting.clock.advance(WINDOW)
    reporting.node.step(Invalid(InvalidObject("Service", "shop/odd", "", "bad")))  # the next notice brings what is due
    reporting.settled(4)
    assert sorted(reporting.about()) == [("SyncFailed", "Node", "", "node1"), ("Unusable", "Service", "shop", "odd")]
    (repeat,) = [event for event in reporting.events() if "series" in event]
    assert repeat["series"]["count"] >= 4
    assert (reporting.server.served["create", "Event"], reporting.server.served["patch", "Event"]) == (2, 2)


def test_a_thousand_invalid_services_cause_a_few_events(reporting: Reporting) -> None:
    reporting.node.start()
    problems = [Invalid(InvalidObject("Service", f"shop/bad-{i}", "", "bad")) for i in range(1000)]
    rivals = [service(f"rival-{i}", "shop", clusterIP=f"10.97.{i >> 8}.{i & 255}", ports=PORTS) for i in range(300)]
    reporting.node.step(*problems, *(changed(item) for item in rivals))
    reporting.settled(1000 + MOST_TOLD)
    found = Counter(event["reason"] for event in reporting.events())
    assert found == {"Unusable": BURST, "Conflict": min(BURST, MOST_TOLD)}
    assert reporting.outcomes["dropped"] == 1000 - BURST
