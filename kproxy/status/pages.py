"""The paths of the healthz and the metrics server, and what each answers, whatever the method, as with kube-proxy.

A path whose handler raises answers with status 500; the others go on working.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from kproxy.clocks import Clock
from kproxy.containment import Containment
from kproxy.healthz.listeners import Handler, contained, json_response
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.metrics.registry import CONTENT_TYPE, Metrics
from kproxy.status import zpages
from kproxy.status.rows import LONGEST_QUERY
from kproxy.status.schema import Identity, Status
from kproxy.status.store import StatusStore

CONFIG_KEY = "kubeproxy.config.k8s.io"
# The page has no script, loads nothing, and may not be shown within another.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

Page = Callable[[web.BaseRequest], Awaitable[web.Response]]


def healthz_handler(health: ProxierHealth, metrics: Metrics, containment: Containment) -> Handler:
    """Return the handler of healthzBindAddress."""
    return _by_path(_health_pages(health, metrics), containment, dict.fromkeys(("/healthz", "/livez"), "healthz"))


def metrics_handler(
    metrics: Metrics,
    identity: Identity,
    clock: Clock,
    health: ProxierHealth,
    store: StatusStore,
    containment: Containment,
) -> Handler:
    """Return the handler of metricsBindAddress."""
    pages = _metrics_pages(metrics, identity, clock, health, store)
    return _by_path(pages, containment, {"/metrics": "metrics", "/metrics/slis": "metrics"})


def _by_path(pages: Mapping[str, Page], containment: Containment, stages: Mapping[str, str]) -> Handler:
    """Return a handler that answers each path with its page, 404 for any other. stages: "status-page" if missing."""
    handlers = {
        path: contained(
            page,
            containment.stage(stages.get(path, "status-page"), f"{path} is answered with status 500", on_demand=True),
        )
        for path, page in pages.items()
    }

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        found = handlers.get(request.path)
        return await found(request) if found else _text("404 page not found\n", status=404)

    return handler


def _health_pages(health: ProxierHealth, metrics: Metrics) -> dict[str, Page]:

    async def healthz(_: web.BaseRequest) -> web.Response:
        status, body = health.health().healthz()
        metrics.healthz(status)
        return json_response(status, body)

    async def livez(_: web.BaseRequest) -> web.Response:
        status, body = health.health().livez()
        metrics.livez(status)
        return json_response(status, body)

    return {"/healthz": healthz, "/livez": livez}


def _metrics_pages(
    metrics: Metrics, identity: Identity, clock: Clock, health: ProxierHealth, store: StatusStore
) -> dict[str, Page]:
    """Return /metrics, kube-proxy's other pages at this address, and the status page. Uptime counts from this call."""
    started, began = clock.now(), clock.monotonic()
    one_at_a_time = asyncio.Semaphore(1)

    async def exposition(_: web.BaseRequest) -> web.Response:
        # In a thread because it reads /proc and the kernel's counters; one at a time so that any number of scrapers
        # keeps one processor busy at most.
        async with one_at_a_time:
            body = await asyncio.to_thread(metrics.exposition)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def slis(_: web.BaseRequest) -> web.Response:
        return web.Response(body=metrics.slis.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def configuration(_: web.BaseRequest) -> web.Response:
        return json_response(200, json.dumps({CONFIG_KEY: identity.config}).encode())

    async def statusz(request: web.BaseRequest) -> web.Response:
        uptime = zpages.Uptime(started, int(clock.monotonic() - began))
        return _zpage(
            request, "Statusz", lambda api: zpages.statusz(uptime, identity.version, identity.emulates, pages, api)
        )

    async def flagz(request: web.BaseRequest) -> web.Response:
        return _zpage(request, "Flagz", lambda api: zpages.flagz(identity.flags, api))

    async def alive(_: web.BaseRequest) -> web.Response:
        metrics.slis.pinged()
        return _text("ok", nosniff=True)

    async def mode(_: web.BaseRequest) -> web.Response:
        return _text(identity.mode, nosniff=True)

    async def current(request: web.BaseRequest) -> Status:
        query = request.rel_url.query
        words, page = query.get("q", "").strip()[:LONGEST_QUERY], _number(query.get("page", ""))
        async with one_at_a_time:
            return await asyncio.to_thread(store.status, health, words, page)

    async def home(request: web.BaseRequest) -> web.Response:
        from kproxy.status.page import html  # jinja2 takes memory, and most daemons are never asked for this page

        body = await asyncio.to_thread(html, await current(request))
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        return _text(body, headers={"Content-Type": "text/html; charset=utf-8", **headers}, nosniff=True)

    async def status(request: web.BaseRequest) -> web.Response:
        return json_response(200, msgspec.json.encode(await current(request)), {"Cache-Control": "no-store"})

    pages: dict[str, Page] = {
        "/": home,
        "/status.json": status,
        "/metrics": exposition,
        "/metrics/slis": slis,
        "/healthz": alive,
        "/proxyMode": mode,
        "/configz": configuration,
        "/statusz": statusz,
        "/flagz": flagz,
    }
    return pages


def _zpage(request: web.BaseRequest, kind: str, write: Callable[[str], bytes]) -> web.Response:
    api = zpages.negotiate(request.headers.get("Accept", ""), kind)
    if api is None:
        return _text(
            f"only text/plain and {zpages.JSON};v=v1beta1;g=config.k8s.io;as={kind} are available\n", status=406
        )
    return web.Response(body=write(api), headers={"Content-Type": zpages.JSON if api else zpages.TEXT})


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 1


def _text(
    text: str, *, status: int = 200, nosniff: bool = False, headers: Mapping[str, str] | None = None
) -> web.Response:
    sniffing = {"X-Content-Type-Options": "nosniff"} if nosniff else {}
    return web.Response(
        status=status, body=text.encode(), headers={"Content-Type": zpages.TEXT, **sniffing, **(headers or {})}
    )
