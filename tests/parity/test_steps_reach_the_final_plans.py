"""Objects and then steps, taken in one event at a time, end with the plans of the final state."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from kproxy.model.events import Changed, Deleted, Event, Listed
from kproxy.model.node_info import merged
from kproxy.model.objects import Kind
from kproxy.model.plan_store import FamilyPlans
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.preview import Preview, load
from tests.fakes.plans import BothFamilies

KINDS = (Kind.NODE, Kind.SERVICE, Kind.ENDPOINT_SLICE)


class Incremental:
    """A state and its book, fed with events."""

    def __init__(self, case: Any) -> None:
        self.case = case
        self.state, self.plans = ClusterState(case.raw["node"]), BothFamilies()

    def lists(self, items: Iterable[dict[str, Any]]) -> list[Event]:
        found = self.case.kinds(items)
        return [Listed(kind, tuple(found.get(kind, ()))) for kind in KINDS]

    def changes(self, items: Iterable[dict[str, Any]]) -> list[Event]:
        return [Changed(kind, item) for kind, found in self.case.kinds(items).items() for item in found]

    def take(self, *events: Event) -> None:
        for event in events:
            assert self.state.apply(event) == []

    def plan(self) -> None:
        self.plans.update(self.state, merged(self.state.node_name, self.state.node, self.case.host))


def deletions(items: Iterable[dict[str, Any]]) -> list[Event]:
    named = ((Kind(i["kind"]), i["metadata"].get("namespace") or "default", i["metadata"]["name"]) for i in items)
    return [Deleted(*name) for name in named]


def final(case: Any) -> dict[Family, FamilyPlans]:
    """The plans of the final state, made at once."""
    state, problems = load(case.raw["node"], case.kinds(case.raw["final"]))
    assert not problems
    return Preview(state, case.config, case.host).families


def test_one_step_after_the_other(case: Any) -> None:
    node = Incremental(case)
    node.take(*node.lists(case.raw["objects"]))
    node.plan()
    for step in case.raw["steps"]:
        node.take(*node.changes(step["apply"]), *deletions(step["delete"]))
        node.plan()
    assert node.plans.families == final(case)


def test_events_in_any_order_with_repeats_and_a_relist(case: Any) -> None:
    """Between objects the order of events has no meaning, and a relist at the end says nothing new."""
    rng = random.Random(case.raw["id"])
    node = Incremental(case)
    node.take(*node.lists([]))
    starts = node.changes(case.raw["objects"])
    for event in rng.sample(starts, len(starts)):
        node.take(event)
        if rng.random() < 0.3:
            node.plan()
    for step in case.raw["steps"]:
        events = [*node.changes(step["apply"]), *deletions(step["delete"])]
        for event in rng.sample(events, len(events)):
            node.take(event, event)
            if rng.random() < 0.3:
                node.plan()
    node.plan()
    assert node.plans.families == final(case)
    node.take(*node.lists(case.raw["final"]))
    dirty = node.state.take_dirty()
    assert (dirty.names, dirty.all) == (frozenset(), False)
