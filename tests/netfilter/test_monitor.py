"""Foreign changes are noticed on the real kernel, our own are not, and nothing blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kproxy.kernel import netlink
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.kernel.netlink_sockets import Socket
from kproxy.model.plans import Family
from kproxy.netfilter.changes import REST, NftDrift, OwnTransactions, WatchedTables
from kproxy.netfilter.kernel import generation
from kproxy.netfilter.notifications import Monitor

RULES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A
-A KUBE-SVC-A -j RETURN
COMMIT
"""
BOTH_TABLES = """*nat
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A KUBE-FORWARD -j RETURN
COMMIT
"""
NEWCHAIN, NFTA_CHAIN_USERDATA = 10 << 8 | 3, 12
NFT = Command(Backend.NFT, "-nft", (1, 8, 9))
RESTORE = ["iptables-nft-restore", "--noflush"]
Shell = Callable[..., str]


@pytest.fixture
def commands(shell: Shell) -> Commands:
    shell("iptables-nft -V")
    shell("nft -v")
    return Commands()


@pytest.fixture
def monitor(commands: Commands) -> Iterator[Monitor]:
    """Rules of ours are in the kernel, and the monitor has nothing to say about that."""
    with Monitor(lambda pid: pid in commands.recent_pids()) as monitor:
        assert commands.run(RESTORE, RULES.encode()).ok
        assert monitor.poll(timeout=30.0) == []
        yield monitor


def reported(monitor: Monitor) -> set[str]:
    return {" ".join(str(change).split()[2:]) for change in monitor.poll(timeout=30.0)}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(
            "iptables-nft -t nat -F KUBE-SVC-A", {"deleted rule ip nat KUBE-SVC-A"}, id="a chain of ours is flushed"
        ),
        pytest.param(
            "iptables-nft -t nat -A KUBE-SVC-A -j ACCEPT", {"changed rule ip nat KUBE-SVC-A"}, id="a rule is added"
        ),
        pytest.param(
            "iptables-nft -t nat -D PREROUTING -j KUBE-SERVICES",
            {"deleted rule ip nat PREROUTING"},
            id="a jump is lost",
        ),
        pytest.param("nft delete table ip nat", {"deleted table ip nat"}, id="the table is deleted"),
        pytest.param("nft flush ruleset", {"deleted table ip nat"}, id="everything is flushed"),
        pytest.param("iptables-nft -t nat -F", {"deleted rule ip nat KUBE-SERVICES"}, id="iptables flushes the table"),
    ],
)
def test_a_foreign_change_is_reported(monitor: Monitor, shell: Shell, command: str, expected: set[str]) -> None:
    shell(command)
    assert expected <= reported(monitor)
    assert monitor.poll() == []


@pytest.mark.parametrize(
    "command",
    [
        "iptables-nft -t nat -N DOCKER",
        "iptables-nft -t nat -A OUTPUT -j ACCEPT",
        "iptables-nft -t mangle -N KUBE-KUBELET-CANARY",
        "nft add table ip mine",
        "nft add table inet nat",
        "iptables-nft -t raw -N KUBE-SERVICES",
    ],
)
def test_a_foreign_change_that_does_not_concern_us_is_not(monitor: Monitor, shell: Shell, command: str) -> None:
    shell(command)
    assert monitor.poll(timeout=30.0) == []


def test_our_own_changes_are_not_reported_even_between_foreign_ones(
    monitor: Monitor, commands: Commands, shell: Shell
) -> None:
    shell("iptables-nft -t nat -A KUBE-SVC-A -j ACCEPT")
    assert commands.run(RESTORE, b"*nat\n:KUBE-SVC-B - [0:0]\n-A KUBE-SVC-B -j RETURN\nCOMMIT\n").ok
    assert commands.run(["iptables-nft", "-t", "nat", "-F", "KUBE-SVC-A"]).ok
    assert reported(monitor) == {"changed rule ip nat KUBE-SVC-A"}


def test_another_program_is_named(monitor: Monitor, shell: Shell) -> None:
    shell("nft flush ruleset")
    assert {change.process for change in monitor.poll(timeout=30.0)} == {"nft"}


