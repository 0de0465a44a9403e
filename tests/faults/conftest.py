"""One cluster whose node1 has an API server of its own, over HTTPS, and a proxy that follows it."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import msgspec
import pytest
import yaml

from kproxy.config.files import from_text
from kproxy.kernel import nfacct
from kproxy.lab import probes
from kproxy.lab.clusters import CLUSTER_CIDRS, Cluster, build, node_address
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.probes import Answered
from kproxy.lab.proxies import Proxy, choose_backend, wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, PORTS, End, Scenario, Via, node_objects
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import Features
from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.fakes.apistore import Selection

CONFIGURATION = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clusterCIDR": CLUSTER_CIDRS,
}
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
STEADY, MOVING, COMING, GOING = (
    BY_NAME[name] for name in ("cluster-ip", "several-ports", "node-port-local", "source-ranges")
)
SOON = 60  # seconds; it takes two or three, but the machine may be busy
PAUSE = 0.01  # seconds between connections
PATIENCE = 5.0  # seconds for one connection
TOOLS = {Family.IPV4: "iptables-nft-save", Family.IPV6: "ip6tables-nft-save"}


def parity_compare() -> ModuleType:
    """tests/parity/compare.py, which folds away what has no meaning in rules."""
    path = Path(__file__).parents[1] / "parity" / "compare.py"
    spec = importlib.util.spec_from_file_location("faults_compare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stream:
    """Connections to one Service, one after the other, for as long as the block lasts. failed: what befell the rest."""

    def __init__(self, space: Namespace, scenario: Scenario, family: Family) -> None:
        self.made = 0
        self.failed: list[str] = []
        self._space, self._scenario, self._family = space, scenario, family
        self._stopping = threading.Event()
        self._running: Future[None] | None = None

    def __enter__(self) -> Stream:
        self._running = self._space.submit(self._run)
        assert wait_for(lambda: self.made > 0 or bool(self.failed), SOON)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopping.set()
        assert self._running is not None
        self._running.result(SOON)

    def _run(self) -> None:
        address = self._scenario.address(Via.CLUSTER_IP, self._family)
        while not self._stopping.wait(PAUSE):
            outcome = probes.tcp(address, self._scenario.ports[0].port, PATIENCE)
            if isinstance(outcome, Answered):
                self.made += 1
            else:
                self.failed.append(f"{self._scenario.name} {self._family}, after {self.made}: {outcome}")


@dataclass(slots=True)
class Site:
    """What a test works with."""

    cluster: Cluster
    server: ApiServer
    proxy: Proxy
    token_file: Path
    compare: ModuleType
    held: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    known: dict[str, dict[str, dict[str, list[Any]]]] = field(default_factory=dict)

    @property
    def node(self) -> Namespace:
        return self.cluster.spaces["node1"]

    def put(self, scenario: Scenario, *ends: End) -> None:
        """Apply the Service and its slices; ENDS, if any, in the place of the endpoints of the table."""
        for item in self._remember(scenario, scenario.objects(ends or None)):
            self.server.apply(item)

    def remove(self, scenario: Scenario) -> None:
        for item in self.held.pop(scenario.name):
            self.server.delete(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])

    def _remember(self, scenario: Scenario, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.held[scenario.name] = items
        return items

    def saved(self) -> Mapping[Family, str]:
        return {family: self.node.run([tool]) for family, tool in TOOLS.items()}

    def wrong(self) -> list[str]:
        """How the rules of the node differ from those that the objects of the server call for."""
        kinds = {
            kind: [msgspec.json.decode(i.body, type=TYPES[kind]) for i in self.server.store.objects(Selection(kind))[1]]
            for kind in Kind
        }
        state, problems = load("node1", kinds)
        assert not problems
        ips = tuple(node_address(1, family) for family in Family)
        host = NodeInfo(ips=ips, addresses=ips)
        features = Features(nfacct=self.node.call(nfacct.available))
        preview = Preview(state, from_text(json.dumps(CONFIGURATION)), host, features)
        found = self.saved()
        return [
            f"{family}: {difference}"
            for family in Family
            for difference in self.compare.differences(
                self.canonical(found[family]), self.canonical(preview.iptables(family))
            )
        ]

    def canonical(self, rules: str) -> dict[str, dict[str, list[Any]]]:
        """What the rules mean; remembered, as the same are looked at again and again."""
        text = "".join(line for line in rules.splitlines(keepends=True) if not line.startswith("#"))
        if text not in self.known:
            self.known[text] = self.compare.canonical(text)
        return self.known[text]

    def comes_right(self) -> list[str]:
        """What is still wrong when there was time to put it right."""
        last: list[str] = []

        def right() -> bool:
            last[:] = self.wrong()
            return not last

        wait_for(right, SOON, pause=0.05)
        return last

    def served(self, kind: str) -> int:
        """How many lists and watches of KIND were asked for."""
        return sum(self.server.served[verb, kind] for verb in ("list", "stream", "watch"))

    def start(self) -> None:
        self.proxy.start()

    def streams(self) -> list[Stream]:
        """One for each Service that has to be reachable all the time, in each family."""
        caller = self.cluster.spaces["caller"]
        return [Stream(caller, scenario, family) for scenario in (STEADY, MOVING) for family in Family]


def kubeconfig(folder: Path, server: ApiServer, token_file: Path) -> Path:
    """How the proxy reaches the server: its authority's certificate, and a bearer token out of a file."""
    path = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server.url, "certificate-authority": str(server.ca_file)}}],
        "users": [{"name": "u", "user": {"tokenFile": str(token_file)}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The cluster and its API server; the proxy is not running yet."""
    if reason := unavailable(tuple(TOOLS.values())):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("faults")
    token_file = folder / "token"
    token_file.write_text("first")
    with build(PODS, PORTS) as cluster:
        node = cluster.spaces["node1"]
        choose_backend(node, "nft")
        # Its thread, and with it its socket, has to be of the node's namespace.
        server = node.call(ApiServer(tls=True, tokens=["first"], bookmark_seconds=0.5).start)
        try:
            arguments = [
                *("--kubeconfig", str(kubeconfig(folder, server, token_file))),
                *("--iptables-sync-period", "1h", "--iptables-min-sync-period", "50ms"),
            ]
            proxy = Proxy(node, None, folder / "log", arguments)
            built = Site(cluster, server, proxy, token_file, parity_compare())
            for item in node_objects():
                server.apply(item)
            for scenario in (STEADY, MOVING, GOING):
                built.put(scenario)
            yield built
        finally:
            server.stop()


@pytest.fixture
def following(site: Site) -> Site:
    """The same, with the proxy at work, all rules right, and no trouble left over."""
    site.server.clear_faults()
    site.server.rules = Rules()
    if not site.proxy.running():
        site.start()
    # Two changes of both kinds: the second comes by a watch, so that the proxy forgets how long it had to wait before.
    for scenario in (STEADY, MOVING, GOING, COMING):
        site.put(scenario)
    assert site.comes_right() == [], site.proxy.tail()
    site.remove(COMING)
    assert site.comes_right() == [], site.proxy.tail()
    return site
