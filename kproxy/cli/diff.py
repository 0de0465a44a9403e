"""`kproxy diff`: what the kernel holds against what it should hold for a cluster. Writes nothing to the kernel."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import click

from kproxy.cli.exits import DONE, FAILED, REFUSED
from kproxy.cli.options import CONTEXT, Inputs, with_inputs
from kproxy.config.fields import ProxyMode
from kproxy.modes.differences import Difference, Kind

WIDTH = 100
SHOWN = 10
"""Differences of one kind of one Service port that the text names; --format json has all."""
GROUPS = 50
"""Service ports that the text names."""
_COLOURS = {
    Kind.MISSING: "red",
    Kind.EXTRA: "yellow",
    Kind.CHANGED: "yellow",
    Kind.FOREIGN: "magenta",
    Kind.CONNTRACK: "cyan",
}


@click.command("diff", context_settings=CONTEXT)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--iptables-backend",
    "backend",
    type=click.Choice(["auto", "nft", "legacy"]),
    default="auto",
    show_default=True,
    help="Which iptables to compare; auto: as the daemon chooses.",
)
@with_inputs
def command(form: str, backend: str, inputs: Inputs) -> int:
    """Show how the rules that this node holds differ from those that it should hold for the cluster.

    Whoever wrote them: where kube-proxy programs the node, what differs is what a takeover by kproxy would write.
    Exit status 0: equal; 1: differences; 2: bad arguments or manifests.
    """
    from kproxy.cli.live_differences import LiveDifferences

    preview, problems = inputs.preview()
    for problem in problems:
        click.echo(f"kproxy: error: {problem}", err=True)
    with LiveDifferences(inputs.config, preview, backend) as live:
        found = sorted(dict.fromkeys(live.differences()), key=lambda each: (each.service, [*Kind].index(each.kind)))
        running = live.running
    mode = inputs.config.mode
    if running and mode not in running:
        names = " and ".join(running)
        click.echo(f"kproxy: this node runs in {names} mode; it is compared with {mode} mode, see --mode", err=True)
    for note in live.notes:
        click.echo(f"kproxy: {note}", err=True)
    if form == "json":
        values = [{**each._asdict(), "kind": each.kind.value} for each in found]
        click.echo(json.dumps({"equal": not found, "mode": mode.value, "differences": values}, indent=2))
    else:
        click.echo(_text(found, mode, sum(len(plans.plans) for plans in preview.families.values())), nl=False)
    return REFUSED if any(problem.kind == "manifest" for problem in problems) else FAILED if found else DONE


def _text(found: Sequence[Difference], mode: ProxyMode, ports: int) -> str:
    """The differences by Service port, and a line that counts them and says what a takeover would do."""
    groups = [(service, [*members]) for service, members in groupby(found, key=lambda each: each.service)]
    lines: list[str] = []
    for service, members in groups[:GROUPS]:
        lines += [service or "the node", *_of_service(members), ""]
    if more := len(groups) - GROUPS:
        lines += [f"and {more} more Service ports: see --format json", ""] if more > 0 else []
    return "".join(f"{line}\n" for line in (*lines, *_verdict(found, mode, ports)))


def _of_service(members: Iterable[Difference]) -> Iterator[str]:
    for kind, some in groupby(members, key=lambda each: each.kind):
        whats = [each.what for each in some]
        for what in whats[:SHOWN]:
            head, *tail = textwrap.wrap(what, WIDTH - 12, break_on_hyphens=False)
            yield f"  {click.style(f'{kind.value:<9}', fg=_COLOURS[kind])} {head}"
            yield from (f"{'':14}{line}" for line in tail)
        if len(whats) > SHOWN:
            yield f"  {'':9} and {len(whats) - SHOWN} more: see --format json"


def _verdict(found: Sequence[Difference], mode: ProxyMode, ports: int) -> list[str]:
    counts = Counter(each.kind for each in found)
    stale = counts.pop(Kind.CONNTRACK, 0)
    said = ", ".join(f"{number} {kind.value}" for kind, number in counts.items())
    rules = f"{said}: a takeover by kproxy, or its next full check, would write this" if counts else ""
    equal = f"the kernel holds what {mode} mode needs for {ports} Service ports; a takeover would write nothing"
    flows = [f"{stale} stale conntrack entries: kproxy would delete them"] if stale else []
    return [*textwrap.wrap(rules or equal, WIDTH), *flows]
