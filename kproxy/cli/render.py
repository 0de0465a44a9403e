"""`kproxy render`: prints what a node would program for a cluster, as text or JSON. Writes nothing to the kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click

from kproxy.cli.exits import Refused
from kproxy.cli.options import CONTEXT, Inputs, with_inputs
from kproxy.config.fields import ProxyMode
from kproxy.errors import InvalidConfig
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview


@dataclass(frozen=True, slots=True)
class Rendered:
    """The outcome for one family. native: what the kernel's own tool loads; values: the same for --format json."""

    native: str
    values: Mapping[str, object]


def _iptables(preview: Preview, family: Family) -> Rendered:
    rules = preview.iptables(family)
    return Rendered(rules, {"rules": rules})


def _ipvs(preview: Preview, family: Family) -> Rendered:
    outcome = preview.ipvs(family)
    return Rendered(outcome.native(), outcome.json())


def _nftables(preview: Preview, family: Family) -> Rendered:
    rules = preview.nftables(family)
    return Rendered(rules, {"rules": rules})


def _userspace(preview: Preview, family: Family) -> Rendered:
    outcome = preview.userspace(family)
    return Rendered(outcome.native(), outcome.json())


RENDERERS: dict[ProxyMode, Callable[[Preview, Family], Rendered]] = {
    ProxyMode.IPTABLES: _iptables,
    ProxyMode.IPVS: _ipvs,
    ProxyMode.NFTABLES: _nftables,
    ProxyMode.USERSPACE: _userspace,
}

FAMILIES = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


@click.command("render", context_settings=CONTEXT)
@click.option("--dry-run", is_flag=True, help="Accepted for clarity: render never writes to the kernel.")
@click.option("--family", type=click.Choice([*FAMILIES, "all"]), default="all", show_default=True)
@click.option("--format", "form", type=click.Choice(["native", "json"]), default="native", show_default=True)
@with_inputs
def command(dry_run: bool, family: str, form: str, inputs: Inputs) -> None:
    """Print what a node would program, and write nothing.

    Objects that cannot be used cost themselves alone: each is named on standard error, and the exit status is 2.
    """
    renderer = RENDERERS.get(inputs.config.mode)
    if renderer is None:
        raise InvalidConfig([f"--mode: mode {inputs.config.mode} is not available yet"])
    preview, problems = inputs.preview()
    names = list(FAMILIES) if family == "all" else [family]
    outcomes = {name: renderer(preview, FAMILIES[name]) for name in names}
    click.echo(_text(outcomes, form, several=family == "all"), nl=False)
    if problems:
        raise Refused(problems)


def _text(outcomes: Mapping[str, Rendered], form: str, several: bool) -> str:
    if form == "json":
        values = {name: outcome.values for name, outcome in outcomes.items()}
        return json.dumps(values if several else next(iter(values.values())), indent=2) + "\n"
    if several:
        return "".join(f"# {FAMILIES[name].value}\n{outcome.native}" for name, outcome in outcomes.items())
    return "".join(outcome.native for outcome in outcomes.values())
