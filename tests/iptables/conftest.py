"""Plans to program, ways to compare saved tables, and network namespaces with a real kernel's tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import strategies as st

from kproxy.config.files import from_text
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.modes.iptables.render import Settings
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import Features, iptables_settings
from kproxy.modes.xtables.saved import Saved
from tests.network_namespaces import InNamespace, fresh_namespace
from tests.plans import Plans, any_plans, build_plan

DATA = Path(__file__).parent / "data"
SHARED = {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"}
CONFIGURATION = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
}
LAST = "this must be the last rule"


@pytest.fixture(scope="session")
def plan() -> Callable[..., ServicePlan]:
    return build_plan


@pytest.fixture(scope="session")
def clusters() -> st.SearchStrategy[Plans]:
    return any_plans(*((name, protocol) for name in "abcd" for protocol in (Protocol.TCP, Protocol.UDP)))


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


@pytest.fixture
def host() -> Iterator[InNamespace]:
    """Commands in a network namespace of this test's own."""
    with fresh_namespace("xtables", "iptables-nft-restore", "iptables-legacy-restore") as space:
        yield InNamespace(space)


@pytest.fixture(params=list(Backend))
def real(request: pytest.FixtureRequest, host: InNamespace) -> HostTables:
    """A real kernel's IPv4 tables, through each backend."""
    backend: Backend = request.param
    return HostTables(host, Family.IPV4, Command(backend, f"-{backend}", (1, 8, 9)))
