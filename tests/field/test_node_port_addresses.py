"""Where node ports answer, by packets: every keyword of nodePortAddresses and CIDRs in combinations, in every mode, and
`primary` as the Node object has it at that moment.

Source: KEP-6032, kubernetes/kubernetes#138427.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import yaml

from kproxy.lab import links, probes
from kproxy.lab.clusters import CLUSTER_CIDRS, NODE_LEN, node_address
from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import Via, node_objects
from kproxy.model.plans import Family

V4, V6 = Family
SOON = 60  # seconds; it takes less than one, but the machine may be busy
SCENARIO = next(s for s in SCENARIOS if s.name == "node-port")
FIRST = {family: node_address(1, family) for family in Family}
SECOND = {V4: "172.30.0.21", V6: "fd00:30::21"}
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
FROM = {"first": "client", "second": "client", "loopback": "node1"}
IPS = {"first": FIRST, "second": SECOND, "loopback": LOOPBACK}

# What takes node ports in IPv4 and in IPv6, where rules serve loopback at all.
EVERYWHERE = "first second loopback"
ROWS: dict[str, tuple[str, str]] = {
    "": (EVERYWHERE, EVERYWHERE),
    "all": (EVERYWHERE, EVERYWHERE),
    "primary": ("first", "first"),
    "localhost": ("loopback", "loopback"),
    "primary,localhost": ("first loopback", "first loopback"),
    "localhost,all": (EVERYWHERE, EVERYWHERE),
    "172.30.0.16/28": ("second", EVERYWHERE),
    "primary,172.30.0.16/28": ("first second", "first"),
    "localhost,fd00:30::20/124": ("loopback", "second loopback"),
    "primary,localhost,172.30.0.16/28,fd00:30::20/124": (EVERYWHERE, EVERYWHERE),
}
LOOPBACK_SERVED = {"iptables": {V4}, "userspace": {V4, V6}, "nftables": set[Family](), "ipvs": set[Family]()}


class Node:
    """A daemon of one mode that follows its configuration file and the Node object."""

    def __init__(self, deployed: Deployment, config: Path, mode: str) -> None:
        self.deployed, self.config, self.mode = deployed, config, mode

    def configure(self, asked: str) -> None:
        """asked: nodePortAddresses by commas, "" for the mode's default."""
        fields = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": self.mode,
            "clusterCIDR": CLUSTER_CIDRS,
            "conntrack": {"maxPerCore": 0},
            "iptables": {"minSyncPeriod": "50ms"},
            "nodePortAddresses": [each for each in asked.split(",") if each],
        }
        fresh = self.config.with_suffix(".new")
        fresh.write_text(yaml.safe_dump(fields))
        fresh.replace(self.config)

    def show(self, ips: Collection[str]) -> None:
        """Have the Node object show these addresses."""
        first, *others = node_objects()
        first["status"]["addresses"] = [{"type": "InternalIP", "address": ip} for ip in ips]
        self.deployed.manifests.put("nodes", [first, *others])

    def answering(self) -> tuple[set[str], set[str]]:
        """Where the node port answers, in IPv4 and in IPv6."""
        return tuple({name for name in IPS if self._answers(name, family)} for family in Family)  # type: ignore[return-value]

    def _answers(self, name: str, family: Family) -> bool:
        port = SCENARIO.port(Via.NODE_PORT, SCENARIO.ports[0])
        asked = self.deployed.cluster.spaces[FROM[name]].call(probes.tcp, IPS[name][family], port, 0.5)
        return isinstance(asked, Answered)

    def answers_at(self, expected: tuple[str, str]) -> bool:
        wanted = tuple(
            set(names.split()) - (set() if family in LOOPBACK_SERVED[self.mode] else {"loopback"})
            for family, names in zip(Family, expected, strict=True)
        )
        return wait_for(lambda: self.answering() == wanted, SOON, pause=0.1)


MODES = ("iptables", "nftables", "userspace", pytest.param("ipvs", marks=pytest.mark.ipvs_kernel))


@pytest.fixture(scope="module", params=MODES)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One daemon for all rows."""
    if reason := unavailable(("iptables-nft-restore", "ip6tables-nft-restore")):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / "config.yaml"
    with deployment(folder, "nft", ("--config", str(config)), [SCENARIO], start=False, mode=request.param) as deployed:
        for family in Family:
            links.address(deployed.cluster.spaces["node1"], "eth0", f"{SECOND[family]}/{NODE_LEN[family]}")
        made = Node(deployed, config, request.param)
        made.configure("all")
        deployed.proxy.start()
        deployed.proxy.await_ready(lambda: deployed.proxy.synced() == len(Family) and deployed.serves(SCENARIO))
        yield made
        assert deployed.proxy.running(), deployed.proxy.tail()


@pytest.mark.parametrize(("asked", "expected"), ROWS.items(), ids=[asked or "default" for asked in ROWS])
def test_where_a_node_port_answers(node: Node, asked: str, expected: tuple[str, str]) -> None:
    node.configure(asked)
    if not asked and node.mode == "nftables":
        expected = ROWS["primary"]
    assert node.answers_at(expected), (node.answering(), node.deployed.proxy.tail())


def test_primary_follows_the_node_object(node: Node) -> None:
    """Its addresses move, one goes, and all come back; in a family that the Node has no address of, nothing answers."""
    node.configure("primary")
    for ips, expected in {
        (SECOND[V4], SECOND[V6]): ("second", "second"),
        (SECOND[V4], FIRST[V6]): ("second", "first"),
        (FIRST[V4],): ("first", ""),
        (FIRST[V6],): ("", "first"),
        (FIRST[V4], FIRST[V6]): ("first", "first"),
    }.items():
        node.show(ips)
        assert node.answers_at(expected), (ips, node.answering(), node.deployed.proxy.tail())
