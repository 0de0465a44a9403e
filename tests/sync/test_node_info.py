"""The node's addresses come and go, cannot be read for a while, or are not known yet."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from kproxy.config.files import from_text
from kproxy.errors import KernelError
from kproxy.model import objects
from kproxy.model.events import Changed, Deleted, Listed
from kproxy.model.objects import Kind
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.status.store import RecentLines
from kproxy.sync.node_info import NODE_PATIENCE, NodeSurroundings
from tests.fakes.clocks import ManualClock

HEADER = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}


class Host:
    """A host whose addresses the test decides; `broken` stands for a kernel that does not answer."""

    def __init__(self) -> None:
        self.held: tuple[str, ...] = ("127.0.0.1", "172.30.0.1")
        self.broken = False
        self.news = False

    def addresses(self) -> tuple[str, ...]:
        if self.broken:
            raise KernelError("list addresses: no answer")
        return self.held

    def node_ips(self) -> tuple[str, ...]:
        return self.addresses()[-1:]

    def changed(self) -> bool:
        news, self.news = self.news, False
        return news

    def move(self, *addresses: str) -> None:
        self.held, self.news = addresses, True


@pytest.fixture
def host() -> Host:
    return Host()


def surroundings(host: Host, clock: ManualClock, **config: object) -> NodeSurroundings:
    return NodeSurroundings(from_text(json.dumps(HEADER | config)), host, clock)


def state(*nodes: objects.Node) -> ClusterState:
    found = ClusterState("node1")
    found.apply(Listed(Kind.NODE, nodes))
    return found


def node(ip: str = "", pod_cidr: str | None = None) -> objects.Node:
    addresses = [objects.NodeAddress("InternalIP", ip)] if ip else []
    return objects.Node(
        objects.Metadata("node1"), objects.NodeSpec(pod_cidr=pod_cidr), objects.NodeStatus(addresses=addresses)
    )


def test_the_node_object_says_more_than_the_host(host: Host) -> None:
    around = surroundings(host, ManualClock())
    place = around.place(state(node("172.30.0.9")))
    assert place is not None
    assert place.ipv4 == "172.30.0.9"
    assert around.changed()
    assert not around.changed()


def test_a_new_address_takes_node_ports(host: Host) -> None:
    around, known = surroundings(host, ManualClock(), nodePortAddresses=["192.168.0.0/16"]), state()
    around.place(known)
    assert around.node_port_ips(Family.IPV4) == ()
    around.changed()
    host.move("127.0.0.1", "192.168.9.7", "172.30.0.1")
    around.place(known)
    assert around.changed()
    assert around.node_port_ips(Family.IPV4) == ("192.168.9.7",)


def test_addresses_that_cannot_be_read_stay_as_they_were(host: Host) -> None:
    around, known = surroundings(host, ManualClock()), state()
    before = around.place(known)
    host.move("127.0.0.1", "172.30.0.2")
    host.broken = True
    assert around.place(known) == before
    host.broken = False
    after = around.place(known)
    assert after is not None
    assert after.ipv4 == "172.30.0.2"


def test_nothing_is_planned_while_no_address_was_ever_read(host: Host) -> None:
    host.broken = True
    around, known = surroundings(host, ManualClock()), state()
    assert around.place(known) is None
    host.broken = False
    assert around.place(known) is not None


def test_a_node_list_that_does_not_come_is_not_waited_for_for_ever(host: Host) -> None:
    clock = ManualClock()
    around, known = surroundings(host, clock), ClusterState("node1")
    assert around.place(known) is None
    clock.advance(NODE_PATIENCE + 1)
    assert around.place(known) is not None


def test_mode_node_cidr_waits_for_the_pod_cidr(host: Host) -> None:
    clock = ManualClock()
    around, known = surroundings(host, clock, detectLocalMode="NodeCIDR"), state(node("172.30.0.9"))
    clock.advance(10 * NODE_PATIENCE)
    assert around.place(known) is None
    known.apply(Changed(Kind.NODE, node("172.30.0.9", "10.244.1.0/24")))
    assert around.place(known) is not None


@pytest.fixture
def shown() -> Iterator[RecentLines]:
    """What the status page shows of the node's log."""
    log, lines = logging.getLogger("kproxy.node"), RecentLines()
    log.addHandler(lines)
    yield lines
    log.removeHandler(lines)


SILENT = [
    (ClusterState("node1"), "No list of Nodes came"),
    (state(), "There is no Node of this name"),
    (state(node("172.30.0.9")), '"kubectl get node node1 -o yaml" shows no spec.podCIDRs'),
]


