"""A node as kube-proxy left it: its rules loaded into a namespace, and the cluster that they were for as manifests."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kproxy.kernel import nfacct
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.lab import links, probes
from kproxy.lab.deployment import deployment
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import Proxy
from kproxy.model.plans import Family
from tests.takeover.stages import SERVED, Stage

DATA = Path(__file__).parents[1] / "iptables" / "data"
STEMS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
ARGUMENTS = ("--logging-format=json", "--iptables-sync-period=1h", "--iptables-min-sync-period=50ms")
BACKENDS = ("nft", "legacy")


@dataclass(slots=True)
class Node:
    """A namespace that plays the node. backend: where kube-proxy's rules are."""

    space: Namespace
    proxy: Proxy
    manifests: Path
    backend: str

    def run(self, tool: str, *words: str, given: str = "") -> str:
        """Run a tool under the lock that the proxy takes as well."""
        return self.space.run([tool, *words], given, env=self.proxy.environment)

    def tool(self, family: Family, verb: str = "", backend: str = "") -> str:
        return f"{STEMS[family]}-{backend or self.backend}{verb}"

    def load(self) -> None:
        """Make kube-proxy's counters and load its rules."""
        for name in NFACCT_COUNTERS:
            self.space.call(nfacct.ensure, name)
        for family, stem in STEMS.items():
            self.run(self.tool(family, "-restore"), given=(DATA / f"{stem}-nft-save.txt").read_text())

    def saved(self, backend: str = "") -> Mapping[Family, str]:
        """Both families' tables, byte for byte but for packet counts and the comments that tell the time."""
        return {family: plain(self.run(self.tool(family, "-save", backend))) for family in Family}

    def start(self, *arguments: str) -> list[dict[str, Any]]:
        """Start the proxy, with more `arguments`; the log's lines about its first sync of each family."""
        if arguments:
            self.proxy = Proxy(self.space, self.manifests, self.proxy.log, (*ARGUMENTS, *arguments))
        seen = len(self.lines("Synced"))
        self.proxy.start()
        self.proxy.await_ready(lambda: len(self.lines("Synced")) >= seen + len(Family))
        return self.lines("Synced")[seen:]

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The log's lines of that message."""
        text = self.proxy.log.read_text() if self.proxy.log.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [found for line in whole.splitlines() if (found := json.loads(line)).get("msg") == message]

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by name and labels as they are written there."""
        _, _, text = self.space.call(probes.http_status, "127.0.0.1", 10249, "/metrics")
        samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    def handles(self) -> dict[str, str]:
        """Every rule that nf_tables holds, by its table and handle: one that was written again has another."""
        table, chain, found = "", "", {}
        for line in self.run("nft", "-a", "list", "ruleset").splitlines():
            words = line.split()
            if words[:1] == ["table"]:
                table = " ".join(words[1:3])
            elif words[:1] == ["chain"]:
                chain = words[1]
            elif match := re.fullmatch(r"\s+(.*) # handle (\d+)", line):
                found[f"{table} {match[2]}"] = f"{chain}: {match[1]}"
        return found


def plain(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "".join(re.sub(r"\[\d+:\d+\]", "[0:0]", line) + "\n" for line in lines)


def make_node(folder: Path, space: Namespace, backend: str) -> Node:
    manifests = folder / "manifests"
    manifests.mkdir()
    shutil.copy(DATA / "objects.json", manifests / "objects.json")
    links.up(space)
    return Node(space, Proxy(space, manifests, folder / "log", ARGUMENTS), manifests, backend)


@pytest.fixture(params=BACKENDS)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node that kube-proxy programmed, through each backend; the proxy is not running yet."""
    tools = [
        f"{stem}-{backend}-{verb}" for stem in STEMS.values() for backend in BACKENDS for verb in ("save", "restore")
    ]
    if reason := unavailable((*tools, "nft")):
        pytest.skip(reason)
    space = Namespace("node1")
    try:
        made = make_node(tmp_path, space, request.param)
        made.load()
        yield made
        if made.proxy.running():
            assert made.proxy.stop() == 0
        assert "Traceback" not in made.proxy.tail(1_000_000)
    finally:
        space.close()


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stage]]:
    """One lab for each backend, built when it is asked for the first time."""
    with ExitStack() as stack:
        yield _Stages(tmp_path_factory, stack)


class _Stages(dict[str, Stage]):
    def __init__(self, factory: pytest.TempPathFactory, stack: ExitStack) -> None:
        super().__init__()
        self._factory, self._stack = factory, stack

    def __missing__(self, backend: str) -> Stage:
        tools = [f"{stem}-{backend}-{verb}" for stem in STEMS.values() for verb in ("save", "restore")]
        if reason := unavailable((*tools, "nft", "conntrack")):
            pytest.skip(reason)
        folder = self._factory.mktemp(backend)
        made = self[backend] = Stage(
            self._stack.enter_context(deployment(folder, backend, scenarios=SERVED, start=False)), folder
        )
        return made


@pytest.fixture
def stage(request: pytest.FixtureRequest, stages: dict[str, Stage]) -> Iterator[Stage]:
    """A node with nothing in its kernel, pods that serve, and no proxy; on nft unless a parameter says otherwise."""
    found = stages[getattr(request, "param", "nft")]
    try:
        yield found
        assert found.problems() == ""
    finally:
        found.clear()
