"""The `logging` section put into effect."""

from __future__ import annotations

from kproxy import logs
from kproxy.config.fields import Logging

__all__ = ["set_up"]


def set_up(logging: Logging) -> None:
    """Log as LOGGING says. May be called again."""
    # The first of two entries for one name wins: those of the flags stand before those of the file.
    modules = {m.file_pattern: m.verbosity for m in reversed(logging.vmodule)}
    logs.setup(logging.format, logging.verbosity, modules)
