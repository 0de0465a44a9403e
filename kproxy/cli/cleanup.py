"""`kproxy cleanup`: removes everything that kube-proxy or kproxy ever wrote to the kernel, in any mode.

What belongs to others, the kubelet's chains above all, stays.
"""

from __future__ import annotations

import click

from kproxy import logs
from kproxy.cli.options import CONTEXT, verbosity_option
from kproxy.errors import KernelError
from kproxy.kernel import host_checks, nfacct
from kproxy.kernel.commands import Commands, Runner
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.sync.stale_rules import clean_chains, rules_left

_log = logs.get("cleanup")


@click.command("cleanup", context_settings=CONTEXT)
@verbosity_option
def command(verbosity: int) -> None:
    """Remove everything that any proxy mode ever wrote, kube-proxy's own rules included."""
    logs.setup("text", verbosity)
    cleanup_all()


def cleanup_all(runner: Runner | None = None) -> None:
    """Clean both backends and both families.

    Raises KernelError at once when this process may not change anything; else, once all was tried, with everything that
    could not be removed or not be read.
    """
    if not host_checks.may_administer_network():
        raise KernelError(f"nothing was cleaned: {host_checks.NEEDED}")
    runner = runner or Commands()
    problems, unread = clean_chains(runner)
    problems = [*problems, *unread, *_others(runner), *_counters()]
    if problems:
        raise KernelError("; ".join(problems))


def _others(runner: Runner) -> list[str]:
    """Remove what modes leave outside of iptables, which rules may use until they are removed."""
    problems = []
    for mode, left in rules_left(runner).items():
        try:
            problems += left.remove()
        except KernelError as error:
            problems.append(f"{mode}: {error}")
    return problems


def _counters() -> list[str]:
    """Remove kube-proxy's packet counters, which rules may use until they are removed."""
    if not nfacct.available():
        return []
    try:
        for name in NFACCT_COUNTERS:
            if nfacct.remove(name):
                _log.info("Deleted counter", name=name)
    except KernelError as error:
        return [str(error)]
    return []
