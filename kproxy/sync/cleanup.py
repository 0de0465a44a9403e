"""`kproxy cleanup`: takes everything out of the kernel that kube-proxy or kproxy ever put there, in any mode.

What belongs to others, the kubelet's chains above all, stays.
"""

from __future__ import annotations

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.kernel import capabilities, nfacct
from kproxy.kernel.commands import Commands, Runner
from kproxy.sync.remains import clean_chains, remains

__all__ = ["cleanup_all"]

_log = logs.get("cleanup")


def cleanup_all(runner: Runner | None = None) -> None:
    """Clean both backends and both families. Raises KernelError, once all else is done, for what would not go or could
    not be looked at, and at once where this process could do nothing at all."""
    if not capabilities.may_administer_network():
        raise KernelError(f"nothing was cleaned: {capabilities.NEEDED}")
    runner = runner or Commands()
    problems, unseen = clean_chains(runner)
    problems = [*problems, *unseen, *_others(runner), *_counters()]
    if problems:
        raise KernelError("; ".join(problems))


def _others(runner: Runner) -> list[str]:
    """What modes leave outside iptables; after the rules, which may still use it."""
    problems = []
    for mode, left in remains(runner).items():
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
        for name in (nfacct.INVALID_DROPPED, nfacct.LOCALHOST_ACCEPTED):
            if nfacct.remove(name):
                _log.info("Deleted counter", name=name)
    except KernelError as error:
        return [str(error)]
    return []
