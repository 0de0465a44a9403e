"""The entry points `kproxy` and `kube-proxy`.

A command's module is loaded when the command is used, so that `render` does not load the daemon's libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from kproxy import __version__
from kproxy.cli.exits import guard
from kproxy.cli.options import CONTEXT
from kproxy.config import minors

# name: (module, attribute, what it does)
COMMANDS = {
    "run": ("kproxy.cli.run", "command", "Keep this node's Services working: the daemon."),
    "render": ("kproxy.cli.render", "command", "Print what would be programmed; writes nothing."),
    "trace": ("kproxy.cli.trace", "command", "Show where a packet goes, by which rules; writes nothing."),
    "diff": (
        "kproxy.cli.diff",
        "command",
        "Show how this node's rules differ from what they should be; writes nothing.",
    ),
    "preflight": ("kproxy.cli.preflight", "command", "Report what a change of mode would change, and for whom."),
    "lint": ("kproxy.cli.lint", "command", "Report what is wrong or risky in Services and EndpointSlices."),
    "status": ("kproxy.cli.status", "command", "Show the status of the daemon; exit status 1 when it is not healthy."),
    "cleanup": ("kproxy.cli.cleanup", "command", "Remove everything that any proxy mode ever wrote."),
    "demo": ("kproxy.cli.demo", "command", "Run a small cluster in network namespaces, with real traffic."),
}

_NAMES = ", ".join(COMMANDS)


class _Lazy(click.Group):
    """The group of commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            found: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "kproxy":
                raise
            # The image lacks the libraries of commands that are of no use in a container.
            raise click.ClickException(f"{cmd_name} needs the library {error.name}, which is not installed") from None
        return found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            ctx.fail(f"no command: there are {_NAMES}; see kproxy --help")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}: there are {_NAMES}; see kproxy --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


group = _Lazy(
    "kproxy",
    no_args_is_help=False,
    help="A service proxy for Kubernetes nodes, in the place of kube-proxy.",
    params=[],
    context_settings=CONTEXT,
)
_FOLLOWS = f"follows kube-proxy {minors.DEFAULT}, with --emulate-version {minors.OLDEST} to {minors.NEWEST}"
click.version_option(__version__, prog_name="kproxy", message=f"%(prog)s %(version)s ({_FOLLOWS})")(group)


def main(args: Sequence[str] | None = None) -> int:
    """Run `kproxy COMMAND ...` and return the exit status: 0 done, 1 failed while running, 2 bad arguments or input."""
    words = list(sys.argv[1:] if args is None else args)
    return guard("kproxy", lambda: group.main(words, prog_name="kproxy", standalone_mode=False))


def kube_proxy_main(args: Sequence[str] | None = None) -> int:
    """Run `kube-proxy --flag ...`, where the command `run` is implied."""
    from kproxy.cli.run import command

    words = list(sys.argv[1:] if args is None else args)
    return guard("kube-proxy", lambda: command.main(words, prog_name="kube-proxy", standalone_mode=False))


if __name__ == "__main__":
    sys.exit(main())
