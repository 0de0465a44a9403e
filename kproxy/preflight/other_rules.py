"""Takes the rules of iptables on a node apart: those that a Service proxy wrote, and those of others. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.modes.xtables import names
from kproxy.modes.xtables.node_rules import jump_target


def of_others(saved: str) -> str:
    """The rules in iptables-save text that stay when no proxy's rules are left."""
    return "".join(f"{line}\n" for line in saved.splitlines() if not _of_proxy(line))


def has_proxy(saved: str) -> bool:
    """Whether iptables-save text has the rules of a proxy for Services."""
    return f"\n:{names.SERVICES} " in saved


def together(rendered: str, others: str) -> str:
    """Rendered rules, and others behind them in each built-in chain, whose policies stay."""
    tables: dict[str, tuple[dict[str, str], list[str]]] = {}
    for table, line in (*_lines(rendered), *_lines(others)):
        chains, rules = tables.setdefault(table, ({}, []))
        if line.startswith(":"):
            chains[line[1:].split(" ", 1)[0]] = line
        else:
            rules.append(line)
    parts = ("\n".join((f"*{table}", *chains.values(), *rules)) for table, (chains, rules) in tables.items())
    return "".join(f"{part}\nCOMMIT\n" for part in parts)


def _lines(saved: str) -> Iterable[tuple[str, str]]:
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith((":", "-A ")):
            yield table, line


def _of_proxy(line: str) -> bool:
    if line.startswith(":"):
        return _is_ours(line[1:].split(" ", 1)[0])
    if not line.startswith("-A "):
        return False
    chain, _, rule = line[3:].partition(" ")
    return _is_ours(chain) or _is_ours(jump_target(rule).split(" ", 1)[0])


def _is_ours(chain: str) -> bool:
    return chain in names.NODE_CHAINS or chain == names.FIREWALL or chain.startswith(names.PORT_CHAINS)
