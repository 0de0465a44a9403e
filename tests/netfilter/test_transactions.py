"""Which notifications count as somebody else's change to our rules: bytes in, values out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kproxy.kernel import netlink
from kproxy.netfilter.notifications import IPTABLES_TABLES, Change, Event, Transactions, touches_kube_chains

IP, IP6, INET = 2, 10, 1
TABLE, CHAIN, RULE, SET, ELEMENT = 0, 3, 6, 9, 12
DELETE = 2
OURS, THEIRS = 100, 200


def note(number: int, *attributes: bytes, family: int = IP, portid: int = 0) -> bytes:
    payload = bytes([family, 0, 0, 0]) + b"".join(attributes)
    return netlink.message(10 << 8 | number, 0, 1, payload, portid)


def rule(table: str, chain: str, deleted: bool = False, family: int = IP) -> bytes:
    handle = netlink.be64(3, 7)
    number = RULE + DELETE * deleted
    return note(number, netlink.text(1, table), netlink.text(2, chain), handle, family=family)


def chain(table: str, name: str, deleted: bool = False, family: int = IP) -> bytes:
    names = (netlink.text(1, table), netlink.be64(2, 7), netlink.text(3, name))
    return note(CHAIN + DELETE * deleted, *names, family=family)


def table(name: str, deleted: bool = False, family: int = IP) -> bytes:
    return note(TABLE + DELETE * deleted, netlink.text(1, name), family=family)


def end(pid: int, process: str = "tool", portid: int = 0) -> bytes:
    return note(15, netlink.be32(1, 5), netlink.be32(2, pid), netlink.text(3, process), portid=portid)


def read(notes: Iterable[bytes], by_portid: bool = False) -> list[Change]:
    transactions = Transactions(lambda pid: pid == OURS, IPTABLES_TABLES, touches_kube_chains, by_portid)
    return [change for data in notes for change in transactions.feed(data)]


@pytest.mark.parametrize(
    ("event", "matters"),
    [
        pytest.param(rule("nat", "KUBE-SERVICES"), True, id="a rule in a chain of ours"),
        pytest.param(rule("nat", "KUBE-SVC-ABC", deleted=True), True, id="a rule lost from a chain of ours"),
        pytest.param(rule("filter", "KUBE-FORWARD", family=IP6), True, id="IPv6 alike"),
        pytest.param(rule("nat", "DOCKER"), False, id="a rule in another chain"),
        pytest.param(rule("nat", "DOCKER", deleted=True), False, id="a rule lost from another chain"),
        pytest.param(rule("nat", "PREROUTING"), False, id="a rule added to a built-in chain"),
        pytest.param(rule("nat", "PREROUTING", deleted=True), True, id="a rule lost from a built-in chain"),
        pytest.param(rule("raw", "KUBE-SERVICES"), False, id="a table that is not ours"),
        pytest.param(rule("nat", "KUBE-SERVICES", family=INET), False, id="a family that is not ours"),
        pytest.param(chain("nat", "KUBE-NEW"), True, id="a chain with our prefix"),
        pytest.param(chain("nat", "KUBE-SVC-ABC", deleted=True), True, id="a chain of ours lost"),
        pytest.param(chain("mangle", "KUBE-KUBELET-CANARY"), False, id="the kubelet's canary"),
        pytest.param(chain("mangle", "KUBE-IPTABLES-HINT", deleted=True), False, id="the kubelet's hint"),
        pytest.param(rule("mangle", "KUBE-KUBELET-CANARY"), False, id="a rule in the canary"),
        pytest.param(chain("nat", "OUTPUT"), False, id="a built-in chain made"),
        pytest.param(chain("nat", "OUTPUT", deleted=True), True, id="a built-in chain lost"),
        pytest.param(table("nat"), False, id="a table made"),
        pytest.param(table("nat", deleted=True), True, id="a table lost"),
        pytest.param(table("kube", deleted=True), False, id="another table lost"),
        pytest.param(note(ELEMENT, netlink.text(1, "nat"), netlink.text(2, "KUBE-IPS")), True, id="a set of ours"),
        pytest.param(note(33, netlink.text(1, "nat")), False, id="a message that is not known yet"),
    ],
)
def test_what_matters(event: bytes, matters: bool) -> None:
    assert bool(read([event + end(THEIRS)])) == matters
    assert read([event + end(OURS)]) == []


def test_a_change_says_what_happened_and_who_did_it() -> None:
    (lost, made) = read([chain("nat", "KUBE-SVC-A", deleted=True) + rule("nat", "KUBE-B") + end(THEIRS, "firewalld")])
    assert lost == Change(Event(True, "chain", "ip", "nat", "KUBE-SVC-A"), THEIRS, "firewalld")
    assert str(lost) == "firewalld (200) deleted chain ip nat KUBE-SVC-A"
    assert str(made) == "firewalld (200) changed rule ip nat KUBE-B"
    assert str(Change()) == "changes that are not known"


def test_a_transaction_may_span_datagrams_and_a_datagram_transactions() -> None:
    data = [
        rule("nat", "KUBE-A"),
        rule("nat", "KUBE-B") + end(THEIRS) + rule("nat", "KUBE-C") + end(OURS) + rule("nat", "KUBE-D"),
        end(THEIRS),
    ]
    assert [c.event.name for c in read(data) if c.event] == ["KUBE-A", "KUBE-B", "KUBE-D"]


def test_nothing_is_reported_before_the_transaction_is_complete() -> None:
    assert read([rule("nat", "KUBE-A")]) == []


def test_a_flush_of_everything_is_reported_by_a_few_events() -> None:
    flush = b"".join(rule("nat", f"KUBE-SVC-{i // 3}", deleted=True) for i in range(3000))
    assert len(read([flush + end(THEIRS)])) == 8


def test_in_a_container_the_port_id_tells_who_it_was() -> None:
    event = rule("nat", "KUBE-A")
    assert read([event + end(pid=OURS, portid=THEIRS)], by_portid=True)
    assert not read([event + end(pid=THEIRS, portid=OURS)], by_portid=True)


def test_messages_of_other_subsystems_are_passed_over() -> None:
    assert read([netlink.message(1 << 8, 0, 1, b"\x02\0\0\0") + rule("nat", "KUBE-A") + end(THEIRS)])


def test_a_transaction_half_seen_can_be_forgotten() -> None:
    transactions = Transactions(lambda _: False, IPTABLES_TABLES, touches_kube_chains, by_portid=False)
    assert list(transactions.feed(rule("nat", "KUBE-A"))) == []
    transactions.reset()
    assert list(transactions.feed(end(THEIRS))) == []
