"""A daemon of this process's own at work in a network namespace: the real parts, over the real kernel."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

from kproxy.clocks import SystemClock
from kproxy.config.fields import ProxyMode
from kproxy.config.files import from_text
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import Manifests, wait_for
from kproxy.model.plans import Family
from kproxy.sync.daemon import Daemon
from kproxy.sync.event_queue import EventQueue

NODE = "node1"
SOON = 60.0
"""Seconds for what takes tenths of a second; the machine may be busy."""
HEALTHZ, METRICS = 10256, 10249


class RunningDaemon:
    """A daemon that follows a folder of manifests, from entering the context to leaving it.

    config: fields of the configuration besides the mode. ended: the daemon's thread is over.
    """

    def __init__(self, space: Namespace, folder: Path, mode: ProxyMode, **config: Any) -> None:
        self.space = space
        self.manifests = Manifests(folder)
        self._fields = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode.value,
            "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
            "healthzBindAddress": f"127.0.0.1:{HEALTHZ}",
            "metricsBindAddress": f"127.0.0.1:{METRICS}",
            "iptables": {"minSyncPeriod": "1ms"},
            "ipvs": {"minSyncPeriod": "1ms"},
            "nftables": {"minSyncPeriod": "1ms"},
            **config,
        }
        self.queue = EventQueue()
        self.ended = False
        self.failure: BaseException | None = None
        self.daemon: Daemon | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunningDaemon:
        # A thread is born into the network namespace of the thread that starts it, and so are its own.
        self._thread = self.space.call(self._start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.queue.stop()
        self.queue.wake()
        assert self._thread is not None
        self._thread.join(2 * SOON)
        assert not self._thread.is_alive(), "the daemon does not end"
        if error is None and self.failure is not None:
            raise self.failure

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="daemon", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        options = Options(from_text(json.dumps(self._fields)), NODE, manifests=(self.manifests.folder,))
        try:
            with ExitStack() as stack:
                self.daemon = Daemon(options, self.queue, stack, Containment(SystemClock()))
                self.daemon.run()
        except BaseException as error:
            self.failure = error
        finally:
            self.ended = True

    # ---- what it is given

    def put(self, number: int, *endpoints: str, family: Family | None = None, protocol: str = "TCP") -> None:
        """Service web-NUMBER and its slices, in one family or both. endpoints: last parts of pods' addresses."""
        families = list(Family) if family is None else [family]
        self.manifests.put(f"web-{number}.json", objects(number, endpoints or ("1",), families, protocol))

    # ---- what it did

    def rules(self, family: Family) -> str:
        """What the kernel has of a family, as the kernel's own tools print it."""
        if self._fields["mode"] == "nftables":
            return self.space.run(["nft", "list", "ruleset", "ip" if family is Family.IPV4 else "ip6"])
        tool = "iptables-save" if family is Family.IPV4 else "ip6tables-save"
        text = self.space.run([tool])
        return text + (self.space.run(["ipvsadm", "-Sn"]) if self._fields["mode"] == "ipvs" else "")

    def programs(self, number: int, family: Family, seconds: float = SOON) -> bool:
        """Whether Service web-NUMBER's cluster IP is in the kernel within `seconds`."""
        more = r"(?![\d.])" if family is Family.IPV4 else r"(?![\da-f:])"
        ip = re.compile(re.escape(cluster_ip(number, family)) + more)
        return wait_for(lambda: ip.search(self.rules(family)) is not None, seconds, 0.05)

    def get(self, path: str, port: int = METRICS) -> tuple[int, str]:
        """Status and text of a page."""

        def ask() -> tuple[int, str]:
            connection = HTTPConnection("127.0.0.1", port, timeout=SOON)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()

        return self.space.call(ask)

    def internal_errors(self) -> dict[str, int]:
        """kproxy_internal_errors_total by stage, from /metrics."""
        found = {}
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith("kproxy_internal_errors_total{"):
                found[line.partition('stage="')[2].partition('"')[0]] = int(float(line.rpartition(" ")[2]))
        return found


def cluster_ip(number: int, family: Family) -> str:
    """Of Service web-NUMBER, as iptables-save and nft print it."""
    return f"10.96.1.{number}" if family is Family.IPV4 else f"fd00:96::1:{number:x}"


def objects(number: int, endpoints: tuple[str, ...], families: list[Family], protocol: str) -> list[Mapping[str, Any]]:
    """A Service and a slice for each family."""
    name = f"web-{number}"
    ips = [cluster_ip(number, family) for family in families]
    port = {"name": "http", "port": 80, "protocol": protocol, "targetPort": 8080, "nodePort": 30000 + number}
    found: list[Mapping[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": ips[0], "clusterIPs": ips, "ports": [port]},
        }
    ]
    for family in families:
        prefix = "10.244.1." if family is Family.IPV4 else "fd00:244:1::"
        found.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-{family.value.lower()}",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family.value,
                "ports": [{"name": "http", "port": 8080, "protocol": protocol}],
                "endpoints": [{"addresses": [f"{prefix}{e}"], "conditions": {"ready": True}} for e in endpoints],
            }
        )
    return found
