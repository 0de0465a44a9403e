"""What the status page, its JSON form and `kproxy status` show: plain values, with the JSON's names. Pure.

Times are RFC 3339 in UTC, durations seconds. Fields may be added; none is renamed or taken away.

Who serves the pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec


class Sync(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One sync of one family. ended: when. full: it compared everything with the kernel.

    changed: Service ports that differed. bytes, transactions: what was written. refused: ports that the kernel did not
    take. repaired: others' changes were put right. error: why it failed, "" when it did not.
    """

    ended: str
    seconds: float
    full: bool
    changed: int = 0
    bytes: int = 0
    transactions: int = 0
    refused: int = 0
    repaired: bool = False
    error: str = ""


class FamilyStatus(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One IP family. last_updated: when its rules were last known to be right, "" for never. syncs: latest first."""

    family: str
    healthy: bool
    last_updated: str
    ports: int
    endpoints: int
    syncs: tuple[Sync, ...] = ()


class PortRow(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One Service port in one family.

    addresses: what leads to it. endpoints: the first of those that serve traffic here; serving: how many there are;
    known: how many there are at all, usable or not. names: by which the kernel knows it. notes: what is special (a
    policy, affinity, source ranges, no endpoints). refused: why the kernel does not have it, "" when it has.
    """

    family: str
    port: str
    protocol: str
    addresses: tuple[str, ...]
    endpoints: tuple[str, ...]
    serving: int
    known: int
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    refused: str = ""


class ServiceRow(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One Service."""

    namespace: str
    name: str
    ports: tuple[PortRow, ...]


class ServicePage(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Some of the Services. query: what was searched for. total: all; matching: those that QUERY finds."""

    query: str
    page: int
    pages: int
    total: int
    matching: int
    items: tuple[ServiceRow, ...]


class Refusal(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A Service port that the kernel refused."""

    family: str
    service: str
    reason: str


class Conflicting(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Services that ask for one way in."""

    where: str
    services: tuple[str, ...]


class Unusable(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An object of the cluster that could not be used when it was last seen."""

    seen: str
    kind: str
    object: str
    reason: str


class LogLine(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A warning or an error. times: how often it came since `first`."""

    first: str
    last: str
    times: int
    level: str
    part: str
    text: str


class Status(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """All of it. healthy: no change is overdue; says nothing about the node."""

    program: str
    version: str
    emulates: str
    node: str
    mode: str
    started: str
    uptime_seconds: int
    now: str
    healthy: bool
    node_eligible: bool
    families: tuple[FamilyStatus, ...]
    services: ServicePage
    refused: tuple[Refusal, ...] = ()
    conflicts: tuple[Conflicting, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    log: tuple[LogLine, ...] = ()


@dataclass(slots=True)
class Identity:
    """What this process says of itself, now: it is looked at for each page.

    mode: the proxy mode in use. config: the effective KubeProxyConfiguration, as JSON values. flags: every flag of the
    command line and its value as text.
    """

    version: str
    mode: str
    config: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