def test_both_families_are_followed(monitor: Monitor, shell: Shell) -> None:
    shell("ip6tables-nft -t filter -N KUBE-FORWARD")
    assert reported(monitor) == {"changed chain ip6 filter KUBE-FORWARD"}


def test_any_table_can_be_followed_in_full(commands: Commands, shell: Shell) -> None:
    with Monitor(lambda _: False, tables={("inet", "kproxy")}, relevant=lambda _: True) as monitor:
        shell("iptables-nft -t nat -N KUBE-SERVICES")
        shell("nft add table inet kproxy")
        shell("nft 'add set inet kproxy ips { type ipv4_addr; }'")
        shell("nft 'add element inet kproxy ips { 10.0.0.1 }'")
        assert reported(monitor) == {
            "changed table inet kproxy",
            "changed set inet kproxy ips",
            "changed element inet kproxy ips",
        }


def test_without_any_change_poll_returns_at_once(monitor: Monitor) -> None:
    assert [monitor.poll() for _ in range(1000)] == [[]] * 1000


def test_more_changes_than_can_be_queued_are_reported_as_unknown(monitor: Monitor, shell: Shell) -> None:
    table, filler = netlink.netfilter(2) + netlink.text(1, "nat"), netlink.attribute(NFTA_CHAIN_USERDATA, bytes(255))
    chains = [table + netlink.text(3, f"KUBE-{i}-{'x' * 200}") + filler for i in range(40_000)]
    with Socket(12) as kernel:
        assert kernel.transact(10, [(NEWCHAIN, netlink.NLM_F_CREATE, chain) for chain in chains], "make chains") == {}
    assert [change.event for change in monitor.poll()][-1] is None
    assert monitor.poll() == []
    shell("iptables-nft -t nat -F KUBE-SERVICES")
    assert reported(monitor) == {"deleted rule ip nat KUBE-SERVICES"}


def test_what_is_forgotten_is_not_reported(monitor: Monitor, shell: Shell) -> None:
    shell("nft flush ruleset")
    monitor.forget()
    assert monitor.poll() == []


def test_the_descriptor_is_readable_after_a_change(monitor: Monitor, shell: Shell) -> None:
    assert os.get_blocking(monitor.fd()) is False
    with pytest.raises(BlockingIOError):
        os.read(monitor.fd(), 1)
    shell("nft flush ruleset")
    assert os.read(monitor.fd(), 1)


def test_the_generation_counts_transactions(commands: Commands, shell: Shell) -> None:
    before = generation()
    assert generation() == before
    shell("nft add table ip one")
    shell("nft add table ip two")
    assert generation() == before + 2


# ---------------------------------------------------------------- both families


def restored(tables: WatchedTables, drift: NftDrift, number: int) -> list[bool]:
    """Restores again and again; returns whether others seemed to have changed anything in between."""
    answers = []
    for _ in range(number):
        tables.restore(BOTH_TABLES)
        answers.append(drift.changed())
    return answers


def test_a_family_that_restores_is_no_other_program_to_the_other_family(commands: Commands, shell: Shell) -> None:
    now = [0.0]
    own = OwnTransactions(lambda: now[0])
    drifts = [NftDrift(family, lambda pid: pid in commands.recent_pids(), own) for family in Family]
    both = [WatchedTables(HostTables(commands, drift._family, NFT), drift) for drift in drifts]
    for drift in drifts:
        drift.reading()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(restored, both, drifts, [20, 20]))
    assert not any(map(any, answers))
    now[0] += REST  # from now on they listen, each to its own tables
    assert [drift.changed() for drift in drifts] == [False, False]
    shell("ip6tables-nft -t nat -F KUBE-SERVICES")
    assert [drift.changed() for drift in drifts] == [False, True]
    for drift in drifts:
        drift.close()


def test_what_others_did_before_it_listened_is_not_lost_while_the_other_family_restores(
    commands: Commands, shell: Shell
) -> None:
    own = OwnTransactions()
    drift, other = (NftDrift(family, lambda pid: pid in commands.recent_pids(), own) for family in Family)
    drift.reading()
    with other.restoring() as transaction:
        shell("nft add table ip nat")
        assert not drift.changed()
        transaction.ended(0)
    assert drift.changed()
    drift.reading()
    assert not drift.changed()
    drift.close()
