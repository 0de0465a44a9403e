"""Structured logs: a fixed message and named values, as lines of text or of JSON.

    log = logs.get("sync")
    log.info("Synced", family="IPv4", seconds=0.012)
    log.v(4).info("Planned", service="default/web")     # only with -v=4 or more
    log.error("Sync failed", error, retry_in=2.5)

This is the only module that uses the standard library's logging, which is underneath, so that lines of libraries come
out in the same form. Verbosity n of `-v=n` is the level INFO - n. A line that is not wanted costs one comparison.
Values whose name says that they are secret, and credentials within texts, are never printed. Logging never raises.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TextIO

ROOT = "kproxy"
TRACEBACKS_FROM = 4
HIDDEN = "(hidden)"
FIELDS = "fields"
"""The attribute of a log record that holds the named values."""
_SECRET_NAME = re.compile(r"token|passw|secret|authorization|credential|private|bearer|(^|_)key_?data", re.IGNORECASE)
_SECRET_TEXT = (
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"://[^/\s:@]+:[^/\s@]+@"), f"://{HIDDEN}@"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), HIDDEN),  # a JSON web token
)


class Verbose:
    """The informational lines of one verbosity; false when they are not wanted."""

    __slots__ = ("_level", "_logger")

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger, self._level = logger, level

    def __bool__(self) -> bool:
        return self._logger.isEnabledFor(self._level)

    def info(self, message: str, /, **fields: object) -> None:
        if self._logger.isEnabledFor(self._level):
            self._logger.log(self._level, message, extra={FIELDS: fields})


class Log:
    """The log of one part of kproxy."""

    __slots__ = ("_logger", "_verbose")

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._verbose = tuple(Verbose(logger, logging.INFO - n) for n in range(11))

    def v(self, verbosity: int) -> Verbose:
        """Return the lines that are written at `verbosity` (0 to 10, as of `-v`) and above."""
        return self._verbose[min(verbosity, 10)]

    def info(self, message: str, /, **fields: object) -> None:
        self._verbose[0].info(message, **fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._logger.warning(message, extra={FIELDS: fields})

    def error(self, message: str, error: BaseException | None = None, /, **fields: object) -> None:
        """Report a failure; at verbosity 4 and above the traceback of `error` follows."""
        shown = {"err": error, **fields} if error is not None else fields
        wanted = error is not None and self._logger.isEnabledFor(logging.INFO - TRACEBACKS_FROM)
        info = (type(error), error, error.__traceback__) if error is not None and wanted else None
        self._logger.error(message, extra={FIELDS: shown}, exc_info=info)

    def exception(self, message: str, error: BaseException, /, **fields: object) -> None:
        """Report an unexpected error; its traceback follows at any verbosity."""
        info = (type(error), error, error.__traceback__)
        self._logger.error(message, extra={FIELDS: {"err": error, **fields}}, exc_info=info)


def get(name: str) -> Log:
    """Return the log of the part `name` ("sync", "sources", ...), which its lines name."""
    return Log(logging.getLogger(f"{ROOT}.{name}"))


def silent() -> logging.Logger:
    """Return a logger that writes nothing, for a library whose messages are of no use."""
    return logging.Logger("silent", logging.CRITICAL + 1)


def setup(
    form: str = "text", verbosity: int = 0, modules: Mapping[str, int] | None = None, stream: TextIO | None = None
) -> None:
    """Write logs to `stream` (standard error by default), in the form "text" or "json".

    verbosity: as `-v`; modules: the verbosity of parts that differ, by name. Each call replaces the former settings.
    """
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Informational lines of libraries are of use to their authors only.
    root.setLevel(logging.WARNING if verbosity < 6 else logging.INFO if verbosity < 8 else logging.DEBUG)
    ours = logging.getLogger(ROOT)
    ours.setLevel(_level(verbosity))
    for name, known in list(logging.root.manager.loggerDict.items()):
        if name.startswith(f"{ROOT}.") and isinstance(known, logging.Logger):
            known.setLevel(logging.NOTSET)
    for name, level in (modules or {}).items():
        ours.getChild(name).setLevel(_level(level))


def traceback_wanted() -> bool:
    """Whether the verbosity asks for tracebacks of unexpected errors."""
    return logging.getLogger(ROOT).isEnabledFor(logging.INFO - TRACEBACKS_FROM)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log, without secrets. created: Unix time. part: of kproxy. fields: values that JSON knows."""

    created: float
    level: Literal["info", "warning", "error"]
    part: str
    message: str
    fields: Mapping[str, Any]


