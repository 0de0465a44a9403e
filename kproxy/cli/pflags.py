"""Go's pflag conventions on top of click.

    --flag=value  --flag value  --switch  --switch=false  --snake_case_too  -v 2  -v2  -v=2

click takes over once every flag has the form --flag=value. Values stay texts here, as many as were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from kproxy.cli.flags import BY_NAME, FLAGS, Flag
from kproxy.cli.reports import no_such_option

__all__ = ["PflagCommand", "normalise", "options", "unknown_flags"]

BARE = {"bool": "true", "version[=true]": "true"}
SHOWN = {"bool": "[=true|false]", "version[=true]": "[=true]"}
"""How the help shows the value of a flag that may stand without one."""
_SPELLED = [f"--{name}" for name in BY_NAME]
SHORT = {"v": "v"}
_UNKNOWN = "kproxy.cli.pflags.unknown"


class PflagCommand(click.Command):
    """A command whose arguments follow pflag. Flags that it does not know are kept for `unknown_flags`, so that whoever
    reads the others' values can tell all that is wrong at once; words that are no flags, and flags without their value,
    are refused before that."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known, unknown = _sorted_out(normalise(args), self.get_help_option_names(ctx))
        ctx.meta[_UNKNOWN] = tuple(no_such_option(name, _SPELLED) for name in unknown)
        return super().parse_args(ctx, known)


def unknown_flags(ctx: click.Context) -> tuple[str, ...]:
    """A line for each flag in the arguments that there is not, in order."""
    found: tuple[str, ...] = ctx.meta.get(_UNKNOWN, ())
    return found


def options(flags: Iterable[Flag] = FLAGS) -> list[click.Parameter]:
    """A click option for each flag; its value is a tuple of texts, empty when it was not given."""
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
    """ARGS with every known flag as --flag=value; what is not known stays as it is."""
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


def _sorted_out(args: Iterable[str], help_names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The normalised ARGS without unknown flags and the words that look like their values, and those flags' names."""
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
    """Name, "=" when it has a value, value; an empty name for what is no flag."""
    if arg.startswith("--"):
        name, equals, value = arg[2:].partition("=")
        return name.replace("_", "-"), equals, value
    if arg[:1] == "-" and arg[1:2] in SHORT:
        value = arg[2:].removeprefix("=")
        return SHORT[arg[1]], "=" if arg[2:] else "", value
    return "", "", ""
