"""The requests of the API stand-in: who may come in, which object or list is meant, and what the answer is.

What a real server refuses is refused with the same status and Status object: see apistatus and apivalidation. Not
served, and refused with 404 or 405: subresources except pods/exec, deletion of collections, apply and JSON patches,
protobuf bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import json
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Literal

from aiohttp import web

from tests.fakes import apiexec, apistatus
from tests.fakes.apifaults import CutBody, Fault, Faults, Forget, Hang, Refuse
from tests.fakes.apiselectors import check
from tests.fakes.apistatus import Cause, Refusal, bad_request
from tests.fakes.apistore import ACTIVE, NAMESPACES, RESOURCES, Resource, Selection, Store, Stored
from tests.fakes.apivalidation import defaulted, is_true, option_problems, problems
from tests.fakes.apiwatch import Start, Watches, failure_line

CLUSTER_IPS = IPv4Network("10.111.0.0/16")
"""For Services that come without a cluster IP."""
_GZIP_FROM = 128 * 1024
"""Answers from this size on are compressed for clients that accept it, as by the real server."""
_BODIES = {
    "create": ("application/json",),
    "update": ("application/json",),
    # Of a strategic merge patch only what a plain one does too: lists are replaced.
    "patch": ("application/merge-patch+json", "application/strategic-merge-patch+json"),
}
_METHODS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was served.

    verb: list, watch, stream (a watch that begins with a list), get, create, update, patch, delete or exec; else the
    method.
    """

    verb: str
    kind: str
    path: str
    query: dict[str, str]
    user_agent: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What differs from server to server.

    gone_as: how a watch from a forgotten version is refused, by HTTP status 410 or by an ERROR event. service_cidrs:
    the version of networking.k8s.io in which they are served, "" for not at all. watch_lists: whether lists are
    streamed (sendInitialEvents). watch_cache: whether there is one, out of which a list of any version (0) comes in
    one piece, whatever its limit. termination_seconds: that the deletion of a Namespace takes.
    """

    gone_as: Literal["status", "event"] = "event"
    service_cidrs: Literal["v1", "v1beta1", ""] = "v1"
    watch_lists: bool = True
    watch_cache: bool = True
    termination_seconds: float = 0.1


@dataclass(frozen=True, slots=True)
class _Place:
    """What a path stands for. name: "" for all objects."""

    resource: Resource
    namespace: str
    name: str


class Handler:
    """Answers requests out of a store. `serve` is for the server's event loop, the rest for any thread.

    tokens: the bearer tokens that are accepted, None for any client.
    """

    def __init__(self, store: Store, watches: Watches, tokens: Iterable[str] | None, rules: Rules) -> None:
        self.tokens = None if tokens is None else set(tokens)
        self.faults = Faults()
        self.requests: deque[Request] = deque(maxlen=100_000)
        self.served: Counter[tuple[str, str]] = Counter()
        """How many requests came for (verb, kind), failed ones included."""
        self.rules = rules
        self.execute: apiexec.Execute | None = None
        self._store, self._watches = store, watches
        self._cluster_ips = CLUSTER_IPS.hosts()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if described := apiexec.discovery(request.path):
            return web.json_response(described)
        place = self._find(request.path)
        verb, kind = _verb(request, place), place.resource.kind if place else ""
        agent = request.headers.get("User-Agent", "")
        self.requests.append(Request(verb, kind, request.path, dict(request.query), agent))
        self.served[verb, kind] += 1
        fault = self.faults.take(verb, kind)
        try:
            match fault:
                case Refuse(status, retry_after):
                    raise apistatus.by_code(status, "told to refuse", retry_after)
                case Hang():
                    await self._watches.never.wait()
            if not self._is_authenticated(request):
                raise apistatus.by_code(401, "Unauthorized")
            if place is None:
                raise apistatus.no_such_resource()
            with contextlib.suppress(ConnectionError):
                return await self._answer(request, verb, place, fault)
        except Refusal as error:
            return _refused(error)
        return web.Response()  # nobody is there to read it

    async def _answer(self, request: web.Request, verb: str, place: _Place, fault: Fault | None) -> web.StreamResponse:
        resource, query = place.resource, request.query
        if verb == "exec":
            if pod := self._store.get(resource.kind, place.namespace, place.name):
                return await apiexec.execute(request, json.loads(pod.body), self.execute)
            raise resource.named(place.name).not_found()
        if verb not in ("list", "watch", "stream"):
            return await self._one(request, verb, place)
        selection = Selection(
            resource.kind, place.namespace, query.get("labelSelector", ""), query.get("fieldSelector", "")
        )
        if causes := option_problems(query, self.rules.watch_lists):
            raise apistatus.Subject("meta.k8s.io/v1", "", "ListOptions").invalid(causes)
        check(selection.kind, selection.labels, selection.fields)
        wanted = query.get("resourceVersion") or "0"
        if not wanted.isdecimal():
            raise bad_request(f'resourceVersion: Invalid value: "{wanted}"')
        if int(wanted) > self._store.version:
            raise apistatus.too_large_version(int(wanted), self._store.version)
        if verb != "list":
            return await self._watch(request, resource, selection, int(wanted), fault)
        return await self._list(request, resource, selection, fault)

    async def _watch(
        self, request: web.Request, resource: Resource, selection: Selection, version: int, fault: Fault | None
    ) -> web.StreamResponse:
        asked = request.query.get("sendInitialEvents")
        streamed = is_true(request.query, "sendInitialEvents")
        if version and not streamed:
            try:
                self._store.since(selection, version)
            except Refusal as error:
                if self.rules.gone_as == "status":
                    raise
                response = await self._watches.begin(request)
                await response.write(failure_line(error))
                return response
        elif asked is not None and not streamed:
            version = self._store.version
        start = Start(resource.api, selection, 0 if streamed else version, streamed)
        return await self._watches.serve(request, self._store, start, fault)

    async def _list(
        self, request: web.Request, resource: Resource, selection: Selection, fault: Fault | None
    ) -> web.StreamResponse:
        query = request.query
        limit, token = int(query.get("limit") or 0), query.get("continue", "")
        if self.rules.watch_cache and query.get("resourceVersion") == "0" and not token:
            limit = 0
        elif token and query.get("resourceVersion"):
            raise bad_request("specifying resource version is not allowed when using continue")
        version, items, more, left = self._store.page(selection, limit, token)
        body = _list_body(resource, version, items, more, left)
        headers = {"Content-Type": "application/json"}
        if isinstance(fault, CutBody):
            return await _half(request, body)
        if isinstance(fault, Forget):
            self._store.compact()
        if len(body) >= _GZIP_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return web.Response(body=body, headers=headers)

    # ---- one object

    async def _one(self, request: web.Request, verb: str, place: _Place) -> web.StreamResponse:
        resource = place.resource
        subject = resource.named(place.name)
        whole = not place.name and (place.namespace or not resource.namespaced)
        if verb not in _METHODS.values() if place.name else verb != "create" or not whole:
            raise apistatus.method_not_allowed()
        found = self._store.get(resource.kind, place.namespace, place.name) if place.name else None
        if place.name and found is None:
            raise subject.not_found()
        if verb == "delete":
            found = self._delete(place)
        elif verb != "get":
            found = self._written(verb, place, await _body(request, verb), found)
        if found is None:  # somebody else has deleted it
            raise subject.not_found()
        return web.Response(body=found.body, content_type="application/json", status=201 if verb == "create" else 200)

    def _written(self, verb: str, place: _Place, sent: dict[str, Any], found: Stored | None) -> Stored:
        """SENT as the request's body says, in place of FOUND. Raises Refusal."""
        resource, before = place.resource, json.loads(found.body) if found else None
        item = _merged(before, sent) if verb == "patch" else sent
        for key, value in (("kind", resource.kind), ("apiVersion", resource.api)):
            if item.setdefault(key, value) != value and (verb == "create" or resource.kind != "Event"):
                raise bad_request(f"the {key} in the data ({item[key]}) does not match the expected one ({value})")
        try:
            item["metadata"] = metadata = _identified(dict(item.get("metadata") or {}), place)
            expected = (sent.get("metadata") or {}).get("resourceVersion") or ""
            if verb == "create":
                self._admit(resource.named(metadata.get("name") or ""), place.namespace)
                item = self._created(item)
            elif resource.kind == "Service" and before:
                item["spec"] = _with_kept_address(item.get("spec") or {}, before.get("spec") or {})
            causes = problems(resource.api, resource.kind, item, before)
        except (TypeError, AttributeError, ValueError) as error:
            raise bad_request(f'{resource.kind} in version "{resource.api}" cannot be handled: {error}') from error
        if causes:
            raise resource.named(metadata.get("name") or "").invalid(causes)
        if verb == "create":
            item = defaulted(resource.kind, item)
            if expected:
                raise Refusal(500, "", "resourceVersion should not be set on objects to be created")
            return self._store.put(item, new=True)
        if before and metadata.setdefault("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: "
            raise resource.named(place.name).conflict(why + before["metadata"]["uid"])
        return self._store.put(item, expected=expected)

    def _admit(self, subject: apistatus.Subject, namespace: str) -> None:
        """Raises Refusal where NAMESPACE takes nothing new."""
        if not namespace:
            return
        space = self._store.get("Namespace", "", namespace)
        if space is None:
            raise apistatus.Subject("v1", "namespaces", "Namespace", namespace).not_found()
        if space.terminating:
            cause = Cause("metadata.namespace", "NamespaceTerminating", f"namespace {namespace} is being terminated")
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise subject.forbidden(why, [cause])

    def _created(self, item: dict[str, Any]) -> dict[str, Any]:
        """ITEM with what the server gives to a new object."""
        item["metadata"] |= {"creationTimestamp": _now(), "generation": 1}
        if item["kind"] == "Namespace":
            return {**item, **ACTIVE}
        spec = item.get("spec")
        if item["kind"] == "Service" and spec and not spec.get("clusterIP") and spec.get("type") != "ExternalName":
            item = {**item, "spec": {**spec, "clusterIP": str(next(self._cluster_ips))}}
        return item

    def _delete(self, place: _Place) -> Stored | None:
        """The object's last state. A Namespace is terminated first, and its content and itself go later."""
        resource, name = place.resource, place.name
        if resource.kind != "Namespace":
            return self._store.remove(resource.kind, place.namespace, name)
        found = self._store.get("Namespace", "", name)
        if found is None:
            return None
        if name in NAMESPACES:
            raise resource.named(name).forbidden("this namespace may not be deleted")
        if found.terminating:
            why = "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace"
            raise resource.named(name).conflict(f"{why} will automatically be purged by the system.")
        item = json.loads(found.body)
        item["metadata"]["deletionTimestamp"] = _now()
        item["status"] = {"phase": "Terminating"}
        loop = asyncio.get_running_loop()
        loop.call_later(self.rules.termination_seconds, self._store.remove, "Namespace", "", name)
        return self._store.put(item)

    def _find(self, path: str) -> _Place | None:
        """What PATH stands for."""
        for resource in RESOURCES:
            if resource.plural == "servicecidrs" and resource.api != f"networking.k8s.io/{self.rules.service_cidrs}":
                continue
            if not path.startswith(f"{resource.prefix}/"):
                continue
            parts = path[len(resource.prefix) + 1 :].split("/")
            namespace = ""
            if parts[0] == "namespaces" and resource.namespaced and len(parts) > 2:
                namespace, parts = parts[1], parts[2:]
            if resource.kind == "Pod" and len(parts) == 3 and parts[2] == "exec":
                parts = parts[:2]
            if parts[0] == resource.plural and len(parts) <= 2:
                return _Place(resource, namespace, parts[1] if len(parts) == 2 else "")
        return None

    def _is_authenticated(self, request: web.Request) -> bool:
        if self.tokens is None:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token in self.tokens:
            return True
        return bool(request.transport and request.transport.get_extra_info("peercert"))


def _verb(request: web.Request, place: _Place | None) -> str:
    named = place is not None and place.name
    if place is not None and place.resource.kind == "Pod" and request.path.endswith(f"/{place.name}/exec"):
        return "exec"
    if request.method == "GET" and not named:
        if not is_true(request.query, "watch"):
            return "list"
        return "stream" if is_true(request.query, "sendInitialEvents") else "watch"
    if request.method == "POST" and not named:
        return "create"
    return _METHODS.get(request.method, request.method)


async def _body(request: web.Request, verb: str) -> dict[str, Any]:
    # A client that sends none is a shell's, and taken to have meant the first.
    accepted, sort = _BODIES[verb], request.content_type
    if sort not in (*accepted, "application/octet-stream"):
        raise apistatus.unsupported_media_type(accepted)
    try:
        item = await request.json()
    except ValueError as error:
        raise bad_request(f"the body cannot be read as JSON: {error}") from error
    if not isinstance(item, dict):
        raise bad_request("the body is no JSON object")
    return item


def _identified(metadata: dict[str, Any], place: _Place) -> dict[str, Any]:
    """METADATA of the object at PLACE. Raises Refusal where it says something else."""
    if place.namespace and metadata.setdefault("namespace", place.namespace) != place.namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if place.name and metadata.setdefault("name", place.name) != place.name:
        name = metadata["name"]
        raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({place.name})")
    return metadata


def _with_kept_address(spec: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """An update that leaves the cluster IP out means the old one."""
    if spec.get("type") == "ExternalName" or spec.get("clusterIP"):
        return spec
    return {**spec, **{key: before[key] for key in ("clusterIP", "clusterIPs") if key in before}}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refused(error: Refusal) -> web.Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return web.json_response(error.status(), status=error.code, headers=headers)


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
