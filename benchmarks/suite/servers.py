"""The API server of a measurement: the stand-in, or any one by its kubeconfig, and how objects get there.

Either is reached at one address in the control namespace, and either ends with nothing of the benchmark left on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import urllib3
import yaml

from benchmarks.cluster import Shape, node
from benchmarks.suite.network import API_ADDRESS
from benchmarks.suite.objects import Objects, Write, created
from kproxy.errors import ApiError, InvalidConfig, KernelError, SourceError, one_line
from kproxy.lab.namespaces import Namespace, tied
from kproxy.lab.proxies import wait_for
from kproxy.sources.credentials import ClientSettings, Credentials

NAMESPACE = "kproxy-benchmark"
FILLING = 900.0  # seconds that a stand-in may take to make its objects
AT_ONCE = 8  # requests, while a cluster is written to a real server
LEAVING = 600.0  # seconds that a real server may take to delete what an earlier run left
LOOK_AGAIN = 0.2
_ABSENT, _BEING_DELETED = 404, 409
TYPES = {"PATCH": "application/merge-patch+json"}


class Sent(NamedTuple):
    """A write that was answered. began: just before the request was sent, monotonic seconds."""

    began: float
    answer: bytes


class Writer:
    """Sends writes, one connection kept open for each thread that does."""

    def __init__(self, control: Namespace, kubeconfig: Path) -> None:
        self.control = control
        self._credentials = Credentials(ClientSettings(kubeconfig=str(kubeconfig), user_agent="kproxy-benchmark"))

    def send(self, write: Write) -> Sent:
        """From the control namespace, where the caller has to be. Raises SourceError."""
        session = self._credentials.session()
        headers = {"Content-Type": TYPES.get(write.method, "application/json")}
        if session.authorization:
            headers["Authorization"] = session.authorization
        url = f"{session.base}{write.path}"
        began = time.monotonic()
        try:
            answer = session.pool.request(write.method, url, body=write.body or None, headers=headers, retries=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceError(f"{write.method} {write.path}: {error}") from error
        if answer.status >= 400:
            raise ApiError(f"{write.method} {write.path}", answer.status, one_line(answer.data.decode(), 200))
        return Sent(began, answer.data)

    def send_now(self, write: Write) -> Sent:
        """From any thread."""
        return self.control.call(self.send, write)

    def close(self) -> None:
        self._credentials.close()


@dataclass(frozen=True, slots=True)
class Api:
    """A server that holds a cluster. kubeconfig: for the proxies. seconds: that filling it took."""

    kubeconfig: Path
    writer: Writer
    objects: Objects
    seconds: float


@contextlib.contextmanager
def stand_in(control: Namespace, shape: Shape, folder: Path) -> Iterator[Api]:
    """A process with kproxy's own API stand-in. Raises KernelError when it does not come up."""
    began = time.monotonic()
    port, log = folder / f"port-{shape.services}", folder / f"server-{shape.services}.log"
    size = [str(shape.services), str(shape.endpoints)]
    argv = [sys.executable, "-m", "benchmarks.server", *size, API_ADDRESS, str(port)]
    with log.open("wb") as output:
        server = control.spawn(argv, output)
    try:
        wait_for(lambda: port.exists() or server.poll() is not None, FILLING, 0.05)
        if not port.exists():
            raise KernelError(f"the API stand-in did not start: {log.read_text()[-300:]}")
        kubeconfig = folder / f"kubeconfig-{shape.services}"
        _keep(kubeconfig, _bare(f"http://{API_ADDRESS}:{port.read_text()}"))
        with contextlib.closing(Writer(control, kubeconfig)) as writer:
            yield Api(kubeconfig, writer, Objects(shape), time.monotonic() - began)
    finally:
        server.kill()
        server.wait(timeout=10)


@contextlib.contextmanager
def remote(control: Namespace, shape: Shape, folder: Path, given: Path, step: Callable[[], None]) -> Iterator[Api]:
    """The server that the kubeconfig GIVEN names, with a cluster of SHAPE in a namespace of its own while this lasts.

    It gives the Services their cluster IPs. STEP is called for each Service that is in. What an earlier run left, or
    is still being deleted, is waited for first. Raises InvalidConfig, SourceError, KernelError.
    """
    began = time.monotonic()
    content = _read(given)
    with _relay(control, content, folder) as port, contextlib.ExitStack() as stack:
        kubeconfig = folder / "kubeconfig"
        _keep(kubeconfig, redirected(content, API_ADDRESS, port, given.resolve().parent))
        writer = stack.enter_context(contextlib.closing(Writer(control, kubeconfig)))
        objects = Objects(shape, NAMESPACE, addressed=False)
        for path, item in (("/api/v1/namespaces", _space()), ("/api/v1/nodes", created(node()))):
            remove_leftover(writer, f"{path}/{item['metadata']['name']}", LEAVING)
            stack.callback(_remove, writer, f"{path}/{item['metadata']['name']}")
            writer.send_now(Write("POST", path, json.dumps(item).encode()))
        _fill(writer, objects, step)
        yield Api(kubeconfig, writer, objects, time.monotonic() - began)


