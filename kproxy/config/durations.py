"""Reads and writes durations as Go does: "1h0m0s", "30s", "1.5ms", "0s".

KubeProxyConfiguration and kube-proxy's flags have no other form. Equal to Go's time.ParseDuration and Duration.String
(https://pkg.go.dev/time#ParseDuration), to the nanosecond.
"""

from __future__ import annotations

import re

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
LARGEST = 2**63 - 1

UNITS = {
    "ns": 1,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # U+00B5, the micro sign
    "μs": MICROSECOND,  # U+03BC, the Greek letter
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_PART = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>[^0-9.]+)")


class Duration(int):
    """A length of time in whole nanoseconds, within 64 bits."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        return self / SECOND

    def __str__(self) -> str:
        """The text that Go writes, without leading units that are zero: "1m0s", "250ms", "0s"."""
        sign, left = ("-", -int(self)) if self < 0 else ("", int(self))
        if left == 0:
            return "0s"
        if left < SECOND:
            unit, size = next((u, UNITS[u]) for u in ("ms", "µs", "ns") if left >= UNITS[u])
            return f"{sign}{_decimal(left, size)}{unit}"
        minutes, rest = divmod(left, MINUTE)
        hours, minutes = divmod(minutes, 60)
        front = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
        return f"{sign}{front}{_decimal(rest, SECOND)}s"

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"


class NumericDuration(Duration):
    """A Duration that may also stand in a file as a plain number of nanoseconds.

    Source: TimeOrMetaDuration of Kubernetes' logging configuration; kubeadm writes `flushFrequency: 0`.
    """

    __slots__ = ()


class Nanoseconds(NumericDuration):
    """A NumericDuration that stood in a file as a number, and is written as one."""

    __slots__ = ()


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


def parse(text: str) -> Duration:
    """The duration in TEXT. Raises ValueError with a short reason."""
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return Duration(0)
    if not unsigned:
        raise ValueError(_WRONG)
    total, at = 0, 0
    while at < len(unsigned):
        part = _PART.match(unsigned, at)
        if part is None:
            raise ValueError('needs a unit, as in "30s"' if unsigned[at] in ".0123456789" else _WRONG)
        total += _nanoseconds(part)
        at = part.end()
    value = -total if text.startswith("-") else total
    if not -LARGEST - 1 <= value <= LARGEST:
        raise ValueError(_TOO_LONG)
    return Duration(value)


_WRONG = 'must be a duration such as "30s" or "1h30m"'
_TOO_LONG = "must be shorter than 292 years"
_DIGITS = 19  # of LARGEST; int() raises for more than 4,300 digits


def _nanoseconds(part: re.Match[str]) -> int:
    whole, fraction, unit = part["whole"], part["fraction"] or "", part["unit"]
    if not whole and not fraction:
        raise ValueError(_WRONG)
    whole = whole.lstrip("0")
    if unit not in UNITS:
        raise ValueError(f"has the unknown unit {unit!r}; units are ns, us, ms, s, m, h")
    if len(whole) > _DIGITS:
        raise ValueError(_TOO_LONG)
    fraction = fraction[:_DIGITS]  # Go ignores what is finer than a nanosecond
    return int(whole or 0) * UNITS[unit] + int(fraction or 0) * UNITS[unit] // int(10 ** len(fraction))
