"""Reads one family's iptables tables as far as they can be read.

Decides: what stands for a table that iptables-save cannot show, because it holds something of another program that
iptables cannot read. Its node-wide chains are read one by one; of a built-in chain that cannot be read either, and of
KUBE-FIREWALL, it is found out which of the wanted rules they have. A chain of ours that cannot be read counts as
missing, so that it is written anew, and of the chains of single ports, which are too many, only the names are known.
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.errors import KernelError
from kproxy.kernel.iptables import Tables, unreadable_tables
from kproxy.modes.xtables.names import FIREWALL, NODE_CHAINS, PORT_CHAINS
from kproxy.modes.xtables.rules import Base
from kproxy.modes.xtables.saved import Saved

BUILTIN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def read(tables: Tables, base: Base) -> Saved:
    """What the tables hold. base: what they should hold of the node's own rules. Raises KernelError."""
    text = tables.save()
    unreadable = unreadable_tables(text)
    parts = (line for table in unreadable for line in _chain_by_chain(tables, table, base))
    return Saved(text + "".join(parts), unreadable)


def _chain_by_chain(tables: Tables, table: str, base: Base) -> Iterator[str]:
    heads, rules = "", ""
    for chain in tables.chains(table):
        head, _, lines = _chain(tables, table, chain, base).partition("\n")
        heads += f"{head}\n" if head else ""
        rules += lines
    yield f"*{table}\n{heads}{rules}COMMIT\n"


def _chain(tables: Tables, table: str, chain: str, base: Base) -> str:
    """One chain as iptables-save prints it, its name on a line of its own; "" for one to be treated as missing."""
    if chain.startswith(PORT_CHAINS):
        return f":{chain} - [0:0]\n"
    if chain not in BUILTIN and chain not in NODE_CHAINS and chain != FIREWALL:
        return ""
    try:
        return tables.list_chain(table, chain)
    except KernelError:
        if chain in BUILTIN:
            return f":{chain} ACCEPT [0:0]\n{_held(tables, table, chain, base.jumps.get((table, chain), ()))}"
        if joint := base.joint.get((table, chain)):
            return f":{chain} - [0:0]\n{_held(tables, table, chain, joint)}"
        return ""


def _held(tables: Tables, table: str, chain: str, wanted: tuple[str, ...]) -> str:
    return "".join(f"-A {chain} {rule}\n" for rule in wanted if tables.holds(table, chain, rule))
