"""A difference between what the kernel holds and what it should hold, as a value that people read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """MISSING: should be there. EXTRA: a proxy's, and should not be there. CHANGED: other than it should be. FOREIGN:
    another program's, in what is ours alone. CONNTRACK: a flow that goes on to where no endpoint is."""

    MISSING = "missing"
    EXTRA = "extra"
    CHANGED = "changed"
    FOREIGN = "foreign"
    CONNTRACK = "conntrack"


class Difference(NamedTuple):
    """One difference. service: the Service port that it is about (namespace/name:port), "" for the node's own rules and
    for what is nobody's. what: in the words of the mode."""

    service: str
    kind: Kind
    what: str


_COMMENT = re.compile(r'--comment "?(?:[^"]*? for )?([a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9.-]*(?::[a-z0-9-]+)?)')


def service_of(rules: Iterable[str]) -> str:
    """The Service port that the comments of iptables rules name; "" if none does."""
    return next((found[1] for rule in rules if (found := _COMMENT.search(rule))), "")
