"""A node with an API server of its own, and kube-proxy's pod on it, as far as the proxy can tell: the paths, the
environment and the network of a container of kubeadm's DaemonSet."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kproxy.lab.namespaces import Namespace
from tests.dropin.volumes import Volume
from tests.fakes.apiserver import ApiServer

CONFIG = "/var/lib/kube-proxy"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PROGRAM = Path(sys.executable).parent / "kube-proxy"

# In a mount namespace of its own, where nobody else sees it: $1 and $2 are the volumes' folders on the host.
MOUNTS = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /run
mkdir -p {CONFIG} {ACCOUNT}
mount --bind "$1" {CONFIG}
mount --bind "$2" {ACCOUNT}
shift 2
exec "$@"
"""


@dataclass(slots=True)
class Pod:
    """The pod. config, account: what is mounted at `config` and `account`."""

    node: Namespace
    server: ApiServer
    folder: Path
    config: Volume
    account: Volume
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def on(cls, node: Namespace, server: ApiServer, folder: Path) -> Pod:
        return cls(node, server, folder, Volume(folder / "config"), Volume(folder / "account"))

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def trust(self, token: str) -> None:
        """Have the account's volume with `token` in it, as the kubelet renews it."""
        authority = Path(self.server.ca_file or "").read_text()
        self.account.put({"ca.crt": authority, "token": token, "namespace": "kube-system"})

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        volumes = (str(self.config.folder), str(self.account.folder))
        argv = ["unshare", "--mount", "sh", "-c", MOUNTS, "pod", *volumes, str(PROGRAM), *arguments]
        with self.log.open("ab") as log:
            self.process = self.node.spawn(argv, log, environment)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, timeout: float = 60) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        """Its exit status, once it ends by itself."""
        assert self.process is not None
        return self.process.wait(timeout)

    def rules(self) -> str:
        return self.node.run(["iptables-nft-save"])
