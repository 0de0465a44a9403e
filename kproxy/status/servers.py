"""All HTTP servers of kproxy behind one object that may be used from any thread.

They share one asyncio loop in a thread of its own; nothing else in kproxy uses asyncio. The paths are in `pages`,
health check node ports in `kproxy.healthz.service_checks`, opening and guarding an address in
`kproxy.healthz.listeners`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from kproxy import logs
from kproxy.clocks import Clock
from kproxy.containment import QUIET, Containment, Stage
from kproxy.errors import InvalidConfig, KernelError
from kproxy.healthz.listeners import Listener, parse_address
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.healthz.service_checks import STAGE as HEALTH_CHECKS
from kproxy.healthz.service_checks import HealthCheck, ServiceChecks
from kproxy.metrics.registry import Metrics
from kproxy.rate_limit import Backoff, TokenBucket
from kproxy.status.pages import healthz_handler, metrics_handler
from kproxy.status.schema import Identity
from kproxy.status.store import StatusStore

_log = logs.get("http")

HANG = 10.0
"""Seconds after which another thread stops waiting for the servers to close or to change their addresses."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """healthz, metrics: healthzBindAddress and metricsBindAddress, "" for no such server.

    hard_fail: bindAddressHardFail; `start` fails when one of the two cannot be opened, instead of trying again.
    """

    healthz: str
    metrics: str
    hard_fail: bool = False


Wanted = Mapping[int, HealthCheck]
"""Health checks by port, and the addresses that they are served on, "" for all."""


class Servers:
    """The healthz server, the metrics server and the health check node ports, from `start` to `stop`.

    on_check_failure(port, check, error): called when a Service's health check port cannot be opened, which is retried;
    in the servers' thread, so it must return at once. Raises InvalidConfig when a bind address is not IP:PORT.
    """

    def __init__(
        self,
        settings: ServerSettings,
        identity: Identity,
        health: ProxierHealth,
        metrics: Metrics,
        clock: Clock,
        store: StatusStore,
        containment: Containment,
        on_check_failure: Callable[[int, HealthCheck, KernelError], None] = lambda port, check, error: None,
    ) -> None:
        self._hard_fail = settings.hard_fail
        self._containment = containment
        self._stage = containment.stage("http", "the HTTP servers go on, and are opened again where they ended")
        self._checks_stage = containment.stage(HEALTH_CHECKS, "health check node ports stay as they were until a retry")
        self._thread = LoopThread("http", self._stage)
        self._checks = ServiceChecks(health.healthy, on_check_failure, containment)
        self._handlers = {
            "healthzBindAddress": healthz_handler(health, metrics, containment),
            "metricsBindAddress": metrics_handler(metrics, identity, clock, health, store, containment),
        }
        self._listeners = self._make_listeners(settings)
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None

    def _make_listeners(self, settings: ServerSettings) -> dict[str, Listener]:
        found = {}
        for field, bind in (("healthzBindAddress", settings.healthz), ("metricsBindAddress", settings.metrics)):
            try:
                if bind:
                    stage = self._containment.stage("http", f"{bind} is not served until it can be opened")
                    # kube-proxy tries every 5 s; starting at 1 s bridges the moment in which its predecessor still
                    # holds the port.
                    backoff = Backoff(first=1.0, last=5.0)
                    found[field] = Listener(parse_address(bind), self._handlers[field], backoff, stage)
            except ValueError as error:
                raise InvalidConfig([f"{field}: {error}"]) from error
        return found

    def rebind(self, settings: ServerSettings) -> None:
        """Serve at the addresses of `settings` from now on. Addresses that stay are not touched. Blocks until done.

        An address that cannot be opened is tried again, whatever hard_fail says, which is for the start.
        """
        self._hard_fail = settings.hard_fail
        wanted = self._make_listeners(settings)
        if self._thread.running:
            self._stage.attempt(lambda: self._thread.submit(self._rebind(wanted)).result(HANG), None)

    @property
    def healthz_port(self) -> int | None:
        """The port that /healthz is served on, None while it is not."""
        return self._port("healthzBindAddress")

    @property
    def metrics_port(self) -> int | None:
        """The port that /metrics is served on, None while it is not."""
        return self._port("metricsBindAddress")

    def _port(self, field: str) -> int | None:
        listener = self._listeners.get(field)
        return listener.port if listener else None

    def start(self) -> None:
        """Open the addresses. Raises KernelError when hard_fail is set and one cannot be opened."""
        self._thread.start()
        try:
            self._thread.submit(self._open()).result()
        except Exception:
            self.stop()
            raise

    def stop(self) -> None:
        """Close everything. May be called twice, but not from the servers' thread."""
        with self._lock:
            self._wanted = None
            if self._thread.running:
                self._stage.attempt(lambda: self._thread.submit(self._close()).result(HANG), None)
            self._thread.stop()

    def update_health_checks(self, checks: Mapping[int, HealthCheck]) -> Future[None] | None:
        """Serve `checks`, by port, and no others. From any thread.

        Never blocks and costs nothing without a difference; does nothing while stopped. An update that fails is retried
        until it has worked or another one replaces it. Returns a future that is done then, None without a difference; a
        port that cannot be opened does not delay it.
        """
        wanted = dict(checks)
        with self._lock:
            if wanted == self._wanted or not self._thread.running:
                return None
            self._wanted = wanted
            return self._thread.submit(self._update_checks(wanted))

    async def _update_checks(self, wanted: Wanted) -> None:
        while wanted is self._wanted:
            try:
                await self._checks.update(wanted)
            except Exception as error:
                self._checks_stage.failed(error)
                await asyncio.sleep(self._checks_stage.retry_in)
            else:
                self._checks_stage.succeeded()
                return

    async def _open(self) -> None:
        for listener in self._listeners.values():
            await (listener.open() if self._hard_fail else listener.open_or_retry())

    async def _rebind(self, wanted: dict[str, Listener]) -> None:
        for field in self._handlers:
            old, new = self._listeners.get(field), wanted.get(field)
            if (old and old.address) == (new and new.address):
                continue
            if old and new and old.address.port == new.address.port:  # the old one may be in the new one's way
                await self._close_listener(old)
                old = None
            self._listeners.pop(field, None)
            if new:
                await new.open_or_retry()
                self._listeners[field] = new
            if old:
                await self._close_listener(old)

    async def _close(self) -> None:
        try:
            await self._checks.close()
        finally:
            for listener in self._listeners.values():
                await self._close_listener(listener)

    async def _close_listener(self, listener: Listener) -> None:
        try:
            await listener.close()
        except Exception as error:
            self._stage.failed(error)


