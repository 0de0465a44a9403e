"""Every narrow interface of the daemon, call by call, and a saboteur that makes calls raise what nobody foresaw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest

from kproxy.config.fields import ProxyMode
from kproxy.model.plans import Family

IPTABLES, IPVS, NFTABLES, USERSPACE = ProxyMode.IPTABLES, ProxyMode.IPVS, ProxyMode.NFTABLES, ProxyMode.USERSPACE
ALL = frozenset(ProxyMode)
CHAINS = frozenset({IPTABLES, IPVS, USERSPACE})
ONLY_NFT, ONLY_IPVS, ONLY_USERSPACE = frozenset({NFTABLES}), frozenset({IPVS}), frozenset({USERSPACE})


class Unforeseen(Exception):
    """What nobody foresaw: neither a KproxyError nor an OSError nor a ValueError."""


Concerns = Callable[..., bool]


def _ip6tables(commands: Any, argv: Any, *rest: Any, **named: Any) -> bool:
    return "ip6tables" in argv[0]


def _own_family(owner: Any, *rest: Any, **named: Any) -> bool:
    return bool(owner.family is Family.IPV6)


def _argument(owner: Any, family: Family, *rest: Any, **named: Any) -> bool:
    return family is Family.IPV6


@dataclass(frozen=True, slots=True)
class Point:
    """One call across a narrow interface.

    owner: "module:Class". stages: at least one of them counts the failure. modes: those that make the call. ipv6: tells
    IPv6's calls, where the call is one family's; then only those are sabotaged, and IPv4 is programmed all the while.
    harmless: both families are programmed although the call fails for ever. provoke: what makes the daemon call it: a
    "change", a "flow" of UDP, a "foreign" change of rules, a "deleted table", a new "address", or a request: "scrape",
    "status", "health".
    """

    owner: str
    call: str
    stages: tuple[str, ...]
    modes: frozenset[ProxyMode] = ALL
    ipv6: Concerns | None = None
    harmless: bool = False
    provoke: str = "change"

    @property
    def name(self) -> str:
        return f"{self.owner.rpartition(':')[2]}.{self.call}"


COMMANDS, TABLES = "kproxy.kernel.commands:Commands", "kproxy.kernel.iptables:HostTables"
NFT, TABLE, DRIFT = (
    "kproxy.netfilter.kernel:KernelNftables",
    "kproxy.netfilter.table:Table",
    "kproxy.netfilter.changes:NftDrift",
)
SOCKET, CONNTRACK = "kproxy.kernel.netlink_sockets:Socket", "kproxy.conntrack.table:KernelConntrack"
SETS, SERVERS = "kproxy.kernel.ipset:KernelIpSets", "kproxy.kernel.ipvs:KernelIpvs"
DEVICE, FORWARDER = "kproxy.kernel.service_device:KernelAddresses", "modes.userspace.forwarder:ForwarderProcess"
ADDRESSES, QUEUE = "kproxy.sync.node_info:LiveAddresses", "kproxy.sync.event_queue:EventQueue"
HTTP, STATUS = "kproxy.status.servers:Servers", "kproxy.status.store:StatusStore"
HEALTH, METRICS = "kproxy.healthz.proxier_health:ProxierHealth", "kproxy.metrics.registry:Metrics"
SYNC = ("sync",)
LOOK = ("drift", "sync")

POINTS = [
    # iptables commands
    Point(COMMANDS, "run", SYNC, CHAINS, _ip6tables),
    Point(COMMANDS, "recent_pids", LOOK, CHAINS, provoke="foreign"),
    Point(TABLES, "restore", SYNC, CHAINS, _own_family),
    Point(TABLES, "save", SYNC, CHAINS, _own_family, provoke="foreign"),
    Point(DRIFT, "changed", LOOK, CHAINS),
    Point(DRIFT, "reading", SYNC, CHAINS, provoke="foreign"),
    Point(DRIFT, "restoring", SYNC, CHAINS),
    # nf_tables
    Point(NFT, "apply", SYNC, ONLY_NFT, _argument),
    Point(NFT, "generation", ("sync", "drift"), ONLY_NFT),
    Point(NFT, "counts", ("metrics",), ONLY_NFT, harmless=True, provoke="scrape"),
    Point(NFT, "listing", SYNC, ONLY_NFT, _argument, provoke="deleted table"),
    Point(TABLE, "read", SYNC, ONLY_NFT, _own_family, provoke="deleted table"),
    Point(TABLE, "commit", SYNC, ONLY_NFT, _own_family),
    Point(TABLE, "changed", LOOK, ONLY_NFT, _own_family),
    Point(TABLE, "changes", LOOK, ONLY_NFT, _own_family, provoke="foreign"),
    Point("kproxy.netfilter.notifications:Monitor", "poll", LOOK, frozenset({NFTABLES, IPTABLES, USERSPACE, IPVS})),
    # netlink sockets: everything that speaks to the kernel without a command
    Point(SOCKET, "transact", SYNC, ONLY_NFT),
    Point(SOCKET, "dump", ("sync", "drift", "conntrack", "post-sync", "housekeeping"), provoke="flow"),
    Point(SOCKET, "receive", LOOK),
    # conntrack
    Point(CONNTRACK, "flows", ("conntrack",), harmless=True, provoke="flow"),
    # IPVS
    Point(SERVERS, "servers", ("sync", "drift"), ONLY_IPVS, provoke="foreign"),
    Point(SERVERS, "reals", ("sync", "drift", "housekeeping"), ONLY_IPVS),
    Point(SERVERS, "apply", SYNC, ONLY_IPVS),
    Point(SETS, "held", ("sync", "drift"), ONLY_IPVS, provoke="foreign"),
    Point(SETS, "apply", SYNC, ONLY_IPVS),
    Point(DEVICE, "change", SYNC, ONLY_IPVS),
    Point(DEVICE, "held", ("sync", "drift"), ONLY_IPVS, provoke="foreign"),
    # userspace
    Point(FORWARDER, "update", SYNC, ONLY_USERSPACE),
    Point(FORWARDER, "alive", LOOK, ONLY_USERSPACE),
    Point(FORWARDER, "statistics", ("metrics",), ONLY_USERSPACE, harmless=True, provoke="scrape"),
    # the same forwarder, for node ports on loopback
    Point(FORWARDER, "update", ("localhost-ports",), ONLY_NFT, harmless=True),
    Point(FORWARDER, "alive", ("localhost-ports",), ONLY_NFT, harmless=True),
    # the node
    Point(ADDRESSES, "changed", ("node",), harmless=True),
    Point(ADDRESSES, "addresses", ("node",), harmless=True, provoke="address"),
    Point(ADDRESSES, "node_ips", ("node",), harmless=True, provoke="address"),
    # cluster state
    Point("kproxy.model.state:ClusterState", "apply", ("cluster-state",)),
    Point("kproxy.model.plan_store:PlanStore", "update", ("proxier",)),
    Point(QUEUE, "put", ("source",)),
    Point(QUEUE, "take", ("controller",)),
    # what the outside sees
    Point(HTTP, "update_health_checks", ("health-checks",), harmless=True),
    Point(STATUS, "status", ("status-page",), harmless=True, provoke="status"),
    Point(STATUS, "synced", ("report",), harmless=True),
    Point(HEALTH, "updated", ("report",), harmless=True),
    Point(HEALTH, "health", ("status-page", "healthz", "metrics"), harmless=True, provoke="health"),
    Point(METRICS, "sync_finished", ("report",), harmless=True),
    Point(METRICS, "exposition", ("metrics", "status-page"), harmless=True, provoke="scrape"),
]


class Saboteur:
    """Makes the calls of one point raise, once or as long as it is at work. hits: how many it made raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, points: list[Point]) -> None:
        self._point: Point | None = None
        self._left = 0
        self.hits = 0
        for point in points:
            self._wrap(monkeypatch, point)

    @contextmanager
    def at(self, point: Point, times: int) -> Iterator[None]:
        """Sabotage the next `times` calls."""
        self.hits, self._left, self._point = 0, times, point
        try:
            yield
        finally:
            self._point = None

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
        owner = owner_of(point)
        real = getattr(owner, point.call)

        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._point is point and self._left > 0 and (point.ipv6 is None or point.ipv6(*args, **kwargs)):
                self._left -= 1
                self.hits += 1
                raise Unforeseen(f"sabotage of {point.name}")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, point.call, call)


def owner_of(point: Point) -> type:
    """The class that a point names."""
    module, _, name = point.owner.partition(":")
    module = f"kproxy.{module}" if module.startswith("modes.") else module
    found: type = getattr(import_module(module), name)
    return found
