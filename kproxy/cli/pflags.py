"""The flag syntax of Go's pflag on top of click.

    --flag=value  --flag value  --switch  --switch=false  --snake_case_too  -v 2  -v2  -v=2

Arguments are rewritten to --flag=value, then click parses them. Values stay texts here, as many as were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from kproxy.cli.exits import no_such_option
from kproxy.cli.flags import BY_NAME, FLAGS, Flag

BARE = {"bool": "true", "version[=true]": "true"}
SHOWN = {"bool": "[=true|false]", "version[=true]": "[=true]"}
"""How the help shows the value of a flag that needs none."""
_SPELLED = [f"--{name}" for name in BY_NAME]
SHORT = {"v": "v"}
_UNKNOWN = "kproxy.cli.pflags.unknown"


class PflagCommand(click.Command):
    """A command with arguments in pflag's syntax.

    Unknown flags are kept for `unknown_flags`, so that they can be reported together with wrong values. Words that are
    no flags, and flags without a value, are refused at once.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known, unknown = _split_unknown(normalise(args), self.get_help_option_names(ctx))
        ctx.meta[_UNKNOWN] = tuple(no_such_option(name, _SPELLED) for name in unknown)
        return super().parse_args(ctx, known)


def unknown_flags(ctx: click.Context) -> tuple[str, ...]:
    """Return a line for each unknown flag in the arguments, in order."""
    found: tuple[str, ...] = ctx.meta.get(_UNKNOWN, ())
    return found


def options(flags: Iterable[Flag] = FLAGS) -> list[click.Parameter]:
    """Return a click option for each flag; its value is a tuple of texts, empty when it was not given."""
    return [_option(flag) for flag in flags]


def _option(flag: Flag) -> click.Option:
    names = [f"--{flag.name}", flag.name.replace("-", "_")]
    if flag.name in SHORT.values():
        names.insert(0, f"-{flag.name}")
    default = f"  [default: {flag.default}]" if flag.default else ""
    return click.Option(
        names, type=str, multiple=True, metavar=SHOWN.get(flag.type, flag.type), help=f"{flag.help}{default}"
    )


def normalise(args: Iterable[str]) -> Iterator[str]:
    """Yield `args` with every known flag as --flag=value, and all others as they are."""
    left = iter(args)
    for arg in left:
        if arg == "--":
            yield arg
            yield from left
            return
        name, equals, value = _split(arg)
        flag = BY_NAME.get(name)
        if flag is None:
            yield arg
        elif equals:
            yield f"--{name}={value}"
        elif flag.type in BARE:
            yield f"--{name}={BARE[flag.type]}"
        else:
            following = next(left, None)
            yield f"--{name}" if following is None else f"--{name}={following}"


def _split_unknown(args: Iterable[str], help_names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split normalised `args` into those that are known and the names of unknown flags, whose values are dropped."""
    known: list[str] = []
    unknown: dict[str, None] = {}
    left, owed = iter(args), False
    for arg in left:
        if arg == "--":
            known += [arg, *left]
        elif arg[:1] != "-" or arg == "-":
            known += [] if owed else [arg]
            owed = False
        elif _is_known(arg, help_names):
            known.append(arg)
            owed = False
        else:
            name, equals, _ = arg.partition("=")
            unknown[name if arg[:2] == "--" else arg[:2]] = None
            owed = not equals
    return known, list(unknown)


def _is_known(arg: str, help_names: Iterable[str]) -> bool:
    return _split(arg)[0] in BY_NAME or any(
        arg.partition("=")[0] == name or (len(name) == len("-h") and arg.startswith(name)) for name in help_names
    )


def _split(arg: str) -> tuple[str, str, str]:
    """Return the name, "=" when there is a value, and the value; an empty name for what is not a flag."""
    if arg.startswith("--"):
        name, equals, value = arg[2:].partition("=")
        return name.replace("_", "-"), equals, value
    if arg[:1] == "-" and arg[1:2] in SHORT:
        value = arg[2:].removeprefix("=")
        return SHORT[arg[1]], "=" if arg[2:] else "", value
    return "", "", ""
