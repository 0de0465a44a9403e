"""Planning, syncing and forwarding do not block each other: with 2,000 Services and 1,000 connections a second, syncs
that change Services and endpoints cost no connection."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kproxy.lab import links
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import Manifests, Proxy, wait_for
from kproxy.model.plans import Family

SERVICES = 2000
FEW = SERVICES // 10
RATE, SECONDS = 1000, 6
LOAD = str(Path(__file__).with_name("load.py"))
PODS = ("10.244.1.1", "10.244.1.2", "10.244.1.3")
WEB = "10.96.0.1"


def service(number: int) -> list[dict[str, Any]]:
    """The first one is asked; of the others only their number counts."""
    name, ip = f"web-{number}", f"10.96.{number // 250}.{number % 250 + 1}"
    metadata = {"name": name, "namespace": "load"}
    spec = {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec},
        slice_of(name, PODS[:2]),
    ]


def few(pods: tuple[str, ...]) -> list[dict[str, Any]]:
    """A tenth of the Services, with these endpoints."""
    return [item for number in range(1, FEW) for item in (service(number)[0], slice_of(f"web-{number}", pods))]


def slice_of(name: str, pods: tuple[str, ...]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "load", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [pod], "nodeName": "node1"} for pod in pods],
    }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Namespace, Manifests, Proxy]]:
    if reason := unavailable(("iptables-nft-restore", "ip")):
        pytest.skip(reason)
    manifests = Manifests(tmp_path)
    manifests.put("many", [item for number in range(FEW, SERVICES) for item in service(number)])
    manifests.put("few", few(PODS[:2]))
    manifests.put("web", service(0))
    with closing(Namespace("loaded")) as space:
        links.up(space)
        links.address(space, "lo", "172.30.0.11/32", *(f"{pod}/32" for pod in PODS))
        space.run(["ip", "route", "add", "default", "dev", "lo", "src", "172.30.0.11"])
        for pod in PODS:
            space.spawn([sys.executable, LOAD, "serve", pod, "8080"], subprocess.DEVNULL)
        arguments = ("--proxy-mode", "userspace", "--iptables-min-sync-period", "100ms")
        proxy = Proxy(space, manifests.folder, tmp_path / "log", arguments)
        proxy.start()
        proxy.await_ready(lambda: proxy.synced() == len(Family))
        yield space, manifests, proxy
        assert proxy.stop() == 0, proxy.tail()


def test_no_connection_fails(node: tuple[Namespace, Manifests, Proxy]) -> None:
    space, manifests, proxy = node
    words = [sys.executable, LOAD, "ask", WEB, "80", str(RATE), str(SECONDS)]
    asking = space.submit(space.run, words, "", 120)
    for turn in range(SECONDS):
        time.sleep(0.7)
        # Another endpoint for the Service that is asked, and for a tenth of all the others; one Service comes or goes.
        pods = PODS[1:] if turn % 2 else PODS[:2]
        manifests.put("web", [service(0)[0], slice_of("web-0", pods)])
        manifests.put("few", few(pods))
        manifests.put("one", service(SERVICES + turn))
    outcomes = json.loads(asking.result())
    last = f"load/web-{SERVICES + SECONDS - 1} cluster IP"
    assert wait_for(lambda: last in space.run(["iptables-save", "-t", "nat"]), 60), proxy.tail()
    assert outcomes.keys() == {"answered"}
    assert outcomes["answered"] > SERVICES, "too few for this to mean anything"
