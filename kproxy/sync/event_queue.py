"""Passes what sources learn of the cluster to the thread that follows it.

The queue keeps the newest state of each object, as client-go's DeltaFIFO does: an event takes the place of an earlier
one about the same object. So however long nobody takes events, the queue holds no more than the cluster has objects.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable

from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, ListPage, Resolved, full_name
from kproxy.model.objects import Kind, Object

PAGES = 4
"""Pages of lists that may wait. More would take memory and gain no time."""
PATIENCE = 1.0
"""Seconds that a source waits for room; then its page is kept all the same, as planning may take long."""


class EventQueue:
    """A Sink for sources, and the place where the daemon learns that it should end.

    `take` waits, and so does `put` where pages come faster than they are taken; everything else returns at once.
    """

    def __init__(self) -> None:
        lock = threading.RLock()  # reentrant: a signal handler may run while its own thread holds it
        self._condition = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._events: dict[Hashable, Event] = {}
        self._pages = 0
        self._woken = False
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """Add an event. Events that are taken are in the order in which each object's newest one came."""
        with self._condition:
            match event:
                case ListPage(kind, objects):
                    self._room.wait_for(lambda: self._pages < PAGES or self._stopped, PATIENCE)
                    self._pages += 1
                    self._put_objects(kind, objects)
                case Listed(kind, objects, unreadable, delivered):
                    # Each object by itself, so that one that cannot be used harms no other.
                    self._put_objects(kind, objects)
                    names = delivered.union(full_name(item.metadata.namespace, item.metadata.name) for item in objects)
                    self._put(kind, Listed(kind, (), unreadable, names))
                case Changed(kind, item):
                    self._put_objects(kind, (item,))
                case Deleted(kind, namespace, name):
                    at = full_name(namespace, name)
                    self._events.pop((kind.value, at, Invalid), None)
                    self._put((kind.value, at), event)
                case Invalid(error):
                    self._put(_key_of_problem(error.kind, error.name), event)
                case Resolved(kind_name, name):
                    self._put(_key_of_problem(kind_name, name), event)
            self._condition.notify()

    def wake(self) -> None:
        """Make `take` return, with or without events."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def stop(self) -> None:
        """Ask the daemon to end. Safe in a signal handler: it only sets a flag."""
        self._stopped = True

    def take(self, timeout: float) -> list[Event]:
        """Remove and return all events; waits at most `timeout` seconds for the first."""
        with self._condition:
            if not self._events and not self._woken and timeout > 0:
                self._condition.wait(timeout)
            events, self._events, self._woken = self._events, {}, False
            self._pages = 0
            self._room.notify_all()
            return list(events.values())

    def _put_objects(self, kind: Kind, objects: Iterable[Object]) -> None:
        for item in objects:
            at = full_name(item.metadata.namespace, item.metadata.name)
            self._events.pop((kind.value, at, Invalid), None)
            self._put((kind.value, at), Changed(kind, item))

    def _put(self, key: Hashable, event: Event) -> None:
        # At the end, not in the place of the earlier one: a Listed between the two must not undo the newer state.
        self._events.pop(key, None)
        self._events[key] = event


def _key_of_problem(kind: str, name: str) -> Hashable:
    return kind, name if "/" in name else full_name(None, name), Invalid
