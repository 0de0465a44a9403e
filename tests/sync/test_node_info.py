"""What is known of the node while its object and the host's addresses change, are missing or cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy import logs
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.files import from_text
from kproxy.errors import KernelError
from kproxy.model import objects
from kproxy.model.events import Changed, Deleted, Listed
from kproxy.model.node_info import ZONE_LABEL, NodeInfo
from kproxy.model.objects import Kind
from kproxy.model.state import ClusterState
from kproxy.status.store import LogLines
from kproxy.sync.node_info import NODE_PATIENCE, NodeWatcher
from tests.fakes.clocks import ManualClock
from tests.model.builders import cidr

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


def config(**fields: object) -> KubeProxyConfiguration:
    return from_text(json.dumps(HEADER | fields))


def watcher(host: Host, clock: ManualClock | None = None, **fields: object) -> NodeWatcher:
    return NodeWatcher(config(**fields), host, clock or ManualClock())


def state(*nodes: objects.Node) -> ClusterState:
    found = ClusterState("node1")
    found.apply(Listed(Kind.NODE, nodes))
    return found


def node(ip: str = "", pod_cidr: str | None = None, zone: str = "", uid: str | None = None) -> objects.Node:
    addresses = [objects.NodeAddress("InternalIP", ip)] if ip else []
    return objects.Node(
        objects.Metadata("node1", uid=uid, labels={ZONE_LABEL: zone} if zone else None),
        objects.NodeSpec(pod_cidr=pod_cidr),
        objects.NodeStatus(addresses=addresses),
    )


def ips(found: NodeInfo | None) -> tuple[str, ...]:
    assert found is not None
    return found.ips


def test_the_node_objects_address_comes_before_the_hosts(host: Host) -> None:
    assert watcher(host).current(state(node("172.30.0.9", zone="zone-a"))) == NodeInfo(
        "node1", "zone-a", ("172.30.0.9",), addresses=host.held
    )


def test_new_addresses_of_the_host_are_read_when_it_reports_a_change(host: Host) -> None:
    watched, known = watcher(host), state()
    before = watched.current(known)
    host.held = ("127.0.0.1", "192.168.9.7", "172.30.0.1")
    assert watched.current(known) == before
    host.move(*host.held)
    after = watched.current(known)
    assert after is not None
    assert after.addresses == host.held


def test_service_cidrs_are_taken_from_the_state(host: Host) -> None:
    watched, known = watcher(host), state()
    known.apply(Changed(Kind.SERVICE_CIDR, cidr("all", "10.96.0.0/16")))
    found = watched.current(known)
    assert found is not None
    assert found.service_cidrs == ("10.96.0.0/16",)


def test_addresses_that_cannot_be_read_stay_as_they_were(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    watched, known = watcher(host), state()
    before = watched.current(known)
    host.move("127.0.0.1", "172.30.0.2")
    host.broken = True
    assert [watched.current(known) for _ in range(3)] == [before] * 3
    assert [record.levelname for record in caplog.records if "Cannot read" in record.message] == ["ERROR"]
    host.broken = False
    assert ips(watched.current(known)) == ("172.30.0.2",)


def test_nothing_is_planned_while_no_address_was_ever_read(host: Host) -> None:
    host.broken = True
    watched, known = watcher(host), state()
    assert watched.current(known) is None
    host.broken = False
    assert watched.current(known) is not None


def test_mode_node_cidr_waits_for_the_pod_cidr(host: Host) -> None:
    clock = ManualClock()
    watched, known = watcher(host, clock, detectLocalMode="NodeCIDR"), state(node("172.30.0.9"))
    clock.advance(10 * NODE_PATIENCE)
    assert watched.current(known) is None
    known.apply(Changed(Kind.NODE, node("172.30.0.9", "10.244.1.0/24")))
    assert watched.current(known) is not None


@pytest.fixture
def shown() -> Iterator[LogLines]:
    """What the status page shows of the node's log."""
    lines = LogLines()
    with logs.listening(lines.add):
        yield lines


WITHOUT_POD_CIDR = [
    (ClusterState("node1"), "The Nodes were not listed"),
    (state(), "There is no Node of this name"),
    (state(node("172.30.0.9")), '"kubectl get node node1 -o yaml" shows no spec.podCIDRs'),
]


@pytest.mark.parametrize(("known", "advice"), WITHOUT_POD_CIDR, ids=["no list", "no Node", "no pod CIDR"])
def test_a_long_wait_for_the_pod_cidr_is_warned_of_once_with_advice(
    host: Host, shown: LogLines, known: ClusterState, advice: str
) -> None:
    clock = ManualClock()
    watched = watcher(host, clock, detectLocalMode="NodeCIDR")
    for _ in range(2):
        assert watched.current(known) is None
        clock.advance(NODE_PATIENCE)
    assert shown.lines() == ()
    for _ in range(3):
        assert watched.current(known) is None
        clock.advance(NODE_PATIENCE)
    (line,) = shown.lines()
    assert (line.level, line.times) == ("warning", 1)
    assert line.text.startswith("Still waiting for the Node's pod CIDR")
    assert advice in line.text