def redirected(content: Mapping[str, Any], address: str, port: int, folder: Path) -> dict[str, Any]:
    """A kubeconfig whose current cluster is reached at ADDRESS and PORT under its old name. Pure.

    FOLDER: where the files lie that it names. Raises InvalidConfig.
    """
    result: dict[str, Any] = json.loads(json.dumps(content))
    for cluster in (cluster for cluster in result["clusters"] if cluster["cluster"] is not None):
        inside = cluster["cluster"]
        url = urlsplit(str(inside.get("server", "")))
        if url.scheme == "https":
            inside.setdefault("tls-server-name", url.hostname)
        inside["server"] = url._replace(netloc=f"{address}:{port}").geturl()
        _anchor(inside, ("certificate-authority",), folder)
    for user in result.get("users") or ():
        _anchor(user.get("user") or {}, ("client-certificate", "client-key", "tokenFile"), folder)
    return result


def _anchor(values: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    for key in keys:
        if values.get(key):
            values[key] = str(folder / str(values[key]))


def _current(content: Mapping[str, Any]) -> dict[str, Any]:
    """The one cluster of CONTENT that its current context names, with nothing else in it."""
    contexts = {item["name"]: item["context"] for item in content.get("contexts") or ()}
    context = contexts.get(content.get("current-context"))
    if context is None:
        raise InvalidConfig(["--kubeconfig: current-context: names no context"])

    def named(key: str, name: str) -> list[dict[str, Any]]:
        return [item for item in content.get(key) or () if item["name"] == name]

    clusters = named("clusters", context.get("cluster", ""))
    if not clusters or not urlsplit(str((clusters[0].get("cluster") or {}).get("server", ""))).hostname:
        raise InvalidConfig(["--kubeconfig: clusters: the current one has no server"])
    return {**content, "clusters": clusters, "users": named("users", context.get("user", ""))}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
        return _current(content)
    except (OSError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise InvalidConfig([f"--kubeconfig: {path}: {error}"]) from error


@contextlib.contextmanager
def _relay(control: Namespace, content: Mapping[str, Any], folder: Path) -> Iterator[int]:
    """The port in the control namespace that leads to the server; the relay lives in this process's own namespace."""
    url = urlsplit(content["clusters"][0]["cluster"]["server"])
    listener = control.call(socket.create_server, (API_ADDRESS, 0))
    argv = [sys.executable, "-m", "benchmarks.suite.relay", str(listener.fileno()), str(url.hostname)]
    argv.append(str(url.port or (443 if url.scheme == "https" else 80)))
    with listener, (folder / "relay.log").open("wb") as log:
        process = subprocess.Popen(tied(argv), stdout=log, stderr=log, pass_fds=[listener.fileno()])
        found = int(listener.getsockname()[1])
    try:
        yield found
    finally:
        process.kill()
        process.wait(timeout=10)


def _fill(writer: Writer, objects: Objects, step: Callable[[], None]) -> None:
    def both(number: int, first: Write, service: Write) -> None:
        writer.send(first)
        made = json.loads(writer.send(service).answer)
        ip = (made.get("spec") or {}).get("clusterIP")
        if not ip:
            raise SourceError("the API server gave a Service no cluster IP")
        objects.learn(number, ip)

    waiting = []
    for each in objects.everything():
        waiting.append(writer.control.submit(both, *each))
        if len(waiting) >= AT_ONCE:
            waiting.pop(0).result()
            step()
    for last in waiting:
        last.result()
        step()


def remove_leftover(writer: Writer, path: str, seconds: float) -> None:
    """Delete the object at PATH, if there is one, and wait until it is gone, which a namespace takes its time for.

    Raises SourceError, also when that takes longer than SECONDS.
    """
    end = time.monotonic() + seconds
    while _remove(writer, path):
        if time.monotonic() > end:
            raise SourceError(f"{path} of an earlier run is still being deleted after {seconds:.0f} s")
        time.sleep(LOOK_AGAIN)


def _remove(writer: Writer, path: str) -> bool:
    """Delete the object at PATH; whether there was one. Raises SourceError."""
    try:
        writer.send_now(Write("DELETE", path))
    except ApiError as error:
        if error.status not in (_ABSENT, _BEING_DELETED):
            raise
        return error.status == _BEING_DELETED
    return True


def _space() -> dict[str, Any]:
    return {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": NAMESPACE}}


def _bare(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "benchmark", "cluster": {"server": server}}],
        "users": [{"name": "benchmark", "user": {}}],
        "contexts": [{"name": "benchmark", "context": {"cluster": "benchmark", "user": "benchmark"}}],
        "current-context": "benchmark",
    }


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        yaml.safe_dump(dict(content), file)
