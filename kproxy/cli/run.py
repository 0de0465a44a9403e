"""`kproxy run`: the daemon, with kube-proxy's flags, and the flags that print or write something and end."""

from __future__ import annotations

import click

from kproxy import __version__, logs
from kproxy.cli import settings
from kproxy.cli.flags import FLAGS
from kproxy.cli.options import CONTEXT
from kproxy.cli.pflags import PflagCommand, options, unknown_flags
from kproxy.config import files
from kproxy.config import options as log_settings


@click.pass_context
def _run(ctx: click.Context, /, **given: tuple[str, ...]) -> int:
    request = settings.read({flag.name: given[flag.name.replace("-", "_")] for flag in FLAGS}, unknown_flags(ctx))
    if request.version:
        # Tools read the second word of what kube-proxy prints, which is "Kubernetes v1.37.0".
        click.echo(f"Kubernetes v{request.options.config.emulate_version}.0 (kproxy {__version__})")
        return 0
    config = request.options.config
    log_settings.set_up(config.logging)
    for warning in request.options.warnings:
        logs.get("config").warning(warning)
    if request.write_config_to:
        files.write(request.to_write, request.write_config_to)
        logs.get("config").info("Wrote configuration", file=str(request.write_config_to))
        return 0
    if request.cleanup:
        from kproxy.cli.cleanup import cleanup_all

        cleanup_all()
        return 0
    from kproxy.sync.daemon import run

    return run(request.options)


command = PflagCommand(
    "run",
    callback=_run,
    params=options(),
    help="Keep this node's Services working, until SIGTERM. The rules stay in place then.",
    context_settings=CONTEXT,
)
