"""kubectl as the way to a cluster: objects by `get`, commands in kproxy's pods by `exec`. Only the standard library.

Every access is kubectl's own, with the user's kubeconfig, context and rights. A call has a time limit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from kproxy.errors import InvalidInput, SourceError

SELECTORS = ("app.kubernetes.io/name=kproxy", "k8s-app=kube-proxy")
"""Labels of the pods: kproxy's own DaemonSet, else that of kubeadm, which may run kproxy's image."""
_CONTAINERS = ("kproxy", "kube-proxy")
_PROBLEM = "kproxy: error: "
_HEAD = re.compile(r"error: |Error from server( \(\w+\))?: ")
_ENDED = "command terminated with exit code"


class Result(NamedTuple):
    """A finished process. errors: the lines of its standard error."""

    status: int
    out: str
    errors: tuple[str, ...]


class ProxyPod(NamedTuple):
    """A pod of kproxy. config: the path of its configuration, "" for none. problem: why nothing runs in it, or ""."""

    node: str
    namespace: str
    name: str
    container: str
    config: str
    problem: str


class Kubectl:
    """Runs kubectl. flags: those that say which cluster and user. namespace: "" for that of the context."""

    def __init__(self, flags: Sequence[str] = (), namespace: str = "", timeout: float = 60.0) -> None:
        """TIMEOUT: seconds for each call."""
        self._flags, self._timeout = tuple(flags), timeout
        self._namespace = ("-n", namespace) if namespace else ()

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object of the namespace. Raises InvalidInput if there is none, SourceError."""
        text = self._ask("get", kind, name, *self._namespace, "--ignore-not-found", "-o", "json")
        if not text.strip():
            where = f"namespace {self._namespace[1]}" if self._namespace else "the context's namespace; see -n"
            raise InvalidInput(f"there is no {kind} {name} in {where}")
        found: dict[str, Any] = json.loads(text)
        return found

    def nodes(self) -> list[str]:
        """The names of the nodes on which kproxy can run. Raises SourceError."""
        lines = self._ask("get", "nodes", "-l", "kubernetes.io/os!=windows", "-o", "name").split()
        return [line.partition("/")[2] for line in lines]

    def proxy_pods(self, namespace: str) -> dict[str, ProxyPod]:
        """The pods of kproxy by node. Raises SourceError, also when there are none."""
        for selector in SELECTORS:
            text = self._ask("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
            if items := json.loads(text)["items"]:
                return by_node(items)
        wanted = " or ".join(SELECTORS)
        raise SourceError(f"there are no pods with the label {wanted} in namespace {namespace}; see --proxy-namespace")

    def execute(self, pod: ProxyPod, command: Sequence[str]) -> Result:
        """Run a command in the pod. Raises SourceError when it does not end in time, or there is no kubectl."""
        return self._run(_exec(pod, command), subprocess.DEVNULL)

    def attach(self, pod: ProxyPod, command: Sequence[str]) -> int:
        """Run a command in the pod, with this process's output, until it ends; its exit status. Raises SourceError."""
        terminal = ("-it",) if sys.stdin.isatty() and sys.stdout.isatty() else ()
        try:
            return subprocess.run(["kubectl", *self._flags, *_exec(pod, command, *terminal)], check=False).returncode
        except OSError as error:
            raise _not_started(error) from error

    def _ask(self, *args: str) -> str:
        done = self._run(args, None)
        if done.status:
            raise SourceError(f"kubectl: {reason(done)}")
        return done.out

    def _run(self, args: Sequence[str], stdin: int | None) -> Result:
        # Files, not pipes: a helper that kubectl's credential plugin leaves behind would keep a pipe open.
        with TemporaryFile() as out, TemporaryFile() as err:
            try:
                process = subprocess.Popen(["kubectl", *self._flags, *args], stdin=stdin, stdout=out, stderr=err)
            except OSError as error:
                raise _not_started(error) from error
            try:
                status = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise SourceError(f"no answer within {self._timeout:g} s; see --timeout") from None
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            err.seek(0)
            errors = err.read().decode(errors="replace").splitlines()
            kept = tuple(line for line in errors if line.strip() and not line.startswith(_ENDED))
            return Result(status, out.read().decode(errors="replace"), kept)


def reason(done: Result) -> str:
    """Why a call failed, in one line: every problem that kproxy names, else what kubectl says last."""
    if said := [line.removeprefix(_PROBLEM) for line in done.errors if line.startswith(_PROBLEM)]:
        return "; ".join(said)
    line = done.errors[-1].strip() if done.errors else f"exit status {done.status}, without a word"
    if "executable file not found" in line:
        return "the pod has no kproxy; is it kube-proxy itself?"
    return line[found.end() :] if (found := _HEAD.match(line)) else line


def by_node(items: Iterable[Mapping[str, Any]]) -> dict[str, ProxyPod]:
    """A pod for each node; one in which a command can run where a node has several, as in a rolling update."""
    found: dict[str, ProxyPod] = {}
    for item in items:
        pod = _proxy_pod(item)
        if pod.node and (pod.node not in found or found[pod.node].problem):
            found[pod.node] = pod
    return found


def _proxy_pod(item: Mapping[str, Any]) -> ProxyPod:
    meta, spec, status = item["metadata"], item["spec"], item.get("status") or {}
    named = {each["name"]: each for each in spec["containers"]}
    container = next((named[name] for name in _CONTAINERS if name in named), spec["containers"][0])
    states = {each["name"]: each.get("state") or {} for each in status.get("containerStatuses") or ()}
    state, problem = states.get(container["name"], {}), ""
    if "running" not in state:
        phase = status.get("phase", "Unknown")
        waits = (state.get("waiting") or state.get("terminated") or {}).get("reason") or phase
        problem = f"pod {meta['name']} does not run: {waits}"
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    return ProxyPod(
        spec.get("nodeName", ""), meta["namespace"], meta["name"], container["name"], _config(words), problem
    )


def _config(words: Sequence[str]) -> str:
    """The value of --config in a command line."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--config="):
            return word.partition("=")[2]
        if word == "--config":
            return after
    return ""


def _exec(pod: ProxyPod, command: Sequence[str], *options: str) -> list[str]:
    return ["exec", *options, "-n", pod.namespace, pod.name, "-c", pod.container, "--", *command]


def _not_started(error: OSError) -> SourceError:
    return SourceError(f"kubectl cannot be started: {error.strerror or error}; is it in PATH?")
