"""Structured logs: a fixed message and named values, as lines of text or of JSON.

    log = logs.get("sync")
    log.info("Synced", family="IPv4", seconds=0.012)
    log.v(4).info("Planned", service="default/web")     # only with -v=4 or more
    log.error("Sync failed", error, retry_in=2.5)

Underneath is the standard library's logging, so that libraries' own lines come out in the same form. Verbosity n of
`-v=n` is the level INFO - n. A call that is not wanted costs one comparison. Values whose name says that they are
secret, and credentials inside of texts, are never printed.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TextIO

ROOT = "kproxy"
TRACEBACKS_FROM = 4
HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(r"token|passw|secret|authorization|credential|private|bearer|(^|_)key_?data", re.IGNORECASE)
_SECRET_TEXT = (
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"://[^/\s:@]+:[^/\s@]+@"), f"://{HIDDEN}@"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), HIDDEN),  # a JSON web token
)
_SEVERITY = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "error"}


class Verbose:
    """Writes informational lines of one verbosity; false when they are not wanted."""

    __slots__ = ("_level", "_logger")

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger, self._level = logger, level

    def __bool__(self) -> bool:
        return self._logger.isEnabledFor(self._level)

    def info(self, message: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(self._level):
            self._logger.log(self._level, message, extra={"fields": fields})


class Log:
    """The log of one part of kproxy."""

    __slots__ = ("_logger", "_verbose")

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._verbose = tuple(Verbose(logger, logging.INFO - n) for n in range(11))

    def v(self, verbosity: int) -> Verbose:
        """Lines that are written from VERBOSITY on (0 to 10), as -v counts it."""
        return self._verbose[min(verbosity, 10)]

    def info(self, message: str, /, **fields: object) -> None:
        self._verbose[0].info(message, **fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._logger.warning(message, extra={"fields": fields})

    def error(self, message: str, error: BaseException | None = None, /, **fields: object) -> None:
        """Something failed; with verbosity 4 or more the traceback of ERROR follows."""
        shown = {"err": error, **fields} if error is not None else fields
        wanted = error is not None and self._logger.isEnabledFor(logging.INFO - TRACEBACKS_FROM)
        info = (type(error), error, error.__traceback__) if error is not None and wanted else None
        self._logger.error(message, extra={"fields": shown}, exc_info=info)

    def exception(self, message: str, error: BaseException, /, **fields: object) -> None:
        """Report an error that nobody foresaw: its traceback follows at any verbosity."""
        info = (type(error), error, error.__traceback__)
        self._logger.error(message, extra={"fields": {"err": error, **fields}}, exc_info=info)


def get(name: str) -> Log:
    """The log of the part NAME ("sync", "source", ...), which stands in its lines."""
    return Log(logging.getLogger(f"{ROOT}.{name}"))


def setup(
    form: str = "text", verbosity: int = 0, modules: Mapping[str, int] | None = None, stream: TextIO | None = None
) -> None:
    """Write logs to STREAM (standard error), as FORM "text" or "json".

    verbosity: as -v; modules: the verbosity of parts that differ, by name. May be called again to change it all.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, (_Json, _Text))]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Libraries tell much that is of use to their authors alone.
    root.setLevel(logging.WARNING if verbosity < 6 else logging.INFO if verbosity < 8 else logging.DEBUG)
    ours = logging.getLogger(ROOT)
    ours.setLevel(_level(verbosity))
    for name, known in list(logging.root.manager.loggerDict.items()):
        if name.startswith(f"{ROOT}.") and isinstance(known, logging.Logger):
            known.setLevel(logging.NOTSET)
    for name, level in (modules or {}).items():
        ours.getChild(name).setLevel(_level(level))


def traceback_wanted() -> bool:
    """Whether the verbosity asks for tracebacks of what nobody foresaw."""
    return logging.getLogger(ROOT).isEnabledFor(logging.INFO - TRACEBACKS_FROM)


def told(record: logging.LogRecord) -> tuple[str, str, dict[str, Any]]:
    """What RECORD says, without secrets: the part of kproxy, the message, and the named values."""
    return _part(record), _scrub(record.getMessage()), _fields(record)


def _level(verbosity: int) -> int:
    return logging.INFO - max(0, min(verbosity, 10))


# ---------------------------------------------------------------- forms


class _Text(logging.Formatter):
    """I1121 05:10:11.123456 sync] "Synced" family="IPv4" seconds=0.012"""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%m%d %H:%M:%S.%f")
        letter = (_SEVERITY.get(record.levelno) or "info")[0].upper()
        fields = "".join(f" {k}={_text(v)}" for k, v in _fields(record).items())
        line = f"{letter}{when} {_part(record)}] {_text(_scrub(record.getMessage()))}{fields}"
        return f"{line}\n{_trace(record)}" if record.exc_info else line


class _Json(logging.Formatter):
    """{"ts":1763701811123.4,"level":"info","v":0,"logger":"sync","msg":"Synced","family":"IPv4"}, ts in ms."""

    def format(self, record: logging.LogRecord) -> str:
        severity = _SEVERITY.get(record.levelno)
        line: dict[str, Any] = {"ts": round(record.created * 1000, 3), "level": severity or "info"}
        if not severity:
            line["v"] = max(0, logging.INFO - record.levelno)
        line |= {"logger": _part(record), "msg": _scrub(record.getMessage())}
        # A field must not displace the line's own.
        line |= {f"{k}_" if k in line else k: v for k, v in _fields(record).items()}
        if record.exc_info:
            line["stacktrace"] = _trace(record)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {k: _safe(k, v) for k, v in getattr(record, "fields", {}).items()}


def _safe(name: str, value: object) -> Any:
    """VALUE as something that JSON knows, without secrets."""
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, str):
        return _scrub(str(value))
    if value is None or isinstance(value, bool) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _safe(str(k), v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and not hasattr(value, "_fields"):
        return [_safe(name, v) for v in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    return _scrub(str(value))


def _scrub(text: str) -> str:
    for pattern, instead in _SECRET_TEXT:
        text = pattern.sub(instead, text)
    return text


def _text(value: Any) -> str:
    # JSON's quoting keeps every value on its line, newlines and control characters included.
    return json.dumps(value, ensure_ascii=False)


def _trace(record: logging.LogRecord) -> str:
    assert record.exc_info is not None
    return _scrub("".join(traceback.format_exception(*record.exc_info)).rstrip())
