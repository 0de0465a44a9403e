"""How a command ends: one line a problem on standard error, and the exit status that goes with it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

import click

from kproxy import logs
from kproxy.errors import InvalidConfig, InvalidInput, KproxyError, one_line

__all__ = ["DONE", "FAILED", "REFUSED", "Refused", "guard"]

DONE = 0
FAILED = 1
REFUSED = 2


class Refused(InvalidInput):
    """Several things given to a command are unusable; one line each."""

    def __init__(self, problems: Sequence[KproxyError]) -> None:
        self.problems = tuple(str(problem) for problem in problems)
        super().__init__("; ".join(self.problems))


def guard(program: str, work: Callable[[], object]) -> int:
    """The exit status of WORK; whatever it raises is told in single lines that begin with PROGRAM's name."""
    try:
        return _status(work())
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.ClickException, KproxyError) as error:
        for line in _lines(error):
            print(f"{program}: error: {line}", file=sys.stderr)
        return REFUSED if isinstance(error, (click.UsageError, InvalidInput)) else FAILED
    except (KeyboardInterrupt, click.Abort):
        print(f"{program}: interrupted", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # Whoever read the output has seen enough. What is still buffered must not fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        _unforeseen(program, error)
        return FAILED


def _status(result: object) -> int:
    return result if isinstance(result, int) else DONE


def _lines(error: click.ClickException | KproxyError) -> list[str]:
    if isinstance(error, (InvalidConfig, Refused)):
        return [one_line(problem) for problem in error.problems]
    if isinstance(error, click.NoSuchOption):
        return [one_line(no_such_option(error.option_name, error.possibilities or ()))]
    return [one_line(error.format_message() if isinstance(error, click.ClickException) else str(error))]


def no_such_option(name: str, known: Iterable[str]) -> str:
    """The line for an option that there is not; click's own differs from version to version."""
    near = [f"'{each}'" for each in get_close_matches(name, known)]
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"No such option '{name}'.{meant}"


def _unforeseen(program: str, error: Exception) -> None:
    what = one_line(f"{type(error).__name__}: {error}")
    if logs.traceback_wanted():
        traceback.print_exception(error)
        print(f"{program}: error: {what}", file=sys.stderr)
    else:
        print(f"{program}: error: {what} (this is a bug; -v=4 shows the traceback)", file=sys.stderr)
