"""The status page: `kproxy.status.view` as HTML, one file without scripts, for light and dark, wide and narrow screens.

The template has the layout alone; every word but those of the search form and the links comes from the view. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from kproxy.status.rows import LONGEST_QUERY
from kproxy.status.schema import Status
from kproxy.status.view import Row, view


def html(status: Status) -> str:
    """Return the page. Whatever the cluster's objects hold is shown as text."""
    query = status.services.query

    def link(page: int, path: str = "/") -> str:
        parameters = {"q": query, "page": page} if query else {"page": page}
        return f"{path}?{urlencode(parameters)}{'#services' if path == '/' else ''}"

    return _TEMPLATE.render(view=view(status), query=query, link=link, longest_query=LONGEST_QUERY)


def _groups(rows: tuple[Row, ...]) -> Iterator[tuple[str, list[Row]]]:
    for group, members in groupby(rows, key=lambda row: row.group):
        yield group, list(members)


_environment = Environment(
    loader=PackageLoader("kproxy.status"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_environment.filters["groups"] = _groups
_TEMPLATE = _environment.get_template("status.html")
