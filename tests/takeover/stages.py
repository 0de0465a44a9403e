"""A node on which one proxy follows another: kube-proxy's rules, and kproxy in any mode, one or more at a time."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from kproxy.config import defaults
from kproxy.config.fields import ProxyMode
from kproxy.kernel import nfacct
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.lab.clusters import CLUSTER_CIDRS, gateway_of, node_address
from kproxy.lab.deployment import Deployment
from kproxy.lab.load import Load, Rates, load, targets
from kproxy.lab.namespaces import Namespace
from kproxy.lab.proxies import Proxy, choose_backend
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import Scenario
from kproxy.model.node_info import NodeInfo
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview
from kproxy.modes.preview import load as loaded
from kproxy.modes.settings import Features
from kproxy.sources.manifests import read_manifests
from tests.takeover import theirs

SERVED = tuple(s for s in SCENARIOS if s.name in ("load-balancer", "load-balancer-local"))
"""The Services that clients ask all the while."""
TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
BACKENDS = ("nft", "legacy")
QUICK = ("--iptables-min-sync-period=50ms", "--iptables-sync-period=1h", "--logging-format=json")


@dataclass(slots=True)
class Stage:
    """The node. proxies: those that were started, the last one last."""

    deployed: Deployment
    folder: Path
    proxies: list[Proxy] = field(default_factory=list)
    served: Sequence[Scenario] = SERVED
    started: int = 0

    @property
    def space(self) -> Namespace:
        return self.deployed.cluster.spaces["node1"]

    @property
    def proxy(self) -> Proxy:
        return self.proxies[-1]

    # ---- kube-proxy

    def kube_proxy(self, mode: str) -> None:
        """Program what kube-proxy in `mode` would have: all of its own text in one go, over whatever is there."""
        if mode == "ipvs":
            preview = self._preview(ProxyMode.IPVS)
            for family, rules in theirs.ipvs(self.space, {f: preview.ipvs(f) for f in Family}).items():
                self.restore(family, rules)
            return
        preview = self._preview()
        for family in Family:
            if mode == "iptables":
                self.restore(family, preview.iptables(family))
            else:
                plans = preview.families[family].plans.values()
                self.space.run(["nft", "-f", "-"], theirs.nftables(family, plans, node_address(1, family)))

    def plugin(self) -> None:
        """What a network plugin has in iptables before any proxy starts."""
        for tool in TOOLS.values():
            rule = ("PREROUTING", "-p", "tcp", "--dport", "9", "-j", "RETURN")
            self.space.run([f"{tool}-{self.deployed.backend}", "-w", "-t", "nat", "-A", *rule])

    def restore(self, family: Family, text: str) -> None:
        """As kube-proxy does: its chains are replaced, everybody else's stay, and missing jumps come first."""
        tool, saved = f"{TOOLS[family]}-{self.deployed.backend}", self.saved(family)
        lines = []
        for line in text.splitlines():
            jump = re.match(r"-A ([A-Z]+) ", line)
            if jump and jump[1] in ("INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"):
                if f"-j {line.rpartition(' -j ')[2]}" in _rules_of(saved, jump[1]):
                    continue
                line = line.replace("-A ", "-I ", 1)
            if not re.match(r":(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING) ", line):
                lines.append(line)
        self.space.run(
            [f"{tool}-restore", "-w", "5", "--noflush", "--counters"],
            "\n".join(lines) + "\n",
            env={"XTABLES_LOCKFILE": str(self.folder / "log.lock")},
        )

    def _preview(self, mode: ProxyMode = ProxyMode.IPTABLES) -> Preview:
        objects, problems = read_manifests([str(self.deployed.manifests.folder)])
        state, more = loaded("node1", objects)
        assert [*problems, *more] == []
        config = replace(defaults.default(mode), hostname_override="node1", cluster_cidr=CLUSTER_CIDRS)
        own = tuple(f(1, family) for family in Family for f in (node_address, gateway_of))
        host = NodeInfo(ips=tuple(node_address(1, f) for f in Family), addresses=own)
        return Preview(state, config, host, Features(nfacct=self.space.call(_counts)))

    def crowd(self, turn: int, services: int = 150) -> None:
        """Many more Services, so that a sync takes its time; from one `turn` to the next a tenth of them change."""
        path, spare = self.deployed.manifests.folder / "crowd.json", self.folder / "crowd"
        items = [item for number in range(services) for item in _one_of_many(number, turn)]
        items += _one("marker", _markers(turn), (turn, turn))
        spare.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        spare.rename(path)

    # ---- kproxy

    def start(self, mode: str, *arguments: str, ready: bool = True, path: str = "") -> Proxy:
        """Start one more kproxy; `ready`: and wait until it has synced. `path`: where it finds commands, "" for as
        here."""
        self.started += 1
        log = self.folder / f"log-{self.started}"
        proxy = Proxy(self.space, self.deployed.manifests.folder, log, ("--proxy-mode", mode, *QUICK, *arguments))
        proxy.environment["XTABLES_LOCKFILE"] = str(self.folder / "log.lock")
        proxy.environment |= {"PATH": path} if path else {}
        self.proxies.append(proxy)
        proxy.start()
        if ready:
            self.await_synced(proxy)
        return proxy

    def await_synced(self, proxy: Proxy) -> None:
        proxy.await_ready(lambda: proxy.tail(1_000_000).count('"msg":"Synced"') >= len(Family))

    def stop(self, proxy: Proxy | None = None, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """End `proxy`, the last one unless told otherwise."""
        proxy = proxy or self.proxy
        status = proxy.stop(with_signal, timeout=60)
        assert status == (0 if with_signal is signal.SIGTERM else -with_signal), proxy.tail()

    # ---- looking

    def saved(self, family: Family, backend: str = "") -> str:
        return self.space.run([f"{TOOLS[family]}-{backend or self.deployed.backend}-save"])

    def rules(self) -> dict[Family, str]:
        """What iptables holds, to compare."""
        return {family: comparable(self.saved(family)) for family in Family}

    def tables(self) -> set[str]:
        """The tables of nf_tables, but for those of iptables."""
        found = (line.split()[1:] for line in self.space.run(["nft", "list", "tables"]).splitlines())
        return {" ".join(words) for words in found if words[-1] not in ("nat", "filter", "mangle", "raw", "security")}

    def holds_only(self, mode: str) -> bool:
        """Whether nothing is there of another mode's than `mode`, nor of kube-proxy's if that is nftables mode."""
        if mode == "nftables":
            return (
                not any("KUBE-SVC" in text for text in self.rules().values()) and "ip kube-proxy" not in self.tables()
            )
        return not self.tables()

    def has_programmed(self, turn: int) -> bool:
        """Whether the crowd's Services are there as they were written with that `turn`, in both families."""
        held = self.space.run(["nft", "list", "ruleset"]) + "".join(self.saved(f, "legacy") for f in Family)
        return all(marker in held for marker in _markers(turn))

    def problems(self) -> str:
        """What no log may have."""
        logs = "".join(proxy.tail(1_000_000) for proxy in self.proxies)
        return logs if "Traceback" in logs or "unexpected " in logs else ""

    # ---- clients

    @contextmanager
    def clients(self, pace: Rates = Rates()) -> Iterator[Load]:  # noqa: B008
        """Clients at work while the block runs."""
        with load(self.deployed.cluster, targets(self.served), pace) as found:
            yield found

    # ---- between two tests

    def end(self) -> None:
        """End every proxy."""
        for proxy in self.proxies:
            if proxy.running():
                proxy.stop(signal.SIGKILL, timeout=60)
        self.proxies.clear()

    def clear(self) -> None:
        """As it was in the beginning."""
        self.end()
        self.deployed.cluster.servers.hang_up()
        for scenario in self.served:
            self.deployed.manifests.put(scenario.name, scenario.objects())
        (self.deployed.manifests.folder / "crowd.json").unlink(missing_ok=True)
        self.empty()

    def empty(self) -> None:
        """Empty the kernel; only the kubelet's hint stays."""
        self.space.run(["nft", "flush", "ruleset"])
        for tool in TOOLS.values():
            for table in ("nat", "filter", "mangle"):
                for verb in ("-F", "-X"):
                    self.space.run([f"{tool}-legacy", "-w", "-t", table, verb])
        self.space.run(["conntrack", "-F"])
        choose_backend(self.space, self.deployed.backend)


def comparable(text: str) -> str:
    """iptables-save's text without counters, times, order of chains and of what has no meaning among Services."""
    lines = [re.sub(r" ?\[\d+:\d+\]", "", line) for line in text.splitlines() if not line.startswith("#")]
    return "\n".join(sorted(lines))


def _one_of_many(number: int, turn: int) -> Iterator[dict[str, Any]]:
    """A Service and its slices; its endpoints depend on the number of turns in which it changed."""
    changes = (turn + 9 - number % 10) // 10
    yield from _one(f"many-{number}", [f"10.96.2.{number + 1}", f"fd00:96::2{number:02x}"], range(changes, changes + 3))


def _markers(turn: int) -> list[str]:
    """The cluster IPs that only this turn's Services have."""
    return [f"10.96.{100 + turn // 200}.{1 + turn % 200}", f"fd00:96::{0x3000 + turn:x}"]


def _one(name: str, ips: list[str], ends: Iterable[int]) -> Iterator[dict[str, Any]]:
    meta = {"namespace": "crowd", "name": name}
    port = {"name": "p", "protocol": "TCP", "port": 80}
    spec = {"clusterIP": ips[0], "clusterIPs": ips, "ports": [port]}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
    for family, base in ((Family.IPV4, "10.244.2."), (Family.IPV6, "fd00:244:2::")):
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "crowd",
                "name": f"{name}-{family.lower()}",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family.value,
            "ports": [{"name": "p", "protocol": "TCP", "port": 8080}],
            "endpoints": [
                {"addresses": [f"{base}{20 + end % 200}"], "nodeName": "node2"} for end in dict.fromkeys(ends)
            ],
        }


def _rules_of(saved: str, chain: str) -> str:
    return "\n".join(line for line in saved.splitlines() if line.startswith(f"-A {chain} "))


def _counts() -> bool:
    if not nfacct.available():
        return False
    for name in NFACCT_COUNTERS:
        nfacct.ensure(name)
    return True
