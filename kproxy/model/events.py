"""What a source tells the model: these four values, in the order in which the source learnt of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kproxy.errors import InvalidObject
from kproxy.model.objects import Kind, Object

__all__ = ["Changed", "Deleted", "Event", "Invalid", "Listed", "Sink"]


@dataclass(frozen=True, slots=True)
class Listed:
    """The complete list of one kind, at the start and after every relist. What is not in it no longer exists.

    unreadable: "namespace/name" of objects that exist but could not be decoded; what the model knows of them stays.
    """

    kind: Kind
    objects: tuple[Object, ...]
    unreadable: frozenset[str] = frozenset()


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


Event = Listed | Changed | Deleted | Invalid


class Sink(Protocol):
    """Where a source puts its events. Called from any thread; never blocks for long."""

    def put(self, event: Event) -> None: ...
