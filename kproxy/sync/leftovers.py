"""A node that changes its mode: what the old mode left outside iptables goes once the new mode stands.

Chains of another mode in the same tables are the programmers' own matter; here is what they do not see. It happens in a
thread of its own, as connections that IPVS still carries are given time to end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping

from kproxy import logs
from kproxy.config.fields import ProxyMode
from kproxy.errors import KernelError
from kproxy.model.plans import Family
from kproxy.sync.schedule import Work
from kproxy.sync.workers import Report

__all__ = ["LINGER", "Leftovers", "Remains"]

_log = logs.get("cleanup")

LINGER = 60.0
"""Seconds at most that connections through the old mode are waited for."""
POLL = 1.0
SHARE = 0.1
"""The share of the time that looking for them may take."""


class Remains:
    """What one mode may have left.

    busy: whether connections still go through it. remove: takes it away, and returns one line for each thing that would
    not go. Both may raise KernelError.
    """

    def __init__(self, remove: Callable[[], list[str]], busy: Callable[[], bool] = lambda: False) -> None:
        self.remove, self.busy = remove, busy


class Leftovers:
    """Waits for a full sync of every family, then removes what modes other than `mode` left. What cannot be removed is
    tried again after the next full sync."""

    def __init__(
        self,
        mode: ProxyMode,
        remains: Mapping[ProxyMode, Remains],
        families: Collection[Family],
        linger: float = LINGER,
    ) -> None:
        """remains: by the mode that left them. linger: seconds."""
        self._remains = {left_by: remains[left_by] for left_by in remains if left_by is not mode}
        self._waiting = set(families)
        self._linger = linger
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._done = False

    @property
    def established(self) -> bool:
        """Every family has been written once: Services are served by this process's mode."""
        return not self._waiting

    def synced(self, report: Report) -> None:
        """A sync of one family ended well."""
        if self._done or report.work is not Work.EVERYTHING:
            return
        self._waiting.discard(report.family)
        if self._waiting or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._remove, name="leftovers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop waiting for connections to end; what is left then stays for the next start."""
        self._stopped.set()
        if self._thread:
            self._thread.join()

    def _remove(self) -> None:
        left = [mode for mode, remains in self._remains.items() if not self._remove_one(mode, remains)]
        self._done = not left

    def _wait_for_the_last_connection(self, remains: Remains) -> bool:
        """Whether what remains may go now; false when the daemon ends."""
        until = time.monotonic() + self._linger
        while (began := time.monotonic()) < until and remains.busy():
            # In a large cluster a look takes long: looking must not keep a processor busy.
            if self._stopped.wait(max(POLL, (time.monotonic() - began) / SHARE)):
                return False
        return True

    def _remove_one(self, mode: ProxyMode, remains: Remains) -> bool:
        try:
            if not self._wait_for_the_last_connection(remains):
                return False
            problems = remains.remove()
        except KernelError as error:
            problems = [str(error)]
        for problem in problems:
            _log.warning(
                "What another mode left stays for now; tried again after the next full sync",
                mode=mode.value,
                err=problem,
            )
        return not problems
