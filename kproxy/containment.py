"""Contains unexpected exceptions where one part of the daemon calls another, so that they affect that part only.

Decides: what is logged of such an exception, how often, and when the part is tried again. Leaves out: exceptions that
kproxy raises on purpose (`kproxy.errors`), which mean something to the caller and pass through; and what is done
instead, which only the caller knows.

A *stage* is one such place, named as in the metric `kproxy_internal_errors_total{stage=…}`. The first failure of a
stage is logged with its traceback; further ones are counted. It is logged again when it fails in another way, but not
more than once in `QUIET` seconds, so that a part that fails at every turn fills no log.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from weakref import WeakSet

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.errors import KproxyError, one_line
from kproxy.rate_limit import Backoff

T = TypeVar("T")

_log = logs.get("containment")

QUIET = 60.0
"""Seconds for which a stage logs nothing more after it logged a failure, or logged that it works again."""


RECENT = 600.0
"""Seconds for which `kproxy status` shows that a page failed, unless the same page works again before."""


class FailingStage(NamedTuple):
    """A stage that failed and has not worked since, for `kproxy status`.

    failures: in a row. error: the last one as one line. since: seconds of the monotonic clock.
    """

    stage: str
    failures: int
    error: str
    since: float


class Stage:
    """One place where exceptions are contained. Every method may be called from any thread.

    The caller asks `ready` before it does something that can wait, and does it within `attempt`.
    """

    def __init__(
        self,
        name: str,
        consequence: str,
        clock: Clock,
        totals: Counter[str],
        lock: threading.Lock,
        shown_for: float,
    ) -> None:
        """totals: failures by stage, to add to. lock: of all stages that share `totals`. shown_for: seconds for which
        a failure counts as present."""
        self._shown_for, self._failed_at = shown_for, 0.0
        self.name, self._consequence, self._clock = name, consequence, clock
        self._totals, self._lock = totals, lock
        self._backoff = Backoff()
        self._retry_at = self._quiet_until = float("-inf")
        self._since = 0.0
        self._error = self._reported = ""

    @property
    def ready(self) -> bool:
        """Whether the wait after the last failure is over."""
        return self._clock.monotonic() >= self._retry_at

    @property
    def failures(self) -> int:
        """The number of failures since it last worked."""
        return self._backoff.failures

    @property
    def retry_in(self) -> float:
        """Seconds until `ready`; 0 when it is."""
        return max(0.0, self._retry_at - self._clock.monotonic())

    def attempt(self, action: Callable[[], T], otherwise: T) -> T:
        """The result of `action`, or `otherwise` if it raised something unexpected. A KproxyError passes through."""
        try:
            result = action()
        except KproxyError:
            raise
        except Exception as error:
            self.failed(error)
            return otherwise
        self.succeeded()
        return result

    def supervise(self, action: Callable[[], None], stopping: threading.Event) -> None:
        """Run `action`, and again after a wait each time that it raises, until it returns or `stopping` is set.

        For the body of a thread; a KproxyError that reaches it is contained as well, as nobody is above it.
        """
        while not stopping.is_set():
            try:
                action()
                return
            except Exception as error:
                self.failed(error)
            stopping.wait(self.retry_in)

    def failed(self, error: BaseException) -> None:
        """Count and report `error`; the stage is not `ready` for a while."""
        now, kind = self._clock.monotonic(), type(error).__name__
        with self._lock:
            self._totals[self.name] += 1
            self._failed_at = now
            self._since = self._since if self._backoff.failures else now
            self._error = one_line(f"{kind}: {error}", 200)
            wait = self._backoff.next()
            self._retry_at = now + wait
            report = kind != self._reported and now >= self._quiet_until
            if report:
                self._reported, self._quiet_until = kind, now + QUIET
        if report:
            message = f"Unexpected error, which is a bug in kproxy; {self._consequence}"
            _log.exception(message, error, stage=self.name, retry_in=round(wait, 1))

    def succeeded(self) -> None:
        """Note that the stage works."""
        if not self._backoff.failures:
            return
        with self._lock:
            failures, reported = self._backoff.failures, self._reported
            self._backoff.reset()
            self._retry_at, self._reported = float("-inf"), ""
        if reported:
            _log.info("Works again after unexpected errors", stage=self.name, failures=failures)

    def failing(self) -> FailingStage | None:
        """How it fails at present; None when it works."""
        with self._lock:
            failures, ago = self._backoff.failures, self._clock.monotonic() - self._failed_at
            present = failures and ago < self._shown_for
            return FailingStage(self.name, failures, self._error, self._since) if present else None


class Containment:
    """All stages of one daemon. `kproxy.metrics` and `kproxy.status` read them from their own threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._stages: WeakSet[Stage] = WeakSet()

    def stage(self, name: str, consequence: str, on_demand: bool = False) -> Stage:
        """A new stage. Several may share a name (one a family): they are counted together and wait each by itself.

        name: a label's value, such as "conntrack". consequence: what the failure costs until it is over and what
        happens next, for the log: "stale flows stay until the next try". on_demand: only somebody's request makes it
        work again, which may never come, so a failure counts as present for RECENT seconds.
        """
        shown_for = RECENT if on_demand else math.inf
        stage = Stage(name, consequence, self._clock, self._totals, self._lock, shown_for)
        with self._lock:
            self._totals.setdefault(name, 0)
            self._stages.add(stage)
        return stage

    def counts(self) -> dict[str, int]:
        """Failures of every stage since the start, by name."""
        with self._lock:
            return dict(self._totals)

    def failing(self) -> list[FailingStage]:
        """The stages that fail at present, by name."""
        with self._lock:
            stages = list(self._stages)
        return sorted(found for stage in stages if (found := stage.failing()) is not None)
