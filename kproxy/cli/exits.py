"""The end of every command: its exit status, and one line on standard error for each problem.

This is the one place that knows how each exception ends a command; the commands raise.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

import click

from kproxy import logs
from kproxy.errors import InvalidConfig, InvalidInput, KproxyError, one_line

DONE = 0
FAILED = 1
REFUSED = 2


class Refused(InvalidInput):
    """Raised when inputs of a command are unusable, with a line for each."""

    def __init__(self, problems: Sequence[KproxyError]) -> None:
        self.problems = tuple(str(problem) for problem in problems)
        super().__init__("; ".join(self.problems))


def guard(program: str, work: Callable[[], object]) -> int:
    """Run `work` and return its exit status. What it raises is printed in lines that begin with the program's name."""
    try:
        result = work()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        print(f"{program}: interrupted", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader of the output has seen enough. What is still buffered must not fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if logs.traceback_wanted() and _unexpected(error):
            traceback.print_exception(error)
        for line in _lines(error):
            print(f"{program}: error: {line}", file=sys.stderr)
        return REFUSED if isinstance(error, (click.UsageError, InvalidInput)) else FAILED
    return result if isinstance(result, int) else DONE


def no_such_option(name: str, known: Iterable[str]) -> str:
    """The line for an unknown option; click's own differs from version to version."""
    near = [f"'{each}'" for each in get_close_matches(name, known)]
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"No such option '{name}'.{meant}"


def _unexpected(error: Exception) -> bool:
    return not isinstance(error, (KproxyError, click.ClickException, OSError))


def _lines(error: Exception) -> list[str]:
    match error:
        case InvalidConfig() | Refused():
            return [one_line(problem) for problem in error.problems]
        case click.NoSuchOption():
            return [one_line(no_such_option(error.option_name, error.possibilities or ()))]
        case click.ClickException():
            return [one_line(error.format_message())]
        case KproxyError():
            return [one_line(str(error))]
        case OSError():  # the output cannot be written, memory or file descriptors are exhausted
            where = f"{error.filename}: " if error.filename else ""
            return [one_line(f"{where}{error.strerror or error}")]
    hint = "" if logs.traceback_wanted() else " (this is a bug; -v=4 shows the traceback)"
    return [one_line(f"{type(error).__name__}: {error}") + hint]
