"""Removing the tables of nftables mode, kube-proxy's own included. Nothing else in the ruleset is touched."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from kproxy import logs
from kproxy.model.plans import Family
from kproxy.modes.nftables.names import TABLE
from kproxy.netfilter.operations import DeleteTable
from kproxy.netfilter.table import Nftables

_log = logs.get("nftables")

KUBE_PROXY_TABLE = "kube-proxy"


def clean(
    kernel: Nftables,
    families: Iterable[Family] = tuple(Family),
    tables: Iterable[str] = (TABLE, KUBE_PROXY_TABLE),
) -> list[str]:
    """Delete TABLES of FAMILIES with all they hold. Returns what would not go, a line each. Raises NetlinkError."""
    problems: list[str] = []
    chosen = tuple(tables)
    for family in families:
        for table in chosen:
            errors = kernel.apply(family, [DeleteTable(table)])
            if not errors:
                _log.info("Deleted table", family=family.value, table=table)
            elif errors[0].errno != errno.ENOENT:
                problems.append(f"{family.value} {errors[0]}")
    return problems


def holds(kernel: Nftables, family: Family, table: str) -> bool:
    """Whether there is such a table, which could be deleted. Raises NetlinkError."""
    return not kernel.check(family, [DeleteTable(table)])
