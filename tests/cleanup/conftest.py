"""A node with rules of the kubelet's and of others, and all that it holds as text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kproxy.lab import links
from kproxy.lab.namespaces import Namespace, unavailable
from tests.cleanup.others import reachable

TOOLS = [f"{stem}-{backend}" for backend in ("nft", "legacy") for stem in ("iptables", "ip6tables")]

# The kubelet's chains with a rule of its own, and what a network plugin and a firewall leave in every table.
OTHERS = """*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9 -j MARK --set-xmark 0x10/0x10
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:CNI-0123 - [0:0]
-A PREROUTING -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22
-A POSTROUTING -p tcp -m tcp --dport 10 -m comment --comment "name: \\"pods\\" id: \\"KUBE-SVC-1\\"" -j CNI-0123
-A CNI-0123 -p udp -m udp --dport 5353 -j ACCEPT
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 23 -j DROP
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall" -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
"""
NFT_OTHERS = """table inet firewall {
    set kube-proxy { type ipv4_addr; elements = { 10.0.0.1 }; }
    chain input {
        type filter hook input priority 5; policy accept;
        ip saddr @kube-proxy counter drop
    }
}
table ip kube-proxy-exporter {
    chain kube-proxy {
        counter
    }
}
"""


@dataclass(slots=True)
class Node:
    """A namespace that plays the node."""

    space: Namespace
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The proxy's log and lock, apart from the host's."""
        return {"XTABLES_LOCKFILE": str(self.folder / "log.lock")}

    def run(self, *argv: str, given: str = "") -> str:
        return self.space.run(argv, given, env=self.environment)

    def clean_up(self, *command: str, confined: Sequence[str] = ()) -> tuple[int, list[str]]:
        """Run `kproxy cleanup`, or another `command` of kproxy: its exit status and the lines that it said.

        confined: setpriv's options for a process that may not do everything.
        """
        whole = (sys.executable, "-m", "kproxy", *(command or ("cleanup",)))
        if confined:
            stage = self.folder / "stage"
            stage.mkdir(exist_ok=True)
            whole = reachable(("setpriv", *confined, *whole), stage)
        done = self.space.call(
            subprocess.run,
            whole,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.environment},
        )
        assert done.stdout == ""
        return done.returncode, done.stderr.splitlines()

    def holds(self) -> dict[str, list[str]]:
        """Every rule and chain: what each tool of iptables saves, and the tables of nf_tables beside those.

        Without packet counts, and without built-in chains and tables that are empty: they come with the first look.
        """
        found = {tool: _rules(self.run(f"{tool}-save")) for tool in TOOLS}
        return {**found, "nft": self._nft_tables()}

    def _nft_tables(self) -> list[str]:
        names = [line.split()[1:] for line in self.run("nft", "list", "tables").splitlines()]
        own = [(family, table) for family, table in names if table not in ("filter", "nat", "mangle", "raw")]
        texts = [self.run("nft", "-a", "list", "table", family, table) for family, table in own]
        return [re.sub(r"packets \d+ bytes \d+", "", text) for text in texts]

    def handles(self) -> set[tuple[str, str]]:
        """Every rule of nf_tables by its chain and handle: one that was written again has another."""
        found, where = set(), ""
        for line in self.run("nft", "-a", "list", "ruleset").splitlines():
            if line.startswith("table"):
                where = line.split(" {")[0]
            elif handle := re.search(r"^\t\t\S.* # handle (\d+)$", line):
                found.add((where, handle[1]))
        return found


def _rules(text: str) -> list[str]:
    table, found = "", []
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith("-A") or (line.startswith(":") and line.split()[1] == "-"):
            found.append(f"{table} {line.partition(' [')[0]}")
    return sorted(found)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    tools = [f"{tool}-{verb}" for tool in TOOLS for verb in ("save", "restore")]
    if reason := unavailable((*tools, "nft")):
        pytest.skip(reason)
    space = Namespace("node1")
    try:
        links.up(space)
        yield Node(space, tmp_path)
    finally:
        space.close()


@pytest.fixture
def shared(node: Node) -> Node:
    """A node on which others have rules too, in both backends and both families."""
    for tool in TOOLS:
        node.run(f"{tool}-restore", given=OTHERS)
    node.run("nft", "-f", "-", given=NFT_OTHERS)
    return node
