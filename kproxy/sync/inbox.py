"""Where other threads leave what the sync thread should know: events of the cluster, and that it should look up."""

from __future__ import annotations

import threading

from kproxy.model.events import Event

__all__ = ["Inbox"]


class Inbox:
    """A Sink for sources. `take` waits; everything else returns at once."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._events: list[Event] = []
        self._woken = False
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def put(self, event: Event) -> None:
        with self._condition:
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
            return events
