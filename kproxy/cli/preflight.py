"""`kproxy preflight`: what a change of mode would change for first packets, and what it needs. Writes nothing."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import click

from kproxy.cli.exits import DONE, FAILED, Refused
from kproxy.cli.options import CONTEXT, Inputs, with_inputs
from kproxy.cli.trace import outcome_lines, outcome_values
from kproxy.config.fields import ProxyMode
from kproxy.errors import InvalidInput
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family, address_port
from kproxy.modes.preview import Preview
from kproxy.netfilter.objects import InterfaceIs
from kproxy.preflight.classes import Space, Tracer, interface_names
from kproxy.preflight.differences import Comparison, Difference, Places
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.nftables import NftablesTracer
from kproxy.trace.outcome import Host, Outcome, Probe

WIDTH = 100
LIVE = "live"
PROGRESS = 1000
"""Classes after which the progress is shown again."""
TRACED = (ProxyMode.IPTABLES.value, ProxyMode.NFTABLES.value)
_INTERFACE = re.compile(r"^-A .*? -i (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one family. interfaces: the names that they compare with, "veth+" for a prefix."""

    tracer: Tracer
    interfaces: frozenset[str]


@click.command("preflight", context_settings=CONTEXT)
@click.option("--to", "to", required=True, type=click.Choice([mode.value for mode in ProxyMode]), help="The new mode.")
@click.option(
    "--from",
    "before",
    type=click.Choice([LIVE, *(mode.value for mode in ProxyMode)]),
    default=LIVE,
    show_default=True,
    help="What it is compared with: the rules of this node, whoever wrote them, or a mode's.",
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@with_inputs
def command(to: str, before: str, form: str, inputs: Inputs) -> int:
    """Report what would change if this node's mode were --to: for which packets, proved over all of them.

    Exit status 0: nothing changes; 1: something does.
    """
    for option, mode in (("--to", to), ("--from", before)):
        if mode not in (*TRACED, LIVE):
            raise InvalidInput(f"{option}: mode {mode} is not supported yet: there are {', '.join(TRACED)}")
    if before == LIVE:
        raise InvalidInput("--from: live is not supported yet")
    preview, problems = inputs.preview()
    if problems:
        raise Refused(problems)
    today, after = preview.of(inputs.config_of(ProxyMode(before))), preview.of(inputs.config_of(ProxyMode(to)))
    host = Host(frozenset(after.node.addresses))
    found = Comparison()
    for family in Family:
        _compare(found, after, family, host, (_rules(today, before, family, host), _rules(after, to, family, host)))
    report = _report(found, host, before, to)
    click.echo(json.dumps(report, indent=2) + "\n" if form == "json" else _text(report, found, host), nl=False)
    return FAILED if found.differences else DONE


def _rules(preview: Preview, mode: str, family: Family, host: Host) -> Rules:
    """What a mode would program."""
    if mode == ProxyMode.IPTABLES:
        text = preview.iptables(family)
        return Rules(IptablesTracer(text, family, host), frozenset(_INTERFACE.findall(text)))
    layout = preview.nftables_layout(family)
    statements = (s for chain in layout.chains.values() for rule in chain.rules for s in rule)
    names = (f"{s.name}+" if s.prefix else s.name for s in statements if isinstance(s, InterfaceIs))
    return Rules(NftablesTracer(layout, host), frozenset(names))


def _compare(found: Comparison, preview: Preview, family: Family, host: Host, rules: tuple[Rules, Rules]) -> None:
    """Compares two sets of rules, with the progress on standard error if that is a terminal."""
    old, new = rules
    addresses = frozenset(ip for ip in host.addresses if family_of(ip) is family)
    names = interface_names(set(old.interfaces | new.interfaces))
    space = Space(family, addresses, names, preview.node.ip(family) or "")
    places = Places(preview.families[family].plans.values(), host.addresses, preview.node.service_cidrs)
    shows = sys.stderr.isatty()
    for number in found.compare(space, old.tracer, new.tracer, places):
        if shows and number % PROGRESS == 0:
            click.echo(f"\r{number:,} classes of packets compared", err=True, nl=False)
    if shows and found.classes >= PROGRESS:
        click.echo("\r\x1b[K", err=True, nl=False)


# ---------------------------------------------------------------- what is shown


def _report(found: Comparison, host: Host, before: str, to: str) -> dict[str, Any]:
    """The report for JSON; it has all that the text shows."""
    differences, total, differing = found.differences, found.classes, found.differing
    today = "this node's rules" if before == LIVE else f"{before} mode"
    verdict = f"{today} and {to} mode treat every first packet alike, in {total:,} classes of them"
    if differences:
        number = "one difference" if len(differences) == 1 else f"{len(differences)} differences"
        verdict = f"{number} between {today} and {to} mode, in {differing:,} of {total:,} classes of first packets"
    return {"verdict": verdict, "differences": [_values(each, host) for each in differences], "requirements": []}


def _values(difference: Difference, host: Host) -> dict[str, Any]:
    example = difference.example
    probe = example.probe
    return {
        "summary": difference.summary,
        "classes": difference.count,
        "example": {
            "from": probe.source,
            "to": address_port(probe.destination, probe.port),
            "protocol": probe.protocol.lower(),
            "interface": probe.interface,
        },
        "before": {"outcomes": outcome_values(example.before, probe, host)},
        "after": {"outcomes": outcome_values(example.after, probe, host)},
    }


def _text(report: Mapping[str, Any], found: Comparison, host: Host) -> str:
    lines = textwrap.wrap(report["verdict"], WIDTH)
    for difference in found.differences:
        example = difference.example
        lines += ["", *textwrap.wrap(difference.summary, WIDTH, initial_indent="• ", subsequent_indent="  ")]
        lines.append(f"    for example {_packet(example.probe)}")
        for when, outcome in (("today", example.before), ("then", example.after)):
            lines += [f"    {when}:", *_trace(outcome, example.probe, host)]
    return "".join(f"{line}\n" for line in lines)


def _trace(outcome: Outcome, probe: Probe, host: Host) -> list[str]:
    """One of the ways that a packet may take; --format json has all."""
    first, *others = outcome.branches
    lines = outcome_lines(replace(outcome, branches=(first,)), probe, host, "      ")
    return [*lines, f"        (with a probability of {first.probability}; {len(others)} more)"] if others else lines


def _packet(probe: Probe) -> str:
    way = f"that comes in by {probe.interface}" if probe.interface else "sent by the node"
    to = probe.destination if probe.protocol == "ICMP" else address_port(probe.destination, probe.port)
    return f"{probe.source} → {to}/{probe.protocol.lower()}, {way}"
