"""A stand-in for the API server, over real HTTP and HTTPS, for tests, benchmarks and demos.

It keeps Services, EndpointSlices, Nodes, ServiceCIDRs, Namespaces and Events; lists with selectors, pages and resource
versions; watches with bookmarks and timeouts; checks bearer tokens and client certificates; and acts out the faults
that it is told to (see apifaults). It does not validate objects, and gives them no defaults but the cluster IP of a
Service that is created over HTTP without one. It forgets everything when it stops.

    with ApiServer() as server:
        server.apply({"kind": "Service", "metadata": {"name": "web"}, "spec": {...}})
        server.inject(Cut(after=1), verb="watch", kind="Service")
        client = ApiClient(ClientSettings(master=server.url))
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from tests.fakes.apifaults import CutBody, Fault, Faults, Forget, Hang, Refuse
from tests.fakes.apistore import RESOURCES, Conflict, Expired, Resource, Selection, Store, Stored
from tests.fakes.apiwatch import Watches, failure_line

GIVEN_AWAY = IPv4Network("10.111.0.0/16")
"""Cluster IPs, for Services that come without one."""
_GZIP_FROM = 128 * 1024
"""Answers from this size on are compressed for those who take that, as the real one does."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was served. verb: list, watch, get, create, update, patch or delete."""

    verb: str
    kind: str
    path: str
    query: dict[str, str]
    user_agent: str