def test_another_wait_is_warned_of_again(host: Host, shown: LogLines) -> None:
    clock = ManualClock()
    watched, known = watcher(host, clock), state(node("172.30.0.9"))
    for _ in range(2):
        watched.reconfigure(config(detectLocalMode="NodeCIDR"))
        assert watched.current(known) is None
        clock.advance(NODE_PATIENCE + 1)
        assert watched.current(known) is None
        watched.reconfigure(config())
        assert watched.current(known) is not None
    assert sum(line.times for line in shown.lines()) == 2


def test_a_node_list_that_does_not_come_is_waited_for_for_a_while_and_warned_of_once(
    host: Host, shown: LogLines
) -> None:
    clock = ManualClock()
    watched, known = watcher(host, clock), ClusterState("node1")
    assert watched.current(known) is None
    clock.advance(NODE_PATIENCE)
    assert watched.current(known) is None
    assert shown.lines() == ()
    for _ in range(2):
        clock.advance(1)
        assert ips(watched.current(known)) == ("172.30.0.1",)
    (line,) = [line for line in shown.lines() if "The Node object is not available" in line.text]
    assert line.times == 1
    assert "The Nodes were not listed" in line.text


def test_what_was_known_of_the_node_holds_while_it_is_made_anew(host: Host) -> None:
    """kube-proxy ends and waits; here what is programmed stays right."""
    watched, known = watcher(host, detectLocalMode="NodeCIDR"), state()
    known.apply(Changed(Kind.NODE, node("172.30.0.9", "10.244.1.0/24", "zone-a")))
    before = watched.current(known)
    assert before is not None
    assert (before.zone, before.pod_cidrs) == ("zone-a", ("10.244.1.0/24",))
    known.apply(Deleted(Kind.NODE, "", "node1"))
    assert watched.current(known) == before
    for step in (node(), node("172.30.0.9"), node("172.30.0.9", "10.244.1.0/24"), node(zone="zone-a")):
        known.apply(Changed(Kind.NODE, step))
        assert watched.current(known) == before, "made anew, and not complete yet"
    known.apply(Changed(Kind.NODE, node("172.30.0.9", "10.244.2.0/24", "zone-b")))
    assert watched.current(known) == replace(before, zone="zone-b", pod_cidrs=("10.244.2.0/24",))


def test_a_node_keeps_its_zone_if_it_was_made_anew_and_not_if_the_label_was_removed(host: Host) -> None:
    """Also where the deletion itself was never seen, as when the watch broke off meanwhile."""
    watched, known = watcher(host), state()
    steps = [
        (node(zone="zone-a", uid="1"), "zone-a"),
        (node(uid="2"), "zone-a"),
        (node(uid="2"), "zone-a"),
        (node(zone="zone-b", uid="2"), "zone-b"),
        (node(uid="2"), ""),
        (node(uid="3"), ""),
    ]
    for item, zone in steps:
        known.apply(Changed(Kind.NODE, item))
        found = watched.current(known)
        assert found is not None
        assert found.zone == zone


IPS = [
    (["172.30.0.9", "172.30.0.8"], ["This node's IPs changed"]),
    (["", "172.30.0.8"], ["The Node object has no IP; using this host's own", "This node's IPs changed"]),
    (["172.30.0.9", "172.30.0.9"], []),
]


@pytest.mark.parametrize(("of_object", "expected"), IPS)
def test_the_log_says_where_the_nodes_ip_comes_from(
    host: Host, caplog: pytest.LogCaptureFixture, of_object: list[str], expected: list[str]
) -> None:
    caplog.set_level("INFO", "kproxy.node")
    watched, known = watcher(host), state()
    for ip in of_object:
        known.apply(Changed(Kind.NODE, node(ip)))
        watched.current(known)
    assert [record.message for record in caplog.records] == expected


def test_a_node_without_any_ip_is_warned_of(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.held = ()
    watched = watcher(host)
    watched.current(state())
    watched.current(state())
    assert len([record for record in caplog.records if "Can't determine this node's IP" in record.message]) == 1


def test_another_configuration_counts_from_the_next_look_on(host: Host) -> None:
    watched, known = watcher(host), state(node("172.30.0.9"))
    assert ips(watched.current(known)) == ("172.30.0.9",)
    assert watched.external_ips()
    watched.reconfigure(config(bindAddress="172.30.0.7", featureGates={"AllowServiceExternalIPs": False}))
    assert ips(watched.current(known)) == ("172.30.0.7",)
    assert not watched.external_ips()