@pytest.mark.parametrize(("known", "look"), SILENT, ids=["no list", "no Node", "no pod CIDR"])
def test_a_long_wait_for_the_pod_cidr_is_warned_of_once_with_where_to_look(
    host: Host, shown: RecentLines, known: ClusterState, look: str
) -> None:
    clock = ManualClock()
    around = surroundings(host, clock, detectLocalMode="NodeCIDR")
    for _ in range(2):
        assert around.place(known) is None
        clock.advance(NODE_PATIENCE)
    assert shown.lines() == ()
    for _ in range(3):
        assert around.place(known) is None
        clock.advance(NODE_PATIENCE)
    (line,) = shown.lines()
    assert (line.level, line.times) == ("warning", 1)
    assert line.text.startswith("Still waiting for the Node's pod CIDR")
    assert look in line.text


def test_another_wait_is_warned_of_again(host: Host, shown: RecentLines) -> None:
    clock = ManualClock()
    around, known = surroundings(host, clock), state(node("172.30.0.9"))
    for _ in range(2):
        around.adapt(from_text(json.dumps(HEADER | {"detectLocalMode": "NodeCIDR"})), nfacct=False, random_fully=True)
        assert around.place(known) is None
        clock.advance(NODE_PATIENCE + 1)
        assert around.place(known) is None
        around.adapt(from_text(json.dumps(HEADER)), nfacct=False, random_fully=True)
        assert around.place(known) is not None
    assert sum(line.times for line in shown.lines()) == 2


def test_a_node_list_that_does_not_come_is_warned_of_once(host: Host, shown: RecentLines) -> None:
    clock = ManualClock()
    around, known = surroundings(host, clock), ClusterState("node1")
    around.place(known)
    assert shown.lines() == ()
    for _ in range(2):
        clock.advance(NODE_PATIENCE + 1)
        around.place(known)
    (line,) = [line for line in shown.lines() if "Node cannot be had" in line.text]
    assert line.times == 1
    assert "No list of Nodes came" in line.text


def test_pod_cidrs_that_were_known_hold_while_the_node_is_made_anew(host: Host) -> None:
    """kube-proxy ends and waits; here what is programmed goes on being right."""
    around, known = surroundings(host, ManualClock(), detectLocalMode="NodeCIDR"), state()
    known.apply(Changed(Kind.NODE, node("172.30.0.9", "10.244.1.0/24")))
    assert around.place(known) is not None
    around.changed()
    known.apply(Deleted(Kind.NODE, "", "node1"))
    assert around.place(known) is not None
    known.apply(Changed(Kind.NODE, node("172.30.0.9")))
    assert around.place(known) is not None
    assert around.node is not None
    assert around.node.pod_cidrs == ("10.244.1.0/24",)
    assert not around.changed()
    known.apply(Changed(Kind.NODE, node("172.30.0.9", "10.244.2.0/24")))
    around.place(known)
    assert around.changed()
    assert around.node.pod_cidrs == ("10.244.2.0/24",)


IPS = [
    (["172.30.0.9", "172.30.0.8"], ["This node's IPs changed"]),
    (["", "172.30.0.8"], ["The Node object tells no IP; going by this host's own", "This node's IPs changed"]),
    (["172.30.0.9", "172.30.0.9"], []),
]


@pytest.mark.parametrize(("told", "expected"), IPS)
def test_the_log_says_where_the_nodes_ip_comes_from(
    host: Host, caplog: pytest.LogCaptureFixture, told: list[str], expected: list[str]
) -> None:
    caplog.set_level("INFO", "kproxy.node")
    around, known = surroundings(host, ManualClock()), state()
    for ip in told:
        known.apply(Changed(Kind.NODE, node(ip)))
        around.place(known)
    assert [record.message for record in caplog.records] == expected


def test_a_node_without_any_ip_is_warned_of(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.held = ()
    around = surroundings(host, ManualClock())
    around.place(state())
    around.place(state())
    assert len([record for record in caplog.records if "Can't determine this node's IP" in record.message]) == 1


def test_another_configuration_is_gone_by_from_the_next_look_on(host: Host) -> None:
    around, known = surroundings(host, ManualClock()), state(node("172.30.0.9"))
    around.place(known)
    around.changed()
    raw = HEADER | {"bindAddress": "172.30.0.7", "featureGates": {"AllowServiceExternalIPs": False}}
    around.adapt(from_text(json.dumps(raw)), nfacct=True, random_fully=False)
    place = around.place(known)
    assert place is not None
    assert (place.ipv4, place.external_ips) == ("172.30.0.7", False)
    assert around.changed()
    assert (around.host.nfacct, around.host.random_fully) == (True, False)
