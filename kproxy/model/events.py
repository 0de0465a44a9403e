"""What a source tells the model: these values, in the order in which the source learnt of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kproxy.errors import InvalidObject
from kproxy.model.objects import Kind, Object


@dataclass(frozen=True, slots=True)
class Found:
    """Objects of a list that is still being read: each is as if it had changed. Should reading fail, no Listed follows.

    So a large list is taken in while the server still prepares the rest of it.
    """

    kind: Kind
    objects: tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """The complete list of one kind, at the start and after every relist. What is not in it no longer exists.

    unreadable: "namespace/name" of objects that exist but could not be decoded; what the model knows of them stays.
    found: "namespace/name" of those objects of the list that a Found told of already.
    """

    kind: Kind
    objects: tuple[Object, ...]
    unreadable: frozenset[str] = frozenset()
    found: frozenset[str] = frozenset()


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


Event = Found | Listed | Changed | Deleted | Invalid


class Sink(Protocol):
    """Where a source puts its events. Called from any thread; never blocks for long."""

    def put(self, event: Event) -> None: ...