@contextmanager
def listening(listener: Callable[[Line], None]) -> Iterator[None]:
    """Call `listener` with each warning and error that kproxy logs meanwhile, in the thread that logs it."""
    ours, handler = logging.getLogger(ROOT), _Listener(listener)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


def _level(verbosity: int) -> int:
    return logging.INFO - max(0, min(verbosity, 10))


# ---------------------------------------------------------------- handlers


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, and drops those that cannot be written (closed stream, EPIPE, full disk).

    Nothing else could be done about it: whoever logs must not fail for it, and standard error, to which the standard
    library would report it, is mostly the stream that fails.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing."""


class _Listener(logging.Handler):
    """Passes warnings and errors on as `Line`; drops what the listener fails on."""

    def __init__(self, listener: Callable[[Line], None]) -> None:
        super().__init__(logging.WARNING)
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            self._listener(Line(record.created, _severity(record), _part(record), _message(record), _fields(record)))


# ---------------------------------------------------------------- forms


class _Text(logging.Formatter):
    """I1121 05:10:11.123456 sync] "Synced" family="IPv4" seconds=0.012"""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%m%d %H:%M:%S.%f")
        fields = "".join(f" {name}={_text(value)}" for name, value in _fields(record).items())
        line = f"{_severity(record)[0].upper()}{when} {_part(record)}] {_text(_message(record))}{fields}"
        return f"{line}\n{_trace(record)}" if record.exc_info else line


class _Json(logging.Formatter):
    """{"ts":1763701811123.4,"level":"info","v":0,"logger":"sync","msg":"Synced","family":"IPv4"}, ts in ms."""

    def format(self, record: logging.LogRecord) -> str:
        severity = _severity(record)
        line: dict[str, Any] = {"ts": round(record.created * 1000, 3), "level": severity}
        if severity == "info":
            line["v"] = max(0, logging.INFO - record.levelno)
        line |= {"logger": _part(record), "msg": _message(record)}
        # A field must not displace the line's own.
        line |= {f"{name}_" if name in line else name: value for name, value in _fields(record).items()}
        if record.exc_info:
            line["stacktrace"] = _trace(record)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _severity(record: logging.LogRecord) -> Literal["info", "warning", "error"]:
    if record.levelno < logging.WARNING:
        return "info"
    return "warning" if record.levelno < logging.ERROR else "error"


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _message(record: logging.LogRecord) -> str:
    try:
        return _scrub(record.getMessage())
    except Exception:  # arguments that do not fit the format, or that have no text
        return _scrub(str(record.msg))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The named values of `record`: kproxy's own, and what a library gave as `extra`."""
    named = getattr(record, FIELDS, {})
    extra = {name: value for name, value in vars(record).items() if name not in _RECORD_ATTRIBUTES}
    fields = {**(named if isinstance(named, dict) else {FIELDS: named}), **extra}
    return {name: _safe(name, value) for name, value in fields.items()}


_RECORD_ATTRIBUTES = vars(logging.makeLogRecord({})).keys() | {FIELDS, "message", "asctime", "taskName"}


def _safe(name: str, value: object) -> Any:
    """Return `value` as something that JSON knows, without secrets. Never raises."""
    try:
        return _plain(name, value)
    except Exception as error:  # its __str__ fails, or it contains itself
        return f"({type(value).__name__} without a text: {type(error).__name__})"


def _plain(name: str, value: object) -> Any:
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, str):
        return _scrub(str(value))
    if value is None or isinstance(value, bool) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(str(k), v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and not hasattr(value, "_fields"):
        return [_plain(name, v) for v in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
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
