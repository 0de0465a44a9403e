"""The status page as HTML: one file without scripts, for light and dark, wide and narrow screens.

Times, durations and sizes as people read them, on the page and in the terminal. Pure.
"""

from __future__ import annotations

from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from kproxy.status.schema import Status


def time(moment: str) -> str:
    """2026-01-02T03:04:05Z as 2026-01-02 03:04:05 UTC"""
    return moment.replace("T", " ").replace("Z", " UTC")


def span(seconds: int) -> str:
    """3 d 4 h, 4 h 5 min, 5 min 6 s, 6 s"""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for place, (unit, length) in enumerate(units):
        if seconds >= length or unit == "s":
            whole, rest = divmod(seconds, length)
            return f"{whole} {unit}" + (f" {rest // units[place + 1][1]} {units[place + 1][0]}" if unit != "s" else "")
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """12.3 s, 45 ms"""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def size(number: int) -> str:
    """512 B, 3.4 KiB, 12 MiB"""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024 or unit == "MiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def html(overview: Status) -> str:
    """The page. Whatever the cluster's objects hold is shown as text."""

    def link(page: int, path: str = "/") -> str:
        given = {"q": overview.services.query} if overview.services.query else {}
        return f"{path}?{urlencode({**given, 'page': page})}{'#services' if path == '/' else ''}"

    troubles = len(overview.refused) + len(overview.conflicts) + len(overview.unusable)
    return _TEMPLATE.render(o=overview, troubles=troubles, link=link)


_environment = Environment(
    loader=PackageLoader("kproxy.status"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_environment.filters.update(time=time, span=span, duration=duration, size=size)
_TEMPLATE = _environment.get_template("status.html")
