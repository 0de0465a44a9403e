"""The health check node ports of Services: a load balancer asks each node whether it has endpoints of a Service.

There is one listener for each address and port. The wanted ports are given as a whole; only what differs from the open
ones is touched. A port that cannot be opened is retried by its listener; an update that fails is the caller's to retry.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from kproxy import logs
from kproxy.containment import Containment
from kproxy.errors import KernelError
from kproxy.events.series import Notice
from kproxy.healthz.listeners import Address, Listener, contained, json_response
from kproxy.rate_limit import Backoff

_log = logs.get("healthz")
STAGE = "health-checks"
"""The label of this part in `kproxy_internal_errors_total`."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a health check node port answers for: a Service, and how many ready endpoints of it are on this node.

    ips: where it listens, as in Address.ip.
    """

    namespace: str
    name: str
    local_endpoints: int
    ips: frozenset[str] = frozenset({""})

    @property
    def service(self) -> str:
        return f"{self.namespace}/{self.name}"


def check_response(check: HealthCheck, proxy_healthy: bool) -> tuple[int, bytes, dict[str, str]]:
    """Return status, JSON body and headers of the answer: 200 when traffic sent to this node would be served."""
    body = {
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    }
    status = 200 if check.local_endpoints and proxy_healthy else 503
    headers = {"X-Load-Balancing-Endpoint-Weight": str(check.local_endpoints)}
    return status, json.dumps(body, separators=(",", ":")).encode(), headers


class ServiceChecks:
    """The open health check node ports. Every method must be called in the loop's thread.

    proxy_healthy: called at each request. on_failure(port, check, error): called when a port cannot be opened on some
    address; not again until the port was closed or belongs to another Service.
    """

    def __init__(
        self,
        proxy_healthy: Callable[[], bool],
        on_failure: Callable[[int, HealthCheck, KernelError], None],
        containment: Containment,
    ) -> None:
        self._proxy_healthy = proxy_healthy
        self._on_failure = on_failure
        self._containment = containment
        self._checks: dict[int, HealthCheck] = {}
        self._listeners: dict[Address, Listener] = {}
        self._updating = asyncio.Lock()

    async def update(self, checks: Mapping[int, HealthCheck]) -> None:
        """Serve `checks`, by port, and close all other ports.

        An address that fails unexpectedly costs no other: the first such error is raised once all were tried, and the
        same update may be given again.
        """
        async with self._updating:
            wanted = {Address(ip, port) for port, check in checks.items() for ip in check.ips}
            moved = {port for port, check in checks.items() if self._service_of(port) not in (None, check.service)}
            self._checks = dict(checks)
            # A port that is not open yet and changes hands is closed, so that the failure is reported for both.
            closing = [
                address
                for address, listener in self._listeners.items()
                if address not in wanted or (address.port in moved and not listener.port)
            ]
            await _try_all(self._close(address) for address in closing)
            opening = sorted(wanted - self._listeners.keys(), key=lambda address: (address.port, address.ip))
            await _try_all(self._listen(address) for address in opening)

    async def close(self) -> None:
        """Close all of them."""
        await self.update({})

    def _service_of(self, port: int) -> str | None:
        check = self._checks.get(port)
        return check.service if check else None

    async def _listen(self, address: Address) -> None:
        _log.info("Opening health check", service=self._checks[address.port].service, address=str(address))
        opening = self._containment.stage(STAGE, f"health checks on {address} are not answered until it can be opened")
        consequence = f"this health check on {address} is answered with status 500"
        answering = self._containment.stage(STAGE, consequence, on_demand=True)
        listener = Listener(
            address,
            contained(partial(self._answer, address.port), answering),
            Backoff(first=1.0, last=30.0),
            opening,
            partial(self._failed, address.port),
        )
        await listener.open_or_retry()
        self._listeners[address] = listener

    async def _close(self, address: Address) -> None:
        _log.info("Closing health check", address=str(address))
        await self._listeners.pop(address).close()

    def _failed(self, port: int, error: KernelError) -> None:
        if check := self._checks.get(port):
            self._on_failure(port, check, error)

    async def _answer(self, port: int, request: web.BaseRequest) -> web.Response:
        check = self._checks.get(port)
        if check is None:
            return web.Response(status=503)
        return json_response(*check_response(check, self._proxy_healthy()))


async def _try_all(steps: Iterable[Awaitable[None]]) -> None:
    """Take every step, whichever of them fails, and raise the first error."""
    errors: list[Exception] = []
    for step in steps:
        try:
            await step
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def check_failed(node: str, port: int, check: HealthCheck, error: KernelError) -> Notice:
    """Return the notice that `node` cannot answer a Service's health checks; reason and action as kube-proxy's."""
    note = f"node {node} cannot answer health checks of {check.service} on port {port}: {error}"
    return Notice("Service", check.namespace, check.name, "FailedToStartServiceHealthcheck", "Listen", note)
