"""What the status addresses answer: the pages of the healthz and the metrics server.

Pages are plain functions from nothing to a status, headers and a body; who asks, and with which method, does not
matter, as with kube-proxy.
"""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from kproxy.health.clocks import Clock
from kproxy.health.listeners import Handler
from kproxy.health.metrics import CONTENT_TYPE, Metrics
from kproxy.health.proxier_health import ProxierHealth

__all__ = ["CONFIG_KEY", "Identity", "Page", "health_pages", "metrics_pages", "serve_pages"]

CONFIG_KEY = "kubeproxy.config.k8s.io"
_TEXT = "text/plain; charset=utf-8"
_WARNING = "Warning: for people who debug; its form may change, do not parse it."

Page = Callable[[], Awaitable[web.Response]]


@dataclass(slots=True)
class Identity:
    """What this process says of itself, now: it is looked at for each page.

    mode: the proxy mode in use. config: the effective KubeProxyConfiguration, as JSON values. flags: the command line's
    flags and their values as text.
    """

    version: str
    mode: str
    config: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)


def serve_pages(pages: Mapping[str, Page]) -> Handler:
    """A handler that answers by path, 404 for any other."""

    async def handler(request: web.BaseRequest) -> web.Response:
        page = pages.get(request.path)
        return await page() if page else _text("404 page not found\n", status=404)

    return handler


def health_pages(health: ProxierHealth, metrics: Metrics) -> dict[str, Page]:
    """/healthz and /livez, counted in METRICS."""

    async def healthz() -> web.Response:
        status, body = health.health().healthz()
        metrics.healthz(status)
        return json_response(status, body)

    async def livez() -> web.Response:
        status, body = health.health().livez()
        metrics.livez(status)
        return json_response(status, body)

    return {"/healthz": healthz, "/livez": livez}


def metrics_pages(metrics: Metrics, identity: Identity, clock: Clock) -> dict[str, Page]:
    """/metrics and the pages that kube-proxy shows beside it. CLOCK's time now counts as the process's start."""
    started = clock.now()
    began = clock.monotonic()
    one_at_a_time = asyncio.Semaphore(1)

    async def exposition() -> web.Response:
        # In a thread because it reads /proc and asks the kernel; one at a time so that many scrapers cost no more than
        # one processor.
        async with one_at_a_time:
            body = await asyncio.to_thread(metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def configuration() -> web.Response:
        return json_response(200, json.dumps({CONFIG_KEY: identity.config}).encode())

    async def statusz() -> web.Response:
        seconds = int(clock.monotonic() - began)
        lines = [
            "kube-proxy statusz",
            _WARNING,
            "",
            f"Started: {started:%a %b %e %H:%M:%S UTC %Y}",
            f"Up: {seconds // 3600} hr {seconds // 60 % 60:02} min {seconds % 60:02} sec",
            f"Program: kproxy {identity.version}",
            f"Python version: {platform.python_version()}",
            f"Mode: {identity.mode}",
            f"Paths: {' '.join(sorted(pages))}",
        ]
        return _text("\n".join(lines) + "\n")

    async def flagz() -> web.Response:
        flags = [f"{name}={value}" for name, value in sorted(identity.flags.items())]
        return _text("\n".join(["kube-proxy flagz", _WARNING, "", *flags]) + "\n")

    async def alive() -> web.Response:
        return _text("ok", nosniff=True)

    async def mode() -> web.Response:
        return _text(identity.mode, nosniff=True)

    pages: dict[str, Page] = {
        "/metrics": exposition,
        "/healthz": alive,
        "/proxyMode": mode,
        "/configz": configuration,
        "/statusz": statusz,
        "/flagz": flagz,
    }
    return pages


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """BODY as JSON that no browser may take for anything else."""
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )


def _text(text: str, *, status: int = 200, nosniff: bool = False) -> web.Response:
    headers = {"Content-Type": _TEXT, **({"X-Content-Type-Options": "nosniff"} if nosniff else {})}
    return web.Response(status=status, body=text.encode(), headers=headers)
