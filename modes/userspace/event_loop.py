"""A single-threaded event loop: waits for file descriptors and timers, and calls their handlers.

A handler that raises an exception costs its own connection: it is aborted, and the loop goes on. Events may be
edge-triggered, so handlers remember what they may read and write. A descriptor is closed at the end of the round, so
that no event of the same round reaches the next owner of its number.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Protocol

from kproxy import logs

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
"""After one of these a short read does not mean that nothing is left: an end, an error or a mark may follow."""

EVENTS_AT_ONCE = 512
LOG_SECONDS = 60.0

log = logs.get("userspace")


class Abortable(Protocol):
    def abort(self) -> None:
        """Release everything, after an unexpected exception. What else follows from it must not raise."""


class Handler(Abortable, Protocol):
    def ready(self, fd: int, events: int) -> None:
        """FD is ready for `events`, a mask of epoll's."""


class Waiter(Abortable, Protocol):
    def timed_out(self) -> None:
        """Called when the time is over and the waiter has been taken out of the queue."""


class EventLoop:
    """One thread's loop. now: start of this round, in seconds, monotonic. failures: handlers that raised."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.failures = 0
        self.handlers: dict[int, Handler] = {}
        self._epoll = select.epoll()
        self.register: Callable[[int, int], None] = self._epoll.register
        self.modify: Callable[[int, int], None] = self._epoll.modify
        self._timers: list[tuple[float, int, Callable[[], None], Abortable]] = []
        self._order = count()
        self._queues: dict[float, dict[Waiter, float]] = {}
        self._closing: list[int] = []
        self._postponed: list[tuple[Callable[[], None], Abortable]] = []
        self._logged: dict[str, float] = {}
        self._running = True

    def add(self, fd: int, handler: Handler, events: int) -> None:
        """Call `handler` when FD is ready. Raises OSError when no more descriptors can be watched."""
        self.register(fd, events)
        self.handlers[fd] = handler

    def close_later(self, fd: int) -> None:
        """Close FD at the end of this round; its handler is not called any more."""
        self.handlers.pop(fd, None)
        self._closing.append(fd)

    def close(self, fd: int) -> None:
        """Close FD now, for what must be free when the caller goes on. Its next owner may get a spurious event."""
        self.handlers.pop(fd, None)
        os.close(fd)

    def at(self, when: float, call: Callable[[], None], owner: Abortable) -> None:
        """Call `call` at the time `when` or soon after. It cannot be cancelled: `call` has to check whether it still
        applies.

        owner: aborted should `call` raise an exception.
        """
        heapq.heappush(self._timers, (when, next(self._order), call, owner))

    def timeout_queue(self, seconds: float) -> dict[Waiter, float]:
        """The queue of those who wait `seconds`, with the time at which each began. Add at the end; take out any.

        A wait that ends early costs next to nothing.
        """
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = {}
            self.at(self.now + seconds, partial(self._expire, seconds, queue), _NOBODY)
        return queue

    def postpone(self, call: Callable[[], None], owner: Abortable) -> None:
        """Call `call` in the next round, after all handlers that are ready. owner: as for `at`."""
        self._postponed.append((call, owner))

    def failed(self, error: Exception, owner: Abortable) -> None:
        """Abort `owner`, whose code raised `error`. Counted always, logged once in LOG_SECONDS for each type of
        error."""
        self.failures += 1
        self._log(error)
        try:
            owner.abort()
        except Exception as second:
            self._log(second)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Run until `stop`."""
        while self._running:
            self.once()

    def once(self) -> None:
        """One round."""
        postponed = self._postponed
        events = self._epoll.poll(0 if postponed else self._next_timer(), EVENTS_AT_ONCE)
        if postponed:
            self._postponed = []
        self.now = time.monotonic()
        handlers = self.handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.ready(fd, mask)
                except Exception as error:
                    self.failed(error, handler)
        for call, owner in postponed:
            self._guarded(call, owner)
        # A waiter whose event did not fit into this round is served before its time is over.
        if len(events) < EVENTS_AT_ONCE:
            self._run_timers()
        if self._closing:
            for fd in self._closing:
                with suppress(OSError):
                    os.close(fd)
            self._closing.clear()

    def _next_timer(self) -> float:
        return max(0.0, self._timers[0][0] - self.now) if self._timers else -1

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            _, _, call, owner = heapq.heappop(timers)
            self._guarded(call, owner)

    def _expire(self, seconds: float, queue: dict[Waiter, float]) -> None:
        """Call those whose time is over, and set the timer for the next one."""
        while queue:
            waiter, since = next(iter(queue.items()))
            if since + seconds > self.now:
                self.at(since + seconds, partial(self._expire, seconds, queue), _NOBODY)
                return
            del queue[waiter]
            self._guarded(waiter.timed_out, waiter)
        del self._queues[seconds]

    def _guarded(self, call: Callable[[], None], owner: Abortable) -> None:
        try:
            call()
        except Exception as error:
            self.failed(error, owner)

    def _log(self, error: Exception) -> None:
        kind = type(error).__name__
        if self.now - self._logged.get(kind, float("-inf")) >= LOG_SECONDS:
            self._logged[kind] = self.now
            log.exception(
                "Unexpected error, which is a bug in kproxy; the connection is closed, the others go on",
                error,
                failures=self.failures,
            )


class _Nobody:
    def abort(self) -> None: ...


_NOBODY = _Nobody()
