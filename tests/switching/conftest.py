"""A node that runs one proxy mode after another, and what its kernel holds of any of them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kproxy.kernel import nfacct
from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import Proxy
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import Scenario
from kproxy.model.plans import Family

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
ALIVE = [BY_NAME[name] for name in ("node-port", "affinity", "no-endpoints")]
ARGUMENTS = ("--iptables-sync-period", "1h", "--ipvs-sync-period", "1h", "--healthz-bind-address", "")
# What only one mode leaves, as the tools show it.
MARKS = {
    "iptables": re.compile(r"KUBE-(SVC|SEP)-"),
    "ipvs": re.compile(r"KUBE-IPVS-|kube-ipvs0|match-set KUBE-|^-A -[tu] ", re.MULTILINE),
    "nftables": re.compile(r"table ip6? kproxy"),
    "userspace": re.compile(r"KUBE-PORTALS-|KUBE-NODEPORT-(CONTAINER|HOST|NON-LOCAL)"),
}


@dataclass(slots=True)
class Node:
    """The node, with the proxy that runs on it now and its mode, "" while none does."""

    deployed: Deployment
    folder: Path
    proxy: Proxy | None = None
    mode: str = ""

    @property
    def space(self) -> Namespace:
        return self.deployed.cluster.spaces["node1"]

    @property
    def scenario(self) -> Scenario:
        return ALIVE[0]

    def start(self, mode: str, *more: str) -> None:
        """Start a proxy in MODE and wait until it has written both families."""
        log = self.folder / f"log-{mode}"
        arguments = ("--proxy-mode", mode, *ARGUMENTS, *more)
        self.proxy = proxy = Proxy(self.space, self.deployed.manifests.folder, log, arguments)
        proxy.start()
        proxy.await_ready(lambda: proxy.synced() == len(Family))
        self.mode = mode

    def stop(self) -> None:
        assert self.proxy is not None
        proxy, self.proxy, self.mode = self.proxy, None, ""
        assert proxy.stop() == 0, proxy.tail()

    def run(self, mode: str) -> None:
        """Have a proxy in MODE, the one that runs or a new one."""
        if self.mode != mode:
            self.end()
            self.start(mode)

    def end(self) -> None:
        """Stop the proxy, should one run, whatever state a test has left it in."""
        proxy, self.proxy, self.mode = self.proxy, None, ""
        if proxy is not None and proxy.running():
            proxy.stop()

    def cleanup(self) -> None:
        """What `kproxy cleanup` does."""
        self.space.run([sys.executable, "-m", "kproxy", "cleanup"])

    def holds(self) -> str:
        """All that Service proxies write to a kernel, as the tools print it, without counters and empty tables."""
        text = re.sub(r" \[\d+:\d+\]$", "", "\n".join(self._listings()), flags=re.MULTILINE)
        return re.sub(r"^\*\w+\n(:[A-Z]+ ACCEPT\n)*COMMIT\n", "", text, flags=re.MULTILINE)

    def counters(self) -> list[str]:
        """The packet counters that rules may count in."""
        return sorted(self.space.call(nfacct.counters)) if self.space.call(nfacct.available) else []

    def left_by(self, mode: str) -> str:
        """What is there of MODE's own; "" when nothing is."""
        found = MARKS[mode].search(self.holds())
        return found.group() if found else ""

    def _listings(self) -> Iterator[str]:
        for backend in ("nft", "legacy"):
            for tool in ("iptables", "ip6tables"):
                text = self.space.run([f"{tool}-{backend}-save"])
                yield "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        yield self.space.run(["ip", "-br", "link", "show"])
        yield "\n".join(line for line in self.space.run(["nft", "list", "tables"]).splitlines() if "kproxy" in line)
        for optional in (["ipset", "save"], ["ipvsadm", "-Sn"]):
            if shutil.which(optional[0]) and (optional[0] != "ipvsadm" or Path("/proc/net/ip_vs").exists()):
                yield self.space.run(optional)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for all tests: what one has left running, the next one need not start."""
    reason = unavailable(("iptables-nft-save", "iptables-legacy-save", "ip", "nft"))
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("switching")
    with deployment(folder, "nft", scenarios=ALIVE, start=False) as under_way:
        here = Node(under_way, folder)
        try:
            yield here
        finally:
            here.end()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], bool]:
    from kproxy.lab.proxies import wait_for

    return lambda condition: wait_for(condition, 60, pause=0.5)
