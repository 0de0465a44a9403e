"""`kproxy cleanup`: remove everything that any mode ever wrote, kube-proxy's own rules included."""

from __future__ import annotations

import click

from kproxy import logs

__all__ = ["clean_up", "command"]


@click.command("cleanup", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--v", "verbosity", type=click.IntRange(min=0), default=0, help="How much is logged, 0 to 10.")
def command(verbosity: int) -> int:
    """Remove everything that any proxy mode ever wrote, kube-proxy's own rules included."""
    logs.setup("text", verbosity)
    return clean_up()


def clean_up() -> int:
    """Do it; the exit status. Raises KernelError when something would not go."""
    from kproxy.sync.cleanup import cleanup_all

    cleanup_all()
    return 0
