"""The health check node ports of Services: a load balancer asks each node whether it has endpoints of a Service.

One listener for each address and port. The wanted set comes whole; only what differs from the open set is touched.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from kproxy.errors import KernelError
from kproxy.events.series import Notice
from kproxy.healthz.listeners import Address, Listener, Retry, json_response

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What one health check node port tells: the Service, and how many ready endpoints of it are on this node."""

    namespace: str
    name: str
    local_endpoints: int

    @property
    def service(self) -> str:
        return f"{self.namespace}/{self.name}"


def check_response(check: HealthCheck, proxy_healthy: bool) -> tuple[int, bytes, dict[str, str]]:
    """Status, JSON body and headers of the answer: 200 when traffic sent to this node would be served."""
    body = {
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    }
    status = 200 if check.local_endpoints and proxy_healthy else 503
    headers = {"X-Load-Balancing-Endpoint-Weight": str(check.local_endpoints)}
    return status, json.dumps(body, separators=(",", ":")).encode(), headers


class ServiceChecks:
    """The open health check node ports. All methods belong to the loop's thread.

    proxy_healthy: asked at each request. on_failure(port, check, error): a port could not be opened on some address; it
    is tried again by itself, and reported again only after it has been closed or has changed hands.
    """

    def __init__(
        self, proxy_healthy: Callable[[], bool], on_failure: Callable[[int, HealthCheck, KernelError], None]
    ) -> None:
        self._proxy_healthy = proxy_healthy
        self._on_failure = on_failure
        self._checks: dict[int, HealthCheck] = {}
        self._open: dict[Address, Listener] = {}
        self._updating = asyncio.Lock()

    async def update(self, checks: Mapping[int, HealthCheck], ips: Collection[str]) -> None:
        """Serve CHECKS (by port) on each of IPS, "" being every address; close what is in neither."""
        async with self._updating:
            await self._update(checks, ips)

    async def _update(self, checks: Mapping[int, HealthCheck], ips: Collection[str]) -> None:
        wanted = {Address(ip, port) for port in checks for ip in ips}
        moved = {
            port
            for port, check in checks.items()
            if port in self._checks and self._checks[port].service != check.service
        }
        self._checks = dict(checks)
        for address in [a for a in self._open if a not in wanted or (a.port in moved and not self._open[a].port)]:
            await self._close(address)
        for address in sorted(wanted - self._open.keys(), key=lambda a: (a.port, a.ip)):
            await self._listen(address)

    async def close(self) -> None:
        """Close all of them."""
        await self.update({}, ())

    async def _listen(self, address: Address) -> None:
        check = self._checks[address.port]
        _log.info("opening health check of Service %s on %s", check.service, address)
        listener = Listener(address, partial(self._answer, address.port), Retry(), partial(self._failed, address.port))
        self._open[address] = listener
        await listener.open_or_retry()

    async def _close(self, address: Address) -> None:
        _log.info("closing health check on %s", address)
        await self._open.pop(address).close()

    def _failed(self, port: int, error: KernelError) -> None:
        if check := self._checks.get(port):
            self._on_failure(port, check, error)

    async def _answer(self, port: int, request: web.BaseRequest) -> web.Response:
        check = self._checks.get(port)
        if check is None:
            return web.Response(status=503)
        return json_response(*check_response(check, self._proxy_healthy()))


def check_failed(node: str, port: int, check: HealthCheck, error: KernelError) -> Notice:
    """The notice that NODE cannot answer on the health check port of a Service; reason and action as kube-proxy's."""
    note = f"node {node} cannot answer health checks of {check.service} on port {port}: {error}"
    return Notice("Service", check.namespace, check.name, "FailedToStartServiceHealthcheck", "Listen", note)