class ApiServer:
    """Serves from `start` to `stop`, or as a context. Its methods may be called from any thread.

    address: of this host, IPv4, to listen at. tls: serve HTTPS with a certificate authority of its own (`ca_file`).
    tokens: the bearer tokens that are let in, None for anybody; may be changed at any time. history: changes of each
    kind that are kept. gone_as: how a watch from a forgotten version is refused, by HTTP status 410 or by an ERROR
    event. bookmark_seconds: between bookmarks. service_cidrs: the version of networking.k8s.io in which they are
    served, "" for not at all.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        tls: bool = False,
        tokens: Iterable[str] | None = None,
        history: int = 10_000,
        gone_as: Literal["status", "event"] = "event",
        bookmark_seconds: float = 60.0,
        service_cidrs: Literal["v1", "v1beta1", ""] = "v1",
    ) -> None:
        self.tokens = None if tokens is None else set(tokens)
        self.gone_as = gone_as
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.served: Counter[tuple[str, str]] = Counter()
        """How many requests came for (verb, kind), failed ones included."""
        self.address, self.port = address, 0
        self._service_cidrs = service_cidrs
        self._addresses = GIVEN_AWAY.hosts()
        self._faults = Faults()
        self._loop = asyncio.new_event_loop()
        self._watches = Watches(self._loop, bookmark_seconds)
        self.store = Store(history, self._watches.wake)
        self._tls = tls
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._context: ssl.SSLContext | None = None
        self._authority: Any = None
        self._thread = threading.Thread(target=self._run_loop, name="api-stand-in", daemon=True)
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket

    # ---- life

    def start(self) -> ApiServer:
        if self._tls:
            self._make_certificates()
        self._thread.start()
        self.come_up()
        return self

    def stop(self) -> None:
        self.go_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._files:
            self._files.cleanup()

    def come_up(self) -> None:
        """Serve, on the same port as before if there was one, with the objects as they are."""
        asyncio.run_coroutine_threadsafe(self._come_up(), self._loop).result(30)

    def go_down(self) -> None:
        """Break all connections and take no more."""
        asyncio.run_coroutine_threadsafe(self._go_down(), self._loop).result(30)

    def __enter__(self) -> ApiServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- objects

    def apply(self, item: dict[str, Any]) -> int:
        """Create or replace an object, named by its kind and metadata; the version that it got. Raises ValueError."""
        return self.store.put(item).version

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Delete an object (namespace "" for kinds without); whether there was one."""
        return self.store.remove(kind, namespace, name) is not None

    @property
    def events(self) -> list[dict[str, Any]]:
        """The Events that clients created, as they are now."""
        return [json.loads(item.body) for item in self.store.objects(Selection("Event"))[1]]

    # ---- behaviour

    def inject(self, fault: Fault, verb: str = "", kind: str = "", times: int = 1) -> None:
        """Let the next TIMES requests of VERB (list, watch, create...; "" any) on KIND ("" any) meet FAULT."""
        self._faults.add(fault, verb, kind, times)

    @property
    def faults_left(self) -> int:
        """How many injected faults no request has met yet."""
        return len(self._faults)

    def clear_faults(self) -> None:
        self._faults.clear()

    def compact(self) -> None:
        """Forget all history: older versions and continue tokens are answered with 410 from now on."""
        self.store.compact()

    def bookmark(self) -> None:
        """Send a bookmark to every watch that takes them, now."""
        self._watches.bookmark()

    def break_connections(self) -> None:
        """Cut every connection, in the middle of whatever it carries."""
        self._loop.call_soon_threadsafe(self._abort_all)

    # ---- how to reach it

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of its authority, PEM; only with tls."""
        assert self._files is not None
        return Path(self._files.name, "ca.crt")

    def client_certificate(self, user: str) -> tuple[bytes, bytes]:
        """A certificate that lets USER in without a token, and its key, PEM; only with tls."""
        certificate: tuple[bytes, bytes] = self._authority.client(user)
        return certificate

    # ---- inside

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_wind_up())
            self._loop.close()

    def _make_certificates(self) -> None:
        from tests.fakes.certificates import Authority

        self._authority = Authority()
        self._files = tempfile.TemporaryDirectory(prefix="kproxy-api-")
        here = Path(self._files.name)
        certificate, key = self._authority.server()
        for name, content in (("ca.crt", self._authority.certificate), ("tls.crt", certificate), ("tls.key", key)):
            (here / name).write_bytes(content)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(here / "ca.crt"))
        context.load_cert_chain(here / "tls.crt", here / "tls.key")
        context.verify_mode = ssl.CERT_OPTIONAL
        self._context = context

    async def _come_up(self) -> None:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listener = socket.create_server((self.address, self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        await web.SockSite(self._runner, self._listener, ssl_context=self._context).start()

    async def _go_down(self) -> None:
        if self._runner is None:
            return
        # asyncio loses a connection that it accepted and whose server is closed in the same round: so no more of them
        # first, then a few rounds for those that it has.
        self._loop.remove_reader(self._listener)
        await asyncio.sleep(0.01)
        for site in list(self._runner.sites):
            await site.stop()
        self._abort_all()
        await self._runner.cleanup()
        self._runner = None

    def _abort_all(self) -> None:
        # Connections in the middle of their TLS handshake are known to the loop only; Python 3.11 tells nobody else.
        for transport in list(getattr(self._loop, "_transports", {}).values()):
            transport.abort()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        resource, namespace, name = self._find(request.path)
        verb = _verb(request, name)
        kind = resource.kind if resource else ""
        agent = request.headers.get("User-Agent", "")
        self.requests.append(Request(verb, kind, request.path, dict(request.query), agent))
        self.served[verb, kind] += 1
        fault = self._faults.take(verb, kind)
        match fault:
            case Refuse(status, retry_after):
                return _status(status, "told to refuse", retry_after)
            case Hang():
                await self._watches.never.wait()
        if not self._lets_in(request):
            return _status(401, "Unauthorized")
        if resource is None:
            return _status(404, "the server could not find the requested resource")
        with contextlib.suppress(ConnectionError):
            return await self._answer(request, verb, resource, namespace, name, fault)
        return web.Response()  # nobody is there to read it

    async def _answer(
        self, request: web.Request, verb: str, resource: Resource, namespace: str, name: str, fault: Fault | None
    ) -> web.StreamResponse:
        query = request.query
        selection = Selection(resource.kind, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        try:
            if verb == "watch":
                return await self._watch(request, selection, fault)
            if verb == "list":
                return await self._list(request, resource, selection, fault)
            return await self._one(request, verb, resource, namespace, name)
        except Expired as error:
            return _status(410, str(error))
        except Conflict as error:
            return _status(409, str(error))
        except ValueError as error:
            return _status(400, str(error))

    async def _watch(self, request: web.Request, selection: Selection, fault: Fault | None) -> web.StreamResponse:
        query = request.query
        version = int(query.get("resourceVersion") or 0)
        if version > self.store.version:
            return _status(504, f"Too large resource version: {version}, current: {self.store.version}")
        if version:
            try:
                self.store.since(selection, version)
            except Expired as error:
                if self.gone_as == "status":
                    raise
                response = await self._watches.begin(request)
                await response.write(failure_line(410, str(error)))
                return response
        return await self._watches.serve(request, self.store, selection, version, fault)

    async def _list(
        self, request: web.Request, resource: Resource, selection: Selection, fault: Fault | None
    ) -> web.StreamResponse:
        query = request.query
        wanted, token = query.get("resourceVersion", ""), query.get("continue", "")
        if wanted and int(wanted) > self.store.version:
            return _status(504, f"Too large resource version: {wanted}, current: {self.store.version}")
        version, items, more, left = self.store.page(selection, int(query.get("limit") or 0), token)
        body = _list_body(resource, version, items, more, left)
        headers = {"Content-Type": "application/json"}
        if isinstance(fault, CutBody):
            return await _half(request, body)
        if isinstance(fault, Forget):
            self.compact()
        if len(body) >= _GZIP_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return web.Response(body=body, headers=headers)

    async def _one(
        self, request: web.Request, verb: str, resource: Resource, namespace: str, name: str
    ) -> web.StreamResponse:
        found = self.store.get(resource.kind, namespace, name) if name else None
        if name and found is None:
            return _status(404, f"{resource.plural} {name!r} not found")
        if verb == "delete":
            found = self.store.remove(resource.kind, namespace, name)
        elif verb != "get":
            item = await request.json()
            if not isinstance(item, dict):
                raise ValueError("the body is no JSON object")
            if verb == "patch" and found:
                item = _merged(json.loads(found.body), item)
            item = _placed(item, resource, namespace, name)
            if verb == "create" and resource.kind == "Service":
                item = self._with_address(item)
            found = self.store.put(item, new=verb == "create")
        if found is None:
            return _status(404, f"{resource.plural} {name!r} not found")
        return web.Response(body=found.body, content_type="application/json", status=201 if verb == "create" else 200)

    def _find(self, path: str) -> tuple[Resource | None, str, str]:
        """Resource, namespace and name that PATH stands for."""
        for resource in RESOURCES:
            if resource.plural == "servicecidrs" and resource.api != f"networking.k8s.io/{self._service_cidrs}":
                continue
            if not path.startswith(f"{resource.prefix}/"):
                continue
            parts = path[len(resource.prefix) + 1 :].split("/")
            namespace = ""
            if parts[0] == "namespaces" and resource.namespaced and len(parts) > 2:
                namespace, parts = parts[1], parts[2:]
            if parts[0] == resource.plural and len(parts) <= 2:
                return resource, namespace, parts[1] if len(parts) == 2 else ""
        return None, "", ""

    def _with_address(self, item: dict[str, Any]) -> dict[str, Any]:
        spec = item.get("spec")
        if not isinstance(spec, dict) or spec.get("clusterIP") or spec.get("type") == "ExternalName":
            return item
        ip = str(next(self._addresses))
        return {**item, "spec": {**spec, "clusterIP": ip, "clusterIPs": [ip]}}

    def _lets_in(self, request: web.Request) -> bool:
        if self.tokens is None:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token in self.tokens:
            return True
        return bool(request.transport and request.transport.get_extra_info("peercert"))


async def _wind_up() -> None:
    """Let what still runs in this loop end, so that no socket is left open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)  # aborted transports close their sockets in the loop's next rounds


