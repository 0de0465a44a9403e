"""The status page as HTML: one file without scripts, for light and dark, wide and narrow screens."""

from __future__ import annotations

from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from kproxy.health.overview import Overview
from kproxy.health.wording import duration, size, span, time

__all__ = ["html"]


def html(overview: Overview) -> str:
    """The page. Whatever the cluster's objects hold is shown as text."""

    def link(page: int, path: str = "/") -> str:
        given = {"q": overview.services.query} if overview.services.query else {}
        return f"{path}?{urlencode({**given, 'page': page})}{'#services' if path == '/' else ''}"

    troubles = len(overview.refused) + len(overview.conflicts) + len(overview.unusable)
    return _TEMPLATE.render(o=overview, troubles=troubles, link=link)


_environment = Environment(
    loader=PackageLoader("kproxy.health"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_environment.filters.update(time=time, span=span, duration=duration, size=size)
_TEMPLATE = _environment.get_template("status.html")
