"""The events that a source reports to the model, in the order in which the source learnt of them."""

from __future__ import annotations

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


Event = ListPage | Listed | Changed | Deleted | Invalid


class Sink(Protocol):
    """Receives the events of a source. Called from any thread; must not block for long."""

    def put(self, event: Event) -> None: ...
