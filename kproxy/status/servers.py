"""All HTTP servers of kproxy behind one object that other threads may call.

They share one asyncio loop in a thread of its own. Which pages there are is in `pages` and `service_checks`, how an
address is opened and guarded in `listeners`.

One asyncio loop in a thread of its own, for the HTTP servers. The rest of kproxy knows no asyncio.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from kproxy.clocks import Clock
from kproxy.errors import InvalidConfig, KernelError
from kproxy.healthz.listeners import Listener, Retry, parse_address
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.healthz.service_checks import HealthCheck, ServiceChecks
from kproxy.metrics.registry import Metrics
from kproxy.status.pages import health_pages, metrics_pages, serve_pages
from kproxy.status.schema import Identity
from kproxy.status.store import StatusStore

_RETRY = Retry(first=1.0, most=5.0)
"""kube-proxy tries every 5 s; starting at 1 s bridges the moment in which its predecessor still holds the port."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """healthz, metrics: healthzBindAddress and metricsBindAddress, "" for no such server.

    hard_fail: bindAddressHardFail; `start` fails when one of the two cannot be opened, instead of trying again.
    """

    healthz: str
    metrics: str
    hard_fail: bool = False


class Servers:
    """Starts with `start`, ends with `stop`; both block until done.

    on_check_failure(port, check, error): a Service's health check port could not be opened; called in the servers'
    thread, so it must only pass the news on. It is tried again without further ado.
    Raises InvalidConfig when a bind address is not IP:PORT.
    """

    def __init__(
        self,
        settings: ServerSettings,
        identity: Identity,
        health: ProxierHealth,
        metrics: Metrics,
        clock: Clock,
        board: StatusStore,
        on_check_failure: Callable[[int, HealthCheck, KernelError], None] = lambda port, check, error: None,
    ) -> None:
        self._hard_fail = settings.hard_fail
        self._thread = LoopThread("http")
        self._checks = ServiceChecks(health.healthy, on_check_failure)
        self._handlers = {
            "healthzBindAddress": serve_pages(health_pages(health, metrics)),
            "metricsBindAddress": serve_pages(metrics_pages(metrics, identity, clock, health, board)),
        }
        self._listeners = self._wanted(settings)
        self._lock = threading.Lock()
        self._last: tuple[dict[int, HealthCheck], frozenset[str]] = ({}, frozenset())

    def _wanted(self, settings: ServerSettings) -> dict[str, Listener]:
        found = {}
        for field, bind in (("healthzBindAddress", settings.healthz), ("metricsBindAddress", settings.metrics)):
            try:
                if bind:
                    found[field] = Listener(parse_address(bind), self._handlers[field], _RETRY)
            except ValueError as error:
                raise InvalidConfig([f"{field}: {error}"]) from error
        return found

    def rebind(self, settings: ServerSettings) -> None:
        """Serve at the addresses of SETTINGS from now on; an address that stays is not touched. Blocks until done.

        One that cannot be opened is tried again, also with hard_fail, which is for the start.
        """
        self._hard_fail = settings.hard_fail
        wanted = self._wanted(settings)
        if self._thread.running:
            self._thread.submit(self._rebind(wanted)).result()

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
        """Open the addresses. Raises KernelError when one cannot be opened and hard_fail is set."""
        self._thread.start()
        try:
            self._thread.submit(self._open()).result()
        except KernelError:
            self.stop()
            raise

    def stop(self) -> None:
        """Close everything. Safe to call twice, not from the servers' thread."""
        with self._lock:
            if self._thread.running:
                self._thread.submit(self._close()).result()
            self._thread.stop()

    def update_health_checks(
        self, checks: Mapping[int, HealthCheck], ips: Collection[str] | None = None
    ) -> Future[None] | None:
        """Serve CHECKS, by port, on the node's addresses IPS (None: on all), and no others. From any thread.

        Does not block; only differences cost anything; does nothing while stopped. The future, None when there is
        nothing to do, is done when each new port has been opened or its opening has failed for the first time.
        """
        wanted = (dict(checks), frozenset(ips) if ips is not None else frozenset({""}))
        with self._lock:
            if wanted == self._last or not self._thread.running:
                return None
            self._last = wanted
            return self._thread.submit(self._checks.update(*wanted))

    async def _open(self) -> None:
        for listener in self._listeners.values():
            await (listener.open() if self._hard_fail else listener.open_or_retry())

    async def _rebind(self, wanted: dict[str, Listener]) -> None:
        for field in self._handlers:
            old, new = self._listeners.get(field), wanted.get(field)
            if (old and old.address) == (new and new.address):
                continue
            if old and new and old.address.port == new.address.port:  # the one may stand in the other's way
                await old.close()
                old = None
            self._listeners.pop(field, None)
            if new:
                await new.open_or_retry()
                self._listeners[field] = new
            if old:
                await old.close()

    async def _close(self) -> None:
        await self._checks.close()
        for listener in self._listeners.values():
            await listener.close()


T = TypeVar("T")


class LoopThread:
    """Runs coroutines of other threads. `stop` cancels those that still run, and joins the thread."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def running(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        """Once only."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run WORK in the loop, which must be running; any thread but the loop's own may wait for the outcome."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Safe to call twice, and before `start`."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # Connections that were cut say goodbye in the next rounds of the loop.
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_default_executor())
