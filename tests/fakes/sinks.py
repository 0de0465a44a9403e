"""A sink that keeps all events and the objects that they make, for tests to inspect and to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from kproxy.errors import InvalidObject
from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, ListPage
from kproxy.model.objects import Kind, Object


class Mirror:
    """The objects that exist according to the events so far. Used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[Event] = []
        self.problems: list[InvalidObject] = []
        self._objects: dict[Kind, dict[str, Object]] = {kind: {} for kind in Kind}
        self._listed: set[Kind] = set()

    def put(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._take(event)
            self._changed.notify_all()

    def wait(self, condition: Callable[[Mirror], bool], seconds: float = 15.0) -> bool:
        """Wait until `condition` holds, at most `seconds`; whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), seconds)

    def objects(self, kind: Kind) -> Mapping[str, Object]:
        """The objects of `kind` by "namespace/name"; kinds without a namespace have "default"."""
        return self._objects[kind]

    def versions(self, kind: Kind) -> dict[str, str]:
        """The resource version of each object."""
        return {key: item.metadata.resource_version or "" for key, item in self._objects[kind].items()}

    def lists(self, kind: Kind) -> int:
        """The number of lists of `kind` so far."""
        return sum(isinstance(event, Listed) and event.kind is kind for event in self.events)

    @property
    def complete(self) -> bool:
        """Whether every kind was listed."""
        return self._listed == set(Kind)

    def _take(self, event: Event) -> None:
        match event:
            case ListPage(kind, items):
                self._objects[kind].update((_key(item), item) for item in items)
            case Listed(kind, items, unreadable, delivered):
                before = self._objects[kind]
                kept = {key: item for key, item in before.items() if key in unreadable or key in delivered}
                self._objects[kind] = kept | {_key(item): item for item in items}
                self._listed.add(kind)
            case Changed(kind, item):
                self._objects[kind][_key(item)] = item
            case Deleted(kind, namespace, name):
                self._objects[kind].pop(f"{namespace or 'default'}/{name}", None)
            case Invalid(error):
                self.problems.append(error)


def _key(item: Object) -> str:
    return f"{item.metadata.namespace or 'default'}/{item.metadata.name}"
