"""The events that lead a cluster from a case's first objects to its final ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from kproxy.model.events import Changed, Deleted, Event, Listed
from kproxy.model.objects import Kind


def listed(case: Any, items: Sequence[dict[str, Any]]) -> list[Event]:
    """A complete list of every kind."""
    kinds = case.kinds(items)
    return [Listed(kind, tuple(kinds.get(kind, ()))) for kind in Kind]


def changes(case: Any, items: Sequence[dict[str, Any]]) -> list[Event]:
    return [Changed(kind, item) for kind, found in case.kinds(items).items() for item in found]


def deletions(items: Sequence[dict[str, Any]]) -> list[Event]:
    return [Deleted(Kind(i["kind"]), i["metadata"].get("namespace", ""), i["metadata"]["name"]) for i in items]


def unruly_events(case: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> list[list[Event]]:
    """The way to the final state in any order: with objects that come and go, repeats, lists in between."""
    final, older = case.raw["final"], case.raw["objects"]
    events: list[Event] = [*changes(case, older), *deletions(older)]
    events = draw(st.permutations(events))
    last = draw(st.permutations(changes(case, final)))
    repeats = draw(st.lists(st.sampled_from(last), max_size=3)) if last else []
    gone = [item for item in older if _name(item) not in {_name(kept) for kept in final}]
    batches = [events, deletions(gone), [*last, *repeats]]
    if draw(st.booleans()):
        batches.append(listed(case, final))
    return [
        batch[at : at + size]
        for batch in batches
        for size in [draw(st.integers(1, 9))]
        for at in range(0, len(batch), size)
    ]


def _name(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
