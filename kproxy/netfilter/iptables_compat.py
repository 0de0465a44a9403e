"""The iptables tables on nf_tables, where the commands of iptables give up at rules of nft's own.

Decides: what netlink says in their place, the names of chains and whether a chain has one of our rules. Leaves out:
reading rules of iptables in general, whose matches are blobs of the kernel's extensions.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection

from kproxy.errors import KernelError
from kproxy.kernel.commands import Runner
from kproxy.kernel.constants import ADDRESS_FAMILY
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.model.plans import Family
from kproxy.netfilter.kernel import KernelNftables

_COMMENT = re.compile(r'--comment "([^"]*)"')
_TARGET = re.compile(r"-j (KUBE-\S+)")
_ADDRESS = re.compile(r"(?:^|[^!] )-d ([0-9a-f.:]+)(?:/32|/128) ")


class NftTables(HostTables):
    """The host's tables on nf_tables, of the network namespace of the calling thread."""

    def chains(self, table: str) -> Collection[str]:
        with KernelNftables() as kernel:
            return kernel.chain_names(self.family, table)

    def holds(self, table: str, chain: str, rule: str) -> bool:
        """See Tables. A rule is recognised by its comment, its target chain and its destination address, where
        iptables cannot compare it."""
        try:
            return super().holds(table, chain, rule)
        except KernelError:
            marks = marks_of(rule, self.family)
            with KernelNftables() as kernel:
                return any(
                    all(mark in each for mark in marks) for each in kernel.encoded_rules(self.family, table, chain)
                )


def marks_of(rule: str, family: Family) -> list[bytes]:
    """The parts of a rule of ours that stand in its encoded form as they are."""
    marks = [found[1].encode() for pattern in (_COMMENT, _TARGET) if (found := pattern.search(rule))]
    if address := _ADDRESS.search(rule):
        marks.append(socket.inet_pton(ADDRESS_FAMILY[family], address[1]))
    return marks


def host_tables(runner: Runner, family: Family, command: Command) -> HostTables:
    """The host's tables of one family, by the backend of COMMAND."""
    return (NftTables if command.backend is Backend.NFT else HostTables)(runner, family, command)
