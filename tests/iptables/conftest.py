"""Plans to program, ways to compare saved tables, and network namespaces with a real kernel's tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from kproxy.config.files import from_text
from kproxy.kernel.commands import Commands, Completed
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.iptables.render import Settings
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import Features, iptables_settings
from kproxy.modes.xtables.saved import Saved

DATA = Path(__file__).parent / "data"
SHARED = {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"}
CONFIGURATION = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
}
LAST = "this must be the last rule"

Plans = dict[PortKey, ServicePlan]


def build_plan(name: str = "web", protocol: Protocol = Protocol.TCP, **fields: Any) -> ServicePlan:
    """A plan with an address of its own; `cluster` and `local` list endpoints by their last byte."""
    number = 1 + sum(name.encode()) % 200
    cluster = tuple(Endpoint(f"10.244.1.{n}", 8080) for n in fields.pop("cluster", (1, 2)))
    local = tuple(Endpoint(f"10.244.1.{n}", 8080, local=True) for n in fields.pop("local", ()))
    reachable = tuple(sorted({str(e): e for e in (*cluster, *local)}.values(), key=str))
    values: dict[str, Any] = {
        "key": PortKey("default", name, "http", protocol),
        "family": Family.IPV4,
        "cluster_ip": f"10.96.0.{number}",
        "port": 80,
        "cluster": cluster,
        "local": local,
        "reachable": reachable,
        "has_endpoints": bool(reachable),
    }
    return ServicePlan(**(values | fields))


@pytest.fixture(scope="session")
def plan() -> Callable[..., ServicePlan]:
    return build_plan


@st.composite
def _plans(draw: st.DrawFn, name: str, protocol: Protocol) -> ServicePlan:
    some = st.lists(st.integers(1, 5), max_size=3, unique=True).map(sorted)
    local = draw(some)
    load_balancer = draw(st.sampled_from([(), ("203.0.113.5",)]))
    return build_plan(
        name,
        protocol,
        # Whoever serves local traffic serves all.
        cluster=sorted({*draw(some), *local}),
        local=local,
        node_port=draw(st.sampled_from([0, 30000 + sum(name.encode()) % 100])),
        external_ips=draw(st.sampled_from([(), ("198.51.100.7",)])),
        load_balancer_ips=load_balancer,
        source_ranges=draw(st.sampled_from([(), ("172.30.0.0/24",)])) if load_balancer else (),
        affinity_seconds=draw(st.sampled_from([0, 10800])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
    )


@pytest.fixture(scope="session")
def clusters() -> st.SearchStrategy[Plans]:
    """Sets of up to five ports out of the same eight, so that one set is often a change of another."""
    names = [(name, protocol) for name in "abcd" for protocol in (Protocol.TCP, Protocol.UDP)]
    ports = st.lists(st.sampled_from(names), unique=True, max_size=5)
    return ports.flatmap(lambda chosen: st.tuples(*(_plans(*port) for port in chosen))).map(
        lambda plans: {plan.key: plan for plan in plans}
    )


@pytest.fixture(scope="session")
def shape() -> Callable[[str], dict[tuple[str, str], list[str]]]:
    """What a saved text means: chains with their rules, those of shared chains in no order but for the last ones."""

    def rules(text: str) -> dict[tuple[str, str], list[str]]:
        saved = Saved(text)
        chains = {(table, chain): saved.rules(table, chain) for table in saved.tables for chain in saved.chains(table)}
        for (table, chain), lines in chains.items():
            if chain in SHARED:
                body = [line for line in lines if LAST not in line]
                chains[table, chain] = [*sorted(body), *lines[len(body) :]]
        return chains

    return rules


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(Family.IPV4)


@pytest.fixture(scope="session")
def taken_over() -> Callable[[Family], tuple[str, Settings, Plans]]:
    """A node that kube-proxy programmed: its saved tables, and the settings and plans that lead there."""

    def read(family: Family) -> tuple[str, Settings, Plans]:
        kinds: dict[Kind, list[Object]] = {}
        for item in json.loads((DATA / "objects.json").read_text())["items"]:
            kinds.setdefault(Kind(item["kind"]), []).append(msgspec.convert(item, TYPES[Kind(item["kind"])]))
        state, problems = load("node1", kinds)
        assert not problems
        config = from_text(json.dumps(CONFIGURATION))
        preview = Preview(state, config, NodeInfo(ips=("172.30.0.11",), addresses=("172.30.0.11", "127.0.0.1")))
        plans, features = preview.families[family], Features(nfacct=True)
        stem = "iptables" if family is Family.IPV4 else "ip6tables"
        text = (DATA / f"{stem}-nft-save.txt").read_text()
        return text, iptables_settings(config, family, preview.node, plans.endpoints, features), dict(plans.plans)

    return read


class InNamespace:
    """The host's commands, run inside a network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._commands = Commands()

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        return self._namespace.call(self._commands.run, argv, stdin, timeout)

    def which(self, name: str) -> str | None:
        return self._commands.which(name)


@pytest.fixture
def host() -> Iterator[InNamespace]:
    """Commands in a network namespace of this test's own."""
    if reason := unavailable(("iptables-nft-restore", "iptables-legacy-restore")):
        pytest.skip(reason)
    namespace = Namespace("xtables")
    try:
        yield InNamespace(namespace)
    finally:
        namespace.close()


@pytest.fixture(params=list(Backend))
def real(request: pytest.FixtureRequest, host: InNamespace) -> HostTables:
    """A real kernel's IPv4 tables, through each backend."""
    backend: Backend = request.param
    return HostTables(host, Family.IPV4, Command(backend, f"-{backend}", (1, 8, 9)))
