"""Where other threads leave what the sync thread should know: events of the cluster, and that it should look up."""

from __future__ import annotations

import threading

from kproxy.model.events import Event, Found

PAGES = 4
"""So many pages of lists may wait to be taken in. More would take memory and gain no time."""
PATIENCE = 1.0
"""Seconds that a source waits for room; then its page is kept all the same, as the sync thread may be long at work."""


class EventQueue:
    """A Sink for sources. `take` waits, and so does `put` where pages come faster than they are taken in; everything
    else returns at once."""

    def __init__(self) -> None:
        lock = threading.RLock()
        self._condition = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._events: list[Event] = []
        self._pages = 0
        self._woken = False
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def put(self, event: Event) -> None:
        with self._condition:
            if isinstance(event, Found):
                self._room.wait_for(lambda: self._pages < PAGES or self._stopped, PATIENCE)
                self._pages += 1
            self._events.append(event)
            self._condition.notify()

    def wake(self) -> None:
        """Make `take` return, with or without events."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def stop(self) -> None:
        """Ask the sync thread to end. Safe in a signal handler's thread of control: it only sets a flag there."""
        self._stopped = True

    def take(self, timeout: float) -> list[Event]:
        """The events since the last call, in order; waits at most `timeout` seconds for the first."""
        with self._condition:
            if not self._events and not self._woken and timeout > 0:
                self._condition.wait(timeout)
            events, self._events, self._woken = self._events, [], False
            self._pages = 0
            self._room.notify_all()
            return events
