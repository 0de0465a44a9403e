"""The loop: waits for file descriptors and for times, and calls whoever waits for them. One thread.

Handlers get edges, so they remember what they may read and write. A descriptor that is let go of is closed at the end
of the round, so that no event of the same round can meet its number's next owner.
"""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Protocol

from kproxy import logs

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
"""After one of these a short read does not mean that nothing is left: the end, an error or a mark may stand there."""

ROUND = 512  # events taken at once

log = logs.get("userspace")


class Handler(Protocol):
    def ready(self, fd: int, events: int) -> None:
        """FD is ready for EVENTS, a mask of epoll's."""

    def abort(self) -> None:
        """Something that nobody foresaw went wrong in `ready`: let go of everything."""


class Waiter(Protocol):
    def overdue(self) -> None:
        """The time is over. It is not among the waiting any more."""


class Loop:
    """now: when this round began, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.handlers: dict[int, Handler] = {}
        self.register: Callable[[int, int], None]
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.modify: Callable[[int, int], None] = self._epoll.modify
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._queues: dict[float, dict[Waiter, float]] = {}
        self._leaving: list[int] = []
        self._again: list[Callable[[], None]] = []
        self._running = True

    def add(self, fd: int, handler: Handler, events: int) -> None:
        """Tell HANDLER when FD is ready."""
        self.handlers[fd] = handler
        self.register(fd, events)

    def leave(self, fd: int) -> None:
        """Close FD, once this round is over; its handler hears no more of it."""
        self.handlers.pop(fd, None)
        self._leaving.append(fd)

    def close(self, fd: int) -> None:
        """Close FD now, for what must be gone when the caller goes on. Its next owner may be called in vain."""
        self.handlers.pop(fd, None)
        os.close(fd)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call CALL at WHEN, or soon after. It cannot be taken back: CALL has to look whether it still matters."""
        heapq.heappush(self._timers, (when, next(self._order), call))

    def waiting(self, seconds: float) -> dict[Waiter, float]:
        """Those who wait SECONDS, each with the time at which it began; put in at the end, taken out by anybody.

        Costs next to nothing for who does not wait to the end.
        """
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = {}
            self.at(self.now + seconds, partial(self._wake, seconds, queue))
        return queue

    def again(self, call: Callable[[], None]) -> None:
        """Call CALL at the end of the next round, after all others that were ready have had their turn."""
        self._again.append(call)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Until `stop`."""
        while self._running:
            self.once()

    def once(self) -> None:
        """One round."""
        turns = self._again
        events = self._epoll.poll(0 if turns else self._patience(), ROUND)
        if turns:
            self._again = []
        self.now = time.monotonic()
        handlers = self.handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.ready(fd, mask)
                except Exception as error:
                    log.error("One connection failed in an unexpected way, which is a bug; the others go on", error)
                    self._guarded(handler.abort)
        for call in turns:
            self._guarded(call)
        # Whoever has events that this round had no room for is heard before its time is over.
        if len(events) < ROUND:
            self._pass_time()
        if self._leaving:
            for fd in self._leaving:
                os.close(fd)
            self._leaving.clear()

    def _patience(self) -> float:
        return max(0.0, self._timers[0][0] - self.now) if self._timers else -1

    def _pass_time(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            self._guarded(heapq.heappop(timers)[2])

    def _wake(self, seconds: float, queue: dict[Waiter, float]) -> None:
        """Call those whose time is over, and come back when the next one's is."""
        while queue:
            waiter, since = next(iter(queue.items()))
            if since + seconds > self.now:
                self.at(since + seconds, partial(self._wake, seconds, queue))
                return
            del queue[waiter]
            self._guarded(waiter.overdue)
        del self._queues[seconds]

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            log.error("One connection failed in an unexpected way, which is a bug; the others go on", error)