def _verb(request: web.Request, name: str) -> str:
    if request.method == "GET" and not name:
        return "watch" if request.query.get("watch", "") in ("1", "true") else "list"
    return {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
        request.method, request.method.lower()
    )


def _status(code: int, message: str, retry_after: int = 0) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code}
    headers = {"Retry-After": str(retry_after)} if retry_after else None
    return web.json_response(body, status=code, headers=headers)


def _list_body(resource: Resource, version: int, items: list[Stored], more: str, left: int) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if more:
        metadata |= {"continue": more, "remainingItemCount": left}
    head = json.dumps({"kind": f"{resource.kind}List", "apiVersion": resource.api, "metadata": metadata})
    return head[:-1].encode() + b', "items": [' + b",".join(item.body for item in items) + b"]}"


async def _half(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport:
        request.transport.close()  # what was written still gets there
    return response


def _placed(item: dict[str, Any], resource: Resource, namespace: str, name: str) -> dict[str, Any]:
    """ITEM as the object at the place that the request named."""
    metadata = dict(item.get("metadata") or {})
    if namespace:
        metadata["namespace"] = namespace
    if name:
        metadata["name"] = name
    return {**item, "kind": resource.kind, "apiVersion": item.get("apiVersion", resource.api), "metadata": metadata}


def _merged(target: Any, patch: Any) -> Any:
    """TARGET after a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result
