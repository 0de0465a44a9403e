"""`kproxy preflight`: what a change of mode would change for first packets, and what it needs. Writes nothing."""

from __future__ import annotations

import json
import platform
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import click

from kproxy.cli.exits import DONE, FAILED
from kproxy.cli.options import CONTEXT, Inputs, with_inputs
from kproxy.cli.trace import outcome_lines, outcome_values
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.errors import InvalidInput
from kproxy.kernel.commands import Commands
from kproxy.kernel.host_checks import NEEDED, may_administer_network
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family, address_port
from kproxy.modes.nftables.names import KUBE_PROXY_TABLE, TABLE
from kproxy.modes.nftables.render import Layout
from kproxy.modes.preview import Preview
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.live_rules import HookedChain
from kproxy.netfilter.objects import InterfaceIs
from kproxy.netfilter.support import missing
from kproxy.preflight.classes import Space, Tracer, interface_names
from kproxy.preflight.differences import Comparison, Difference, Places
from kproxy.preflight.other_rules import has_proxy, of_others, together
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.layered import Layer, LayeredTracer
from kproxy.trace.nftables import NftablesTracer
from kproxy.trace.outcome import Host, Outcome, Probe, Step

WIDTH = 100
LIVE = "live"
PROGRESS = 1000
"""Classes after which the progress is shown again."""
TRACED = (ProxyMode.IPTABLES.value, ProxyMode.NFTABLES.value)
_TABLE = re.compile(r"^\*(\S+)", re.MULTILINE)
_INTERFACE = re.compile(r"^-A .*? -i (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one family. interfaces: the names that they compare with, "veth+" for a prefix."""

    tracer: Tracer
    interfaces: frozenset[str]


class Requirement(NamedTuple):
    """What else the new mode depends on. detail: why it is met or not, or what was assumed."""

    what: str
    met: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Subject:
    """Rules to compare. then: those after the change, where they depend on today's. unknown: the rules of which it is
    not known whether they match, found while they are traced."""

    host: Host
    today: dict[Family, Rules]
    then: dict[Family, Rules] = field(default_factory=dict)
    requirements: list[Requirement] = field(default_factory=list)
    unknown: dict[Step, str] = field(default_factory=dict)

    def note(self, step: Step, why: str) -> None:
        """Take a rule of which it is not known whether it matches."""
        self.unknown.setdefault(step, why)


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
    preview, problems = inputs.preview()
    for problem in problems:  # each costs its own object alone, in both modes
        click.echo(f"kproxy: left out: {problem}", err=True)
    config = inputs.config_of(ProxyMode(to))
    after = preview.of(config)
    today = (
        _live(after, to, config)
        if before == LIVE
        else _rendered(preview.of(inputs.config_of(ProxyMode(before))), before)
    )
    then = today.then or _rendered(after, to).today
    found = Comparison()
    for family in Family:
        _compare(found, after, family, today.host, (today.today[family], then[family]))
    requirements = [*today.requirements, *_unknown(today.unknown)]
    report = _report(found, today.host, before, to, requirements)
    click.echo(json.dumps(report, indent=2) + "\n" if form == "json" else _text(report, found, today.host), nl=False)
    return FAILED if found.differences or not all(each.met for each in requirements) else DONE


def _rendered(preview: Preview, mode: str) -> Subject:
    """What a mode would program."""
    host = Host(frozenset(preview.node.addresses))
    return Subject(host, {family: _rules(preview, mode, family, host) for family in Family})


def _rules(preview: Preview, mode: str, family: Family, host: Host) -> Rules:
    if mode == ProxyMode.IPTABLES:
        text = preview.iptables(family)
        return Rules(IptablesTracer(text, family, host), _interfaces(text))
    layout = preview.nftables_layout(family)
    return Rules(NftablesTracer(layout, host), _interfaces_of(layout))


def _interfaces(text: str) -> frozenset[str]:
    return frozenset(_INTERFACE.findall(text))


def _interfaces_of(layout: Layout) -> frozenset[str]:
    statements = (s for chain in layout.chains.values() for rule in chain.rules for s in rule)
    return frozenset(f"{s.name}+" if s.prefix else s.name for s in statements if isinstance(s, InterfaceIs))


def _live(preview: Preview, to: str, config: KubeProxyConfiguration) -> Subject:
    """What this node's kernel holds, and what it would hold: others' rules of iptables stay. Raises KernelError, and
    InvalidInput where Services are not in iptables."""
    from kproxy.cli.live_kernel import LiveKernel

    with closing(LiveKernel()) as kernel:
        host = Host(kernel.host.addresses, kernel.host.interfaces)
        subject = Subject(host, {}, {}, list(_needs(to, config)))
        for family in Family:
            texts = kernel.iptables(family)
            read = {name for text in texts for name in _TABLE.findall(text)}
            chains = kernel.base_chains(family)
            foreign = [c for c in chains if c.place.family == "inet" or c.place.table not in read]
            if proxies := sorted({c.place.table for c in foreign if c.place.table in (TABLE, KUBE_PROXY_TABLE)}):
                where = f"table {proxies[0]} of nf_tables"
                raise InvalidInput(f"--from: this node's Services are in {where}, which live does not compare yet")
            subject.requirements.extend(_not_compared(chain) for chain in foreign)
            others = [of_others(text) for text in texts]
            interfaces = frozenset(name for text in texts for name in _interfaces(text))

            def layer(text: str, family: Family = family) -> IptablesTracer:
                return IptablesTracer(text, family, host, unknown=subject.note)

            subject.today[family] = Rules(LayeredTracer(family, host, *map(layer, texts)), interfaces)
            layers: list[Layer] = list(map(layer, others))
            if to == ProxyMode.NFTABLES:
                layout = preview.nftables_layout(family)
                layers.append(NftablesTracer(layout, host))
                interfaces |= _interfaces_of(layout)
            else:
                rendered = preview.iptables(family)
                backend = 1 if has_proxy(texts[1]) and not has_proxy(texts[0]) else 0
                layers[backend] = layer(together(rendered, others[backend]))
                interfaces |= _interfaces(rendered)
            subject.then[family] = Rules(LayeredTracer(family, host, *layers), interfaces)
        kernel.check_unchanged()
    return subject


def _not_compared(chain: HookedChain) -> Requirement:
    place = f"{chain.place.family} {chain.place.table}"
    drops = "; it drops what it does not accept, and no accept of another table changes that" if chain.drops else ""
    return Requirement(
        f"table {place}, chain {chain.name}", not chain.drops, f"another program's, taken as accepting all{drops}"
    )


def _unknown(found: Mapping[Step, str]) -> Iterator[Requirement]:
    """Rules of which it is not known whether they match, as the answer depends on them."""
    for step, why in found.items():
        detail = f"-A {step.chain} {step.rule}: passed as if it did not match, as this is not known here: {why}"
        yield Requirement(f"a rule of table {step.table}", True, detail)


def _needs(to: str, config: KubeProxyConfiguration) -> Iterator[Requirement]:
    """What the new mode needs of this host. Raises NetlinkError."""
    allowed = may_administer_network()
    yield Requirement("rights", allowed, "NET_ADMIN" if allowed else NEEDED)
    if to == ProxyMode.IPTABLES:
        commands = Commands()
        for name in ("iptables", "ip6tables"):
            path = commands.which(f"{name}-restore")
            yield Requirement(f"{name}-restore", path is not None, path or "is not installed")
        return
    addresses = ", ".join(config.node_port_addresses) or "primary, nftables mode's default"
    yield Requirement("nodePortAddresses", True, f"node ports answer on: {addresses}")
    for family in Family if allowed else ():
        with KernelNftables() as kernel:
            lacking = missing(kernel, family, platform.release())
        yield Requirement(f"kernel, {family}", not lacking, "; ".join(lacking) or f"{platform.release()} has all")


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


def _report(found: Comparison, host: Host, before: str, to: str, requirements: Sequence[Requirement]) -> dict[str, Any]:
    """The report for JSON; it has all that the text shows."""
    differences, total, differing = found.differences, found.classes, found.differing
    today = "this node's rules" if before == LIVE else f"{before} mode"
    verdict = f"{today} and {to} mode treat every first packet alike, in {total:,} classes of them"
    if differences:
        number = "one difference" if len(differences) == 1 else f"{len(differences)} differences"
        verdict = f"{number} between {today} and {to} mode, in {differing:,} of {total:,} classes of first packets"
    if unmet := [each.what for each in requirements if not each.met]:
        verdict = f"not ready: {', '.join(unmet)}; {verdict}"
    return {
        "verdict": verdict,
        "differences": [_values(each, host) for each in differences],
        "requirements": [each._asdict() for each in requirements],
    }


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
    for each in report["requirements"]:
        text = f"{each['what']}: {each['detail']}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="✓ " if each["met"] else "✗ ", subsequent_indent="  ")
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
