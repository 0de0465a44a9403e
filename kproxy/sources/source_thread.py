"""The thread of a source: it survives exceptions, can be waited for, and delivers nothing once it was stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kproxy.containment import Stage
from kproxy.model.events import Event, Sink

STAGE = "source"
"""The name of the containment stage of every source thread."""


class SourceThread:
    """Runs `follow` in a thread until it returns or `stop` is called, and puts its events into `sink`.

    follow: begins anew, with everything there is, each time that it is called; called again, after a wait, when it
    raised. stage: contains what it raises; whoever delivers something good calls its `succeeded`. interrupt: makes a
    `follow` that waits look at `stopping`; called in the thread that stops it.
    """

    def __init__(
        self, name: str, follow: Callable[[], None], sink: Sink, stage: Stage, interrupt: Callable[[], None]
    ) -> None:
        self._follow, self._sink, self._stage, self._interrupt = follow, sink, stage, interrupt
        self._delivering = threading.RLock()  # reentrant, as a sink may stop its source
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def start(self) -> None:
        self._thread.start()

    def put(self, event: Event) -> None:
        """Deliver `event`, unless `stop` was called."""
        with self._delivering:
            if not self.stopping:
                self._sink.put(event)

    def pause(self, seconds: float) -> None:
        """Wait so many `seconds`, or until `stop`."""
        self._stopping.wait(seconds)

    def ask_to_stop(self) -> None:
        """Tell the thread to end; returns at once. An event may still be on its way into the sink."""
        self._stopping.set()
        self._interrupt()

    def stop(self) -> None:
        """Tell the thread to end. Nothing is put into the sink after this has returned: it waits for a `put` that is
        under way, though not for the thread."""
        self.ask_to_stop()
        with self._delivering:
            pass

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended, at most `timeout` seconds; returns whether it has."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._stage.supervise(self._follow, self._stopping)
