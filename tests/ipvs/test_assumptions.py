"""The assumptions of the tests in this folder about the kernel and its tools."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.lab.namespaces import Namespace

pytestmark = pytest.mark.ipvs_kernel

SETS = {
    "bitmap:port": ("range 0-65535", "30080"),
    "hash:ip": ("", "10.0.0.1"),
    "hash:ip,port": ("", "10.0.0.1,tcp:80"),
    "hash:ip,port,ip": ("", "10.0.0.1,tcp:80,10.0.0.2"),
    "hash:ip,port,net": ("", "10.0.0.1,tcp:80,10.0.0.0/24"),
}
RULES = {
    "filter": (
        "-A FORWARD -m set --match-set SET dst,dst -j ACCEPT",
        "-A FORWARD -m physdev ! --physdev-is-in -j ACCEPT",
        "-A FORWARD -m ipvs --ipvs -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate ESTABLISHED -m mark --mark 1 -j ACCEPT",
        "-A INPUT -p tcp -j REJECT",
    ),
    "nat": (
        "-A POSTROUTING -m comment --comment text -j MASQUERADE --random-fully",
        "-A PREROUTING -p tcp -m statistic --mode random --probability 0.5 -j REDIRECT --to-ports 1",
    ),
}
SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq", "fo", "ovf")


@pytest.fixture
def space() -> Iterator[Namespace]:
    with closing(Namespace("kernel")) as made:
        made.run(["ip", "link", "set", "lo", "up"])
        yield made


def test_ipvs_has_the_schedulers_and_takes_the_protocols_in_both_families(space: Namespace) -> None:
    servers = [f"-A -t 10.0.0.1:{port} -s {name}" for port, name in enumerate(SCHEDULERS, start=80)]
    for address in ("10.0.0.2:80", "[fd00::1]:80"):
        servers += [f"-A {protocol} {address} -s rr" for protocol in ("-t", "-u", "--sctp-service")]
    lines = {*servers, *(f"-a -t 10.0.0.1:{80 + n} -r 10.0.0.2:8080 -m -w 1" for n in range(len(SCHEDULERS)))}
    space.run(["ipvsadm", "-R"], "\n".join(sorted(lines)))
    assert {line.strip() for line in space.run(["ipvsadm", "-Sn"]).splitlines()} == lines


def test_a_namespace_starts_with_a_table_of_its_own(space: Namespace) -> None:
    space.run(["ipvsadm", "-A", "-t", "10.0.0.1:80"])
    with closing(Namespace("other")) as other:
        assert "10.0.0.1" not in other.run(["ipvsadm", "-Ln"])


def test_dummy_interfaces_carry_addresses(space: Namespace) -> None:
    space.run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
    space.run(["ip", "address", "add", "10.0.0.1/32", "dev", "kube-ipvs0"])
    assert "10.0.0.1/32" in space.run(["ip", "address", "show", "kube-ipvs0"])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_sctp_connects(space: Namespace, address: str) -> None:
    def talk() -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as listener,
            socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as client,
        ):
            listener.bind((address, 0))
            listener.listen()
            client.settimeout(10)
            client.connect(listener.getsockname())
            client.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                return accepted.recv(16)

    assert space.call(talk) == b"hello"


def test_ipset_has_the_types(space: Namespace) -> None:
    names = {kind: kind.replace(":", "-").replace(",", "-") for kind in SETS}
    lines = [
        f"create {names[kind]} {kind} {options}\nadd {names[kind]} {member}" for kind, (options, member) in SETS.items()
    ]
    space.run(["ipset", "restore"], "\n".join(lines) + "\n")
    saved = space.run(["ipset", "save"]).splitlines()
    assert all(f"add {names[kind]} {member}" in saved for kind, (_, member) in SETS.items())


@pytest.mark.parametrize("command", ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"])
def test_iptables_has_the_matches_and_targets(space: Namespace, command: str) -> None:
    family = "inet6" if command.startswith("ip6") else "inet"
    space.run(["ipset", "create", "SET", "hash:ip,port", "family", family])
    tables = "".join(
        f"*{table}\n" + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n" for table, rules in RULES.items()
    )
    space.run([f"{command}-restore", "-w"], tables, env={"XTABLES_LOCKFILE": "/tmp/kernel.lock"})
    saved = space.run([f"{command}-save"])
    assert saved.count("\n-A ") == sum(map(len, RULES.values()))


def test_the_kernel_shows_its_connections(space: Namespace) -> None:
    space.run(["iptables-nft", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT"])
    assert space.run(["conntrack", "-L"]) == ""
