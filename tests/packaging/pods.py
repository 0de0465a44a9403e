"""What a kubelet starts of a DaemonSet, with this tree in the place of the image, confined as the manifest says.

In a mount namespace of its own a container has: the account's token and authority in /run, the root filesystem and
/proc/sys read-only (unless it is privileged), no capability but those that are added, no way to get more. Seccomp is
left out. A ConfigMap is in a folder of the test, and arguments that name its mountPath name that folder instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import probes
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import LAST_SYNC, wait_for
from tests.fakes.apiserver import ApiServer

NODE, TOKEN = "node1", "the-account's-token"
ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
IN_IMAGE = {
    "kproxy": [sys.executable, "-m", "kproxy"],
    "kube-proxy": [str(Path(sys.executable).with_name("kube-proxy"))],
}
MOUNTS = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p {ACCOUNT}
cp "$1"/* {ACCOUNT}
touch /run/xtables.lock
shift
"""
READ_ONLY_PARAMETERS = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys\n"
READ_ONLY_ROOT = "mount -o remount,bind,ro /\n"


class Pod:
    """Of the DaemonSet among `objects`, on a node of one namespace. `folder` takes its files and its log."""

    def __init__(self, objects: list[dict[str, Any]], space: Namespace, server: ApiServer, folder: Path) -> None:
        by_kind = {item["kind"]: item for item in objects}
        self.spec: dict[str, Any] = by_kind["DaemonSet"]["spec"]["template"]["spec"]
        self.log = folder / "log"
        self._space, self._account, self._config = space, folder / "account", folder / "config"
        self._process: subprocess.Popen[bytes] | None = None
        self._account.mkdir()
        (self._account / "token").write_text(TOKEN)
        (self._account / "ca.crt").write_bytes(server.ca_file.read_bytes())
        self._config.mkdir()
        for name, text in by_kind["ConfigMap"]["data"].items():
            text = text.replace("https://control-plane.example:6443", server.url)
            (self._config / name).write_text(self._moved(text))
        self._server = server

    def init(self) -> None:
        """Run the init containers to their end, in order. Raises CommandError when one fails."""
        for container in self.spec.get("initContainers", ()):
            self._space.run(self._argv(container, []), env=self._environment(container), timeout=120)

    def start(self, without: str = "") -> None:
        """Start the container; without one of the capabilities that it adds."""
        (container,) = self.spec["containers"]
        with self.log.open("ab") as log:
            argv = self._argv(container, [without])
            self._process = self._space.spawn(argv, log, self._environment(container))

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def synced(self) -> bool:
        """It has programmed both families."""
        try:
            _, _, text = self._space.call(probes.http_status, "127.0.0.1", METRICS_PORT, "/metrics")
        except OSError:
            return False
        lines = [line for line in text.splitlines() if line.startswith(LAST_SYNC)]
        return sum(float(line.rpartition(" ")[2]) > 0 for line in lines) == 2

    def await_outcome(self, seconds: float) -> bool:
        """Wait until it has programmed both families, ends, or says that a sync failed; whether it was the first."""
        done = wait_for(lambda: self.synced() or not self.running() or "Sync failed" in self.said(), seconds)
        assert done, self.said()
        return self.synced() and self.running()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # ---- inside

    def _argv(self, container: dict[str, Any], without: list[str]) -> list[str]:
        context = container["securityContext"]
        script = MOUNTS
        guard: list[str] = []
        if not context.get("privileged"):
            script += READ_ONLY_PARAMETERS
            assert context["capabilities"]["drop"] == ["ALL"]
            added = [name for name in context["capabilities"]["add"] if name not in without]
            bounds = ",".join(["-all", *(f"+{name.lower()}" for name in added)])
            guard = ["setpriv", "--bounding-set", bounds, "--inh-caps", bounds]
            guard += ["--no-new-privs"] if context["allowPrivilegeEscalation"] is False else []
        if context.get("readOnlyRootFilesystem"):
            script += READ_ONLY_ROOT
        shell = ["unshare", "--mount", "--", "sh", "-c", script + 'exec "$@"', "sh", str(self._account)]
        return [*shell, *guard, *self._command(container)]

    def _command(self, container: dict[str, Any]) -> list[str]:
        words: list[str] = [*container.get("command", ["kproxy"]), *container.get("args", [])]
        program, *arguments = words
        arguments = [self._moved(argument).replace("$(NODE_NAME)", NODE) for argument in arguments]
        return [*IN_IMAGE[os.path.basename(program)], *arguments]

    def _moved(self, text: str) -> str:
        """Paths in the ConfigMap's mount point as they are here."""
        maps = {volume["name"] for volume in self.spec["volumes"] if "configMap" in volume}
        mounts = self.spec["containers"][0]["volumeMounts"]
        for place in (mount["mountPath"] for mount in mounts if mount["name"] in maps):
            text = text.replace(place, str(self._config))
        return text

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        given = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        if "KUBERNETES_SERVICE_HOST" in given:
            given |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._server.port)}
        return given
