"""What commands answered on several nodes, merged: nodes with the same answer stand together. Pure."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kproxy.errors import one_line

WIDTH = 100
_LEFT = 28
_NAMED = 12
"""How many nodes of the largest group are named; of the others all are."""


class Answer(NamedTuple):
    """A command's answer on one node. value: its JSON, None if it failed. error: why, in one line. notes: warnings."""

    node: str
    status: int
    value: Any = None
    error: str = ""
    notes: tuple[str, ...] = ()


class Group(NamedTuple):
    """Nodes that answered alike, and what, in lines."""

    nodes: tuple[str, ...]
    lines: tuple[str, ...]


def groups(command: str, answers: Sequence[Answer]) -> list[Group]:
    """The nodes that answered, the largest group first."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for answer in answers:
        if answer.value is not None:
            found[tuple(_LINES[command](answer.value))].append(answer.node)
    merged = [Group(tuple(sorted(nodes)), lines) for lines, nodes in found.items()]
    return sorted(merged, key=lambda group: (-len(group.nodes), group.nodes))


def as_json(command: str, answers: Sequence[Answer]) -> dict[str, object]:
    """Every node's own answer, the groups of nodes that agree, and why others failed."""
    alike = [] if command == "top" else [list(group.nodes) for group in groups(command, answers)]
    return {
        "nodes": {each.node: each.value for each in answers if each.value is not None},
        "groups": alike,
        "failed": {each.node: each.error for each in answers if each.value is None},
    }


def as_text(command: str, answers: Sequence[Answer]) -> str:
    """A headline and a table, at most 100 columns wide; "" when no node answered."""
    failed = sum(each.value is None for each in answers)
    if failed == len(answers):
        return ""
    after = f"; {failed} of {len(answers)} did not answer" if failed else ""
    if command == "top":
        return "".join(f"{line}\n" for line in [f"The sum of {len(answers) - failed} nodes{after}", "", *_top(answers)])
    found = groups(command, answers)
    alike, answered = len(found[0].nodes), len(answers) - failed
    head = f"all {answered} nodes agree" if answered == len(answers) else f"{answered} nodes agree"
    if answered == 1:
        head = "1 node answered"
    if len(found) > 1:
        head = f"{answered - alike} of {answered} nodes {'differs' if answered - alike == 1 else 'differ'}"
    rows = [head + after, "", f"{'NODES':{_LEFT}}{command.upper()}"]
    for at, group in enumerate(found):
        rows += _row(group, _NAMED if at == 0 else len(group.nodes))
    return "".join(f"{row.rstrip()}\n" for row in rows)


def _row(group: Group, named: int) -> Iterator[str]:
    more = len(group.nodes) - named
    names = ", ".join(group.nodes[:named]) + (f" and {more} more" if more > 0 else "")
    left = textwrap.wrap(f"{len(group.nodes)}: {names}" if len(group.nodes) > 1 else names, _LEFT - 2)
    right = [part for line in group.lines for part in _wrapped(line)]
    for at in range(max(len(left), len(right))):
        yield f"{left[at] if at < len(left) else '':{_LEFT}}{right[at] if at < len(right) else ''}"
    yield ""


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(one_line(line), WIDTH - _LEFT, initial_indent=indent, subsequent_indent=f"{indent}    ")


# ---------------------------------------------------------------- one node's answer in lines, the same on equal nodes


def _status(value: Mapping[str, Any]) -> Iterator[str]:
    """Without times and endpoints, which differ from node to node."""
    yield f"{'healthy' if value['healthy'] else 'UNHEALTHY'}, {value['program']} {value['version']}, {value['mode']}"
    if not value["nodeEligible"]:
        yield "the node is about to go"
    for family in value["families"]:
        yield f"{family['family']}: {family['ports']} Service ports" + ("" if family["healthy"] else ", UNHEALTHY")
    for each in value.get("refused", ()):
        yield f"refused by the kernel: {each['service']} ({each['family']}): {each['reason']}"
    for each in value.get("unreadable", ()):
        yield f"cannot be read: {each['what']} ({each['family']}): {each['reason']}"
    for each in value.get("conflicts", ()):
        yield f"conflict at {each['where']}: {', '.join(each['services'])}"
    for each in value.get("unusable", ()):
        yield f"unusable: {each['kind']} {each['object']}: {each['reason']}"
    for each in value.get("internalErrors", ()):
        yield f"internal error in {each['stage']}: {each['error']}"


def _trace(value: Mapping[str, Any]) -> Iterator[str]:
    """Without the rules, the interface and the source seen, which are each node's own."""
    for trace in value["traces"]:
        probe = trace["probe"]
        # A node port is reached at each node's own address.
        yield f"{probe['port'] if 'node port' in str(probe['port']) else probe['to']}/{str(probe['protocol']).lower()}"
        if trace.get("conntrack"):
            yield "  followed instead: an entry of connection tracking"
        for step in trace.get("unknown", ()):
            yield f"  ! depends on {step['table']} {step['chain']}: {step['rule']}"
        for outcome in sorted(trace["outcomes"], key=lambda each: (str(each["endpoint"]), each["fate"])):
            share = "" if outcome["probability"] in ("1", "1/1") else f"{outcome['probability']} "
            yield f"  {share}{outcome['fate']}{_where(outcome)}"


def _where(outcome: Mapping[str, Any]) -> str:
    if outcome["endpoint"]:
        return f" to {outcome['endpoint']}" + (", masqueraded" if outcome["masqueraded"] else "")
    if outcome["fate"] in ("dropped", "rejected") and outcome["steps"]:
        last = outcome["steps"][-1]
        return f" by {last['table']} {last['chain']}"
    return ""


def _diff(value: Mapping[str, Any]) -> Iterator[str]:
    if value["equal"]:
        yield "the kernel holds what it should"
    for each in value["differences"]:
        yield (
            f"{each['kind']}: {each['service']}: {each['what']}"
            if each["service"]
            else f"{each['kind']}: {each['what']}"
        )


def _preflight(value: Mapping[str, Any]) -> Iterator[str]:
    yield value["verdict"]
    for each in value["differences"]:
        yield f"  {each['summary']}"
    for each in value.get("requirements", ()):
        if not each["met"]:
            yield f"  not met: {each['what']}: {each['detail']}"


_LINES: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "status": _status,
    "trace": _trace,
    "diff": _diff,
    "preflight": _preflight,
}
COMMANDS = (*_LINES, "top")
"""The commands whose answers can be merged."""


def _top(answers: Sequence[Answer]) -> Iterator[str]:
    """Connections of each Service port over all nodes, the most per second first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0])
    for answer in answers:
        for each in answer.value["services"] if answer.value else ():
            total = sums[f"{each['namespace']}/{each['name']}:{each['port']}/{each['protocol'].lower()}"]
            for at, key in enumerate(("connections", "rate", "refused")):
                total[at] += each[key] or 0
    yield f"{'SERVICE':60} {'CONNECTIONS':>13} {'PER SECOND':>12} {'REFUSED':>12}"
    for name, (count, rate, refused) in sorted(sums.items(), key=lambda each: (-each[1][1], -each[1][0], each[0])):
        shown = name if len(name) <= 60 else f"{name[:59]}…"
        yield f"{shown:60} {count:13.0f} {rate:12.1f} {refused:12.0f}"