class LoopThread:
    """An asyncio loop in a thread of its own, which runs coroutines for other threads.

    stage: contains what a task, a callback or the loop itself raises.
    """

    def __init__(self, name: str, stage: Stage) -> None:
        self._stage = stage
        self._stopping = threading.Event()
        self._warnings = TokenBucket(1 / QUIET, 1, 0.0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def running(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        """Start the thread. Once only."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._unhandled)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in the loop, which must be running. Any thread but the loop's own may wait for the result."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Cancel what still runs and join the thread. May be called twice, and before `start`."""
        if self._loop is not None:
            self._stopping.set()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an error that no task and no callback handled; the loop goes on."""
        error = context.get("exception")
        if not isinstance(error, OSError):
            self._stage.failed(error or RuntimeError(str(context.get("message"))))
            loop.call_later(QUIET, self._stage.succeeded)
        elif self._warnings.take(loop.time()):  # mostly: no file descriptor is left to accept a connection
            _log.warning("An HTTP connection failed", err=error, during=str(context.get("message", "")))

    def _run_forever(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(QUIET, self._stage.succeeded)
        loop.run_forever()

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        self._stage.supervise(partial(self._run_forever, loop), self._stopping)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # Aborted connections are closed in the next rounds of the loop.
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_default_executor())
