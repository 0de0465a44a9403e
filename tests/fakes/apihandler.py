"""The requests of the API stand-in: who may come in, which object or list is meant, and what the answer is."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Literal

from aiohttp import web

from tests.fakes.apifaults import CutBody, Fault, Faults, Forget, Hang, Refuse
from tests.fakes.apistore import RESOURCES, Conflict, Expired, Resource, Selection, Store, Stored
from tests.fakes.apiwatch import Watches, failure_line

CLUSTER_IPS = IPv4Network("10.111.0.0/16")
"""For Services that come without a cluster IP."""
_GZIP_FROM = 128 * 1024
"""Answers from this size on are compressed for clients that accept it, as by the real server."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was served. verb: list, watch, get, create, update, patch or delete."""

    verb: str
    kind: str
    path: str
    query: dict[str, str]
    user_agent: str


class Handler:
    """Answers requests out of a store. `serve` is for the server's event loop, the rest for any thread.

    tokens: the bearer tokens that are accepted, None for any client. gone_as: how a watch from a forgotten version is
    refused, by HTTP status 410 or by an ERROR event. service_cidrs: the version of networking.k8s.io in which they are
    served, "" for not at all.
    """

    def __init__(
        self,
        store: Store,
        watches: Watches,
        tokens: Iterable[str] | None,
        gone_as: Literal["status", "event"],
        service_cidrs: Literal["v1", "v1beta1", ""],
    ) -> None:
        self.tokens = None if tokens is None else set(tokens)
        self.faults = Faults()
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.served: Counter[tuple[str, str]] = Counter()
        """How many requests came for (verb, kind), failed ones included."""
        self.gone_as = gone_as
        self._store, self._watches, self._service_cidrs = store, watches, service_cidrs
        self._cluster_ips = CLUSTER_IPS.hosts()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        resource, namespace, name = self._find(request.path)
        verb = _verb(request, name)
        kind = resource.kind if resource else ""
        agent = request.headers.get("User-Agent", "")
        self.requests.append(Request(verb, kind, request.path, dict(request.query), agent))
        self.served[verb, kind] += 1
        fault = self.faults.take(verb, kind)
        match fault:
            case Refuse(status, retry_after):
                return _status(status, "told to refuse", retry_after)
            case Hang():
                await self._watches.never.wait()
        if not self._is_authenticated(request):
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
        version = int(request.query.get("resourceVersion") or 0)
        if version > self._store.version:
            return _too_large(version, self._store)
        if version:
            try:
                self._store.since(selection, version)
            except Expired as error:
                if self.gone_as == "status":
                    raise
                response = await self._watches.begin(request)
                await response.write(failure_line(410, str(error)))
                return response
        return await self._watches.serve(request, self._store, selection, version, fault)

    async def _list(
        self, request: web.Request, resource: Resource, selection: Selection, fault: Fault | None
    ) -> web.StreamResponse:
        query = request.query
        wanted, token = query.get("resourceVersion", ""), query.get("continue", "")
        if wanted and int(wanted) > self._store.version:
            return _too_large(int(wanted), self._store)
        version, items, more, left = self._store.page(selection, int(query.get("limit") or 0), token)
        body = _list_body(resource, version, items, more, left)
        headers = {"Content-Type": "application/json"}
        if isinstance(fault, CutBody):
            return await _half(request, body)
        if isinstance(fault, Forget):
            self._store.compact()
        if len(body) >= _GZIP_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return web.Response(body=body, headers=headers)

    async def _one(
        self, request: web.Request, verb: str, resource: Resource, namespace: str, name: str
    ) -> web.StreamResponse:
        found = self._store.get(resource.kind, namespace, name) if name else None
        if name and found is None:
            return _status(404, f"{resource.plural} {name!r} not found")
        if verb == "delete":
            found = self._store.remove(resource.kind, namespace, name)
        elif verb != "get":
            item = await request.json()
            if not isinstance(item, dict):
                raise ValueError("the body is no JSON object")
            if verb == "patch" and found:
                item = _merged(json.loads(found.body), item)
            item = _placed(item, resource, namespace, name)
            if verb == "create" and resource.kind == "Service":
                item = self._with_cluster_ip(item)
            found = self._store.put(item, new=verb == "create")
        if found is None:
            return _status(404, f"{resource.plural} {name!r} not found")
        return web.Response(body=found.body, content_type="application/json", status=201 if verb == "create" else 200)

    def _find(self, path: str) -> tuple[Resource | None, str, str]:
        """The resource, namespace and name that PATH stands for."""
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

    def _with_cluster_ip(self, item: dict[str, Any]) -> dict[str, Any]:
        spec = item.get("spec")
        if not isinstance(spec, dict) or spec.get("clusterIP") or spec.get("type") == "ExternalName":
            return item
        ip = str(next(self._cluster_ips))
        return {**item, "spec": {**spec, "clusterIP": ip, "clusterIPs": [ip]}}

    def _is_authenticated(self, request: web.Request) -> bool:
        if self.tokens is None:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token in self.tokens:
            return True
        return bool(request.transport and request.transport.get_extra_info("peercert"))


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


def _too_large(version: int, store: Store) -> web.Response:
    return _status(504, f"Too large resource version: {version}, current: {store.version}")


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
