"""Parsers of flag values, which accept what Go's pflag accepts: one function for each type. They raise ValueError."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from kproxy.config import durations, minors
from kproxy.config.fields import DetectLocalMode, LoggingFormat, ProxyMode, VModule
from kproxy.config.validate import is_quantity

# strconv.ParseBool's words.
TRUE = {"1", "t", "T", "TRUE", "true", "True"}
FALSE = {"0", "f", "F", "FALSE", "false", "False"}


def parse(kind: str, texts: Sequence[str]) -> Any:
    """Parse a flag of type `kind`, given as `texts`. Of several values the last one counts, except for lists."""
    if kind in REPEATABLE:
        return REPEATABLE[kind](texts)
    for text in texts:  # a wrong value is an error even when a later one replaces it
        value = TYPES[kind](text)
    return value


def _bool(text: str) -> bool:
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError("must be true or false")


def _int32(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise ValueError("must be a whole number") from None
    if not -(2**31) <= value < 2**31:
        raise ValueError("must be a 32-bit whole number")
    return value


def _level(text: str) -> int:
    value = _int32(text)
    if value < 0:
        raise ValueError("must not be negative")
    return value


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _quantity(text: str) -> str:
    if not is_quantity(text):
        raise ValueError("must be a quantity such as 0, 64Ki or 1M")
    return text


def _one_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def read(text: str) -> StrEnum:
        if text == "":
            return next(iter(kind))  # the default, which is the first member
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(kind)}") from None

    return read


def _version(text: str) -> str:
    """ "" for false; "true" or "raw", which print the same here."""
    if text == "raw":
        return text
    return "true" if _bool(text) else ""


def _strings(texts: Sequence[str]) -> tuple[str, ...]:
    """Parse comma separated values, quoted as in CSV when they contain a comma."""
    try:
        return tuple(value for row in csv.reader([t for t in texts if t], strict=True) for value in row)
    except csv.Error:
        raise ValueError("must be a comma separated list") from None


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    pairs = [word.partition("=") for word in words]
    if any(not name or not equals for name, equals, _ in pairs):
        raise ValueError("must be comma separated name=value pairs")
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _gates(texts: Sequence[str]) -> dict[str, bool]:
    return {name: _bool(value) for name, value in _pairs(texts)}


def _vmodule(texts: Sequence[str]) -> tuple[VModule, ...]:
    return tuple(VModule(name, _level(value)) for name, value in _pairs(texts))


REPEATABLE: dict[str, Callable[[Sequence[str]], Any]] = {
    "strings": _strings,
    "mapStringBool": _gates,
    "pattern=N,...": _vmodule,
    "folder": tuple,
}

# Named as in kube-proxy's help. Addresses are validated with the rest of the configuration.
TYPES: dict[str, Callable[[str], Any]] = {
    "bool": _bool,
    "duration": durations.parse,
    "float32": _float,
    "format": _one_of(LoggingFormat),
    "int32": _int32,
    "ip": str,
    "ipport": str,
    "Level": _level,
    "LocalMode": _one_of(DetectLocalMode),
    "minor": minors.parse,
    "ProxyMode": _one_of(ProxyMode),
    "quantity": _quantity,
    "string": str,
    "version[=true]": _version,
}
