"""`kproxy run`: kube-proxy's flags in, the daemon or one of the things that end at once out."""

from __future__ import annotations

import click

from kproxy import __version__, logs
from kproxy.cli import settings
from kproxy.cli.flags import FLAGS
from kproxy.cli.pflags import PflagCommand, options, unknown_flags
from kproxy.config import files
from kproxy.config import options as log_settings
from kproxy.config.options import Options

KUBERNETES = "v1.36.2"
"""Whose kube-proxy is replaced. Its own answer is "Kubernetes v1.36.2", of which tools read the second word."""


@click.pass_context
def _run(ctx: click.Context, /, **given: tuple[str, ...]) -> int:
    wish = settings.read({flag.name: given[flag.name.replace("-", "_")] for flag in FLAGS}, unknown_flags(ctx))
    if wish.version:
        click.echo(f"Kubernetes {KUBERNETES} (kproxy {__version__})")
        return 0
    config = wish.options.config
    log_settings.set_up(config.logging)
    for warning in wish.options.warnings:
        logs.get("config").warning(warning)
    if wish.write_config_to:
        files.write(config, wish.write_config_to)
        logs.get("config").info("Wrote configuration", file=str(wish.write_config_to))
        return 0
    return _clean_up() if wish.cleanup else _start(wish.options)


def _clean_up() -> int:
    from kproxy.cli.cleanup import clean_up

    return clean_up()


def _start(wanted: Options) -> int:
    from kproxy.sync.daemon import run

    return run(wanted)


command = PflagCommand(
    "run",
    callback=_run,
    params=options(),
    help="Keep this node's Services working, until SIGTERM. The rules stay in place then.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
