"""What kubectl asks of the API stand-in besides objects: discovery, and commands in pods over a websocket.

Commands are sent by the subprotocol v5.channel.k8s.io, in which the first byte of a message says whether it is output
(1), errors (2) or the end (3). Neither a terminal nor standard input is offered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from tests.fakes.apistatus import bad_request
from tests.fakes.apistore import RESOURCES

_PROTOCOL = "v5.channel.k8s.io"
_OUT, _ERR, _END = b"\x01", b"\x02", b"\x03"
VERSION = {"major": "1", "minor": "37", "gitVersion": "v1.37.0", "platform": "linux/amd64"}


class Executed(NamedTuple):
    """How a command in a pod ended."""

    status: int
    out: str = ""
    err: str = ""


Execute = Callable[[dict[str, Any], Sequence[str]], Executed]
"""Runs a command in a pod; called in a thread."""


def discovery(path: str) -> dict[str, Any] | None:
    """The API's description at PATH, None where there is none."""
    groups = sorted({each.api for each in RESOURCES if "/" in each.api})
    match path.strip("/").split("/"):
        case ["version"]:
            return VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(api, groups) for api in groups]}
        case ["api" | "apis", *rest] if found := [each for each in RESOURCES if each.api == "/".join(rest)]:
            resources = [
                {"name": r.plural, "singularName": r.kind.lower(), "kind": r.kind, "namespaced": r.namespaced}
                | {"verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]}
                for r in found
            ]
            listed = {"kind": "APIResourceList", "apiVersion": "v1"}
            return {**listed, "groupVersion": found[0].api, "resources": resources}
    return None


def _group(api: str, groups: Sequence[str]) -> dict[str, Any]:
    name = api.partition("/")[0]
    versions = [{"groupVersion": each, "version": each.partition("/")[2]} for each in groups if each.startswith(name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


async def execute(request: web.Request, pod: dict[str, Any], run: Execute | None) -> web.StreamResponse:
    """Answer an exec in POD. Raises Refusal for another protocol, and where no commands are run."""
    protocols = request.headers.get("Sec-WebSocket-Protocol", "").replace(" ", "").split(",")
    containers = [each["name"] for each in pod["spec"]["containers"]]
    container = request.query.get("container", containers[0])
    if _PROTOCOL not in protocols or run is None:
        raise bad_request(f"you must speak {_PROTOCOL} to a server that runs commands")
    if container not in containers:
        raise bad_request(f"container {container} is not valid for pod {pod['metadata']['name']}")
    socket = web.WebSocketResponse(protocols=[_PROTOCOL])
    await socket.prepare(request)
    done = await asyncio.to_thread(run, pod, request.query.getall("command"))
    for channel, text in ((_OUT, done.out), (_ERR, done.err), (_END, json.dumps(_ended(done.status)))):
        for at in range(0, len(text.encode()), 16384):
            await socket.send_bytes(channel + text.encode()[at : at + 16384])
    await socket.close()
    return socket


def _ended(status: int) -> dict[str, Any]:
    if status == 0:
        return {"metadata": {}, "status": "Success"}
    message = f"command terminated with non-zero exit code: exit status {status}"
    cause = {"reason": "ExitCode", "message": str(status)}
    failure = {"status": "Failure", "message": message, "reason": "NonZeroExitCode"}
    return {"metadata": {}, **failure, "details": {"causes": [cause]}}
