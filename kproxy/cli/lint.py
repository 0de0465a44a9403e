"""`kproxy lint`: what is wrong or risky in Services and EndpointSlices. Writes nothing anywhere."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

import click

from kproxy.cli.exits import DONE, FAILED, REFUSED
from kproxy.cli.options import CONTEXT, Inputs, with_inputs
from kproxy.lint.checks import lint
from kproxy.lint.cluster import Cluster
from kproxy.lint.findings import Finding, Severity

WIDTH = 100
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


@click.command("lint", context_settings=CONTEXT)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--severity",
    type=click.Choice([each.value for each in Severity]),
    default=Severity.INFO.value,
    show_default=True,
    help="Report nothing below this.",
)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@with_inputs
def command(form: str, severity: str, files: tuple[str, ...], inputs: Inputs) -> int:
    """Report what is wrong or risky in Services and EndpointSlices: of -f and FILEs, else of the cluster.

    Exit status 0: nothing found; 1: findings; 2: a file cannot be read.
    """
    objects, problems = inputs.objects(files, every_node=True)
    broken = [problem for problem in problems if problem.kind == "manifest"]
    for problem in broken:
        click.echo(f"kproxy: error: {problem}", err=True)
    cluster = Cluster(objects, [problem for problem in problems if problem not in broken], inputs.config.mode)
    found = [each for each in lint(cluster) if each.severity.rank <= Severity(severity).rank]
    if form == "json":
        click.echo(json.dumps({"findings": [each._asdict() for each in found]}, indent=2))
    else:
        click.echo(_text(found, len(cluster.services)), nl=False)
    return REFUSED if broken else FAILED if found else DONE


def _text(found: list[Finding], services: int) -> str:
    """The findings, grouped by object in the order of the worst of each, and a line that counts them."""
    order = list(dict.fromkeys(each.object for each in found))
    by_object = sorted(found, key=lambda each: order.index(each.object))
    parts = [f"{name}\n{_of_object(group)}" for name, group in groupby(by_object, key=lambda each: each.object)]
    counts = Counter(each.severity.value for each in found)
    noun = f"{services} Service{'s' * (services != 1)}"
    said = ", ".join(f"{counts[each]} of severity {each}" for each in Severity if counts[each])
    return "".join(f"{part}\n" for part in parts) + f"{noun}: {said or 'nothing found'}\n"


def _of_object(group: Iterable[Finding]) -> str:
    lines = []
    for each in group:
        place = f" {each.field}" if each.field else ""
        lines.append(f"  {click.style(each.severity.value, fg=_COLOURS[each.severity])} {each.id}{place}")
        lines += textwrap.wrap(each.message, WIDTH - 4, initial_indent="    ", subsequent_indent="    ")
        lines += textwrap.wrap(f"→ {each.fix}", WIDTH - 4, initial_indent="    ", subsequent_indent="      ")
    return "".join(f"{line}\n" for line in lines)
