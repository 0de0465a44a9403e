"""The events that a source reports to the model, in the order in which the source learnt of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kproxy.errors import InvalidObject
from kproxy.model.objects import Kind, Object


@dataclass(frozen=True, slots=True)
class ListPage:
    """Objects of a list that is still being read: each is as if it had changed. If reading fails, no Listed follows.

    So a large list is taken in while the server still prepares the rest of it.
    """

    kind: Kind
    objects: tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """The end of a complete list of one kind, at the start and after every relist. What is not in the list is gone.

    objects: those of the list that no ListPage delivered. delivered: "namespace/name" of those that one did.
    unreadable: "namespace/name" of objects that exist but could not be decoded; what the model knows of them stays.
    """

    kind: Kind
    objects: tuple[Object, ...]
    unreadable: frozenset[str] = frozenset()
    delivered: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Changed:
    """One object was added or modified."""

    kind: Kind
    object: Object


@dataclass(frozen=True, slots=True)
class Deleted:
    """One object is gone."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """One object could not be decoded; the rest of its kind is unharmed."""

    error: InvalidObject


@dataclass(frozen=True, slots=True)
class Resolved:
    """What an Invalid said of this object (kind and name as there) holds no more, though the object did not change."""

    kind: str
    name: str


Event = ListPage | Listed | Changed | Deleted | Invalid | Resolved


class Superseded:
    """The objects of which some events bring news, so that what was wrong with them before holds no more."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._renewed: set[tuple[str, str]] = set()
        self._gone: set[tuple[str, str]] = set()
        self._lists: dict[str, frozenset[str]] = {}
        for event in events:
            match event:
                case ListPage(kind, items):
                    self._renewed.update((kind, full_name(o.metadata.namespace, o.metadata.name)) for o in items)
                case Listed(kind, items):
                    self._renewed.update((kind, full_name(o.metadata.namespace, o.metadata.name)) for o in items)
                    self._lists[kind] = event.delivered | event.unreadable
                case Changed(kind, item):
                    self._renewed.add((kind, full_name(item.metadata.namespace, item.metadata.name)))
                case Deleted(kind, namespace, name):
                    self._gone.add((kind, full_name(namespace, name)))
                case Resolved(kind, name):
                    self._renewed.add((kind, _full(name)))
                case Invalid(error) if error.kind in list(Kind):  # a file may have several, one an event
                    self._renewed.add((error.kind, _full(error.name)))

    def __contains__(self, problem: InvalidObject) -> bool:
        """Whether what PROBLEM says was said before these events."""
        return (problem.kind, _full(problem.name)) in self._renewed or self.gone(problem)

    def gone(self, problem: InvalidObject) -> bool:
        """Whether the object that PROBLEM is about exists no more."""
        kind, name = at = problem.kind, _full(problem.name)
        unlisted = kind in self._lists and name not in self._lists[kind]
        return at in self._gone or (unlisted and at not in self._renewed)


def full_name(namespace: str | None, name: str) -> str:
    """The name of an object in events, "namespace/name"; kinds without a namespace have "default"."""
    return f"{namespace or 'default'}/{name}"


def _full(name: str) -> str:
    return name if "/" in name else full_name(None, name)


class Sink(Protocol):
    """Receives the events of a source. Called from any thread; must not block for long."""

    def put(self, event: Event) -> None: ...
