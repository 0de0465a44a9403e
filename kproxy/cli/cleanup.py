"""`kproxy cleanup`: removes everything that kube-proxy or kproxy ever wrote to the kernel, in any mode.

What belongs to others, the kubelet's chains above all, stays.
"""

from __future__ import annotations

import click

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.kernel import host_checks, nfacct
from kproxy.kernel.commands import Commands, Runner
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.sync.stale_rules import clean_chains, rules_left


@click.command("cleanup", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--v", "verbosity", type=click.IntRange(min=0), default=0, help="How much is logged, 0 to 10.")
def command(verbosity: int) -> int:
    """Remove everything that any proxy mode ever wrote, kube-proxy's own rules included."""
    logs.setup("text", verbosity)
    return clean_up()


def clean_up() -> int:
    """Do it; the exit status. Raises KernelError when something would not go."""

    cleanup_all()
    return 0


_log = logs.get("cleanup")


def cleanup_all(runner: Runner | None = None) -> None:
    """Clean both backends and both families. Raises KernelError, once all else is done, for what would not go or could
    not be looked at, and at once where this process could do nothing at all."""
    if not host_checks.may_administer_network():
        raise KernelError(f"nothing was cleaned: {host_checks.NEEDED}")
    runner = runner or Commands()
    problems, unseen = clean_chains(runner)
    problems = [*problems, *unseen, *_others(runner), *_counters()]
    if problems:
        raise KernelError("; ".join(problems))


def _others(runner: Runner) -> list[str]:
    """What modes leave outside iptables; after the rules, which may still use it."""
    problems = []
    for mode, left in rules_left(runner).items():
        try:
            problems += left.remove()
        except KernelError as error:
            problems.append(f"{mode}: {error}")
    return problems


def _counters() -> list[str]:
    """kube-proxy's packet counters, once no rule counts in them any more."""
    if not nfacct.available():
        return []
    try:
        for name in NFACCT_COUNTERS:
            if nfacct.remove(name):
                _log.info("Deleted counter", name=name)
    except KernelError as error:
        return [str(error)]
    return []
