"""The schema of /status.json, which the status page and `kproxy status` show: plain values, named as in the JSON. Pure.

Times are RFC 3339 in UTC, durations are seconds. Fields may be added; none is renamed or removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec


class Sync(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One sync of one family. full: it compared everything with the kernel.

    changed: Service ports that differed. bytes, transactions: what was written. refused: ports that the kernel refused.
    refused_changes: changes that it refused at first, whatever became of them.
    repaired: changes of another program were undone. error: why it failed, "" when it did not.
    """

    ended: str
    seconds: float
    full: bool
    changed: int = 0
    bytes: int = 0
    transactions: int = 0
    refused: int = 0
    refused_changes: int = 0
    repaired: bool = False
    error: str = ""


class FamilyStatus(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One IP family. last_updated: when its rules were last up to date, "" for never. syncs: the latest first.

    refused_changes: changes that the kernel refused since the start. last_refused: the last of them; refused_at: when.
    """

    family: str
    healthy: bool
    last_updated: str
    ports: int
    endpoints: int
    refused_changes: int = 0
    last_refused: str = ""
    refused_at: str = ""
    syncs: tuple[Sync, ...] = ()


class PortRow(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One Service port in one family.

    addresses: where clients connect to. endpoints: the first of those that serve traffic on this node. serving: how
    many of those there are; known: how many there are in all, usable or not. names: its chains, map elements or virtual
    servers in the kernel. notes: policies, affinity, source ranges, lack of endpoints. refused: why the kernel refused
    it, "" when it did not.
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
    """One page of the Services. total: number of all; matching: number of those that `query` finds."""

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


class Unreadable(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A part of the kernel's state that full checks cannot read. Services are programmed nevertheless."""

    family: str
    what: str
    reason: str


class Conflicting(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Services that claim the same address or node port."""

    where: str
    services: tuple[str, ...]


class Unusable(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A Kubernetes object that was invalid when it was last seen."""

    seen: str
    kind: str
    object: str
    reason: str


class LogLine(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A warning or an error of the log. times: how often it was logged since `first`."""

    first: str
    last: str
    times: int
    level: str
    part: str
    text: str


class InternalError(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A part of kproxy that fails unexpectedly and has not worked since; it is retried.

    stage: the part. failures: in a row, since `since`. error: the last one.
    """

    stage: str
    failures: int
    error: str
    since: str


class Status(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The status of one daemon. healthy: no change is overdue, whatever the state of the node."""

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
    unreadable: tuple[Unreadable, ...] = ()
    conflicts: tuple[Conflicting, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    log: tuple[LogLine, ...] = ()
    internal_errors: tuple[InternalError, ...] = ()


@dataclass(slots=True)
class Identity:
    """The identity of this process, which every page reads again, since a reload changes it.

    mode: the proxy mode in use. emulates: the minor of Kubernetes whose kube-proxy is followed. config: the effective
    KubeProxyConfiguration, as JSON values. flags: every flag of the command line with its value as text.
    """

    version: str
    mode: str
    emulates: str
    config: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
