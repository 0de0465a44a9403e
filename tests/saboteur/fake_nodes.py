"""A node over kernels in memory: the real controller, proxiers and post-sync work, whose turns the test makes."""

from __future__ import annotations

import re
from typing import Any

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.conntrack.reconciler import Reconciler
from kproxy.containment import Containment
from kproxy.model.events import Event
from kproxy.model.node_info import DetectLocal, DetectLocalBy
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.base import Dataplane
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings as IptablesSettings
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.ipvs.fragments import Settings as IpvsSettings
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.fragments import Settings as NftablesSettings
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.render import Settings as UserspaceSettings
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.table import Table
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.plan_queue import PlanQueue
from kproxy.sync.post_sync import FamilyPostSync, HealthCheckPorts
from kproxy.sync.proxier import Proxier
from kproxy.sync.schedule import Schedule
from tests.fakes.clocks import ManualClock
from tests.fakes.conntrack import FakeConntrack
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.ipset import FakeIpSets, SavedTables
from tests.fakes.iptables import FakeTables
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.nftables import FakeNftables
from tests.fakes.service_device import FakeAddresses
from tests.model.builders import NODE
from tests.sync.rigs import HERE, Diary, FixedNode

PODS = {
    Family.IPV4: DetectLocal(DetectLocalBy.CIDR, "10.244.0.0/16"),
    Family.IPV6: DetectLocal(DetectLocalBy.CIDR, "fd00:244::/32"),
}
OWN = {Family.IPV4: "172.18.0.2", Family.IPV6: "fd00:18::2"}
PROXY_PORT = re.compile(r"\b4\d{4}\b")


class Quiet:
    """Servers, metrics and stale rules of a node that has none of them."""

    def update_health_checks(self, checks: Any) -> None:
        """No server listens."""

    def conntrack(self, family: Family, seconds: float, deleted: int) -> None:
        """No counter counts."""

    def synced(self, family: Family) -> None:
        """No other mode left anything."""


class FakeNode:
    """A node of one mode. Its parts may be sabotaged: tables_v4, tables_v6, nftables, ipvs, sets, device, …"""

    def __init__(self, mode: ProxyMode) -> None:
        self.mode, self.clock = mode, ManualClock()
        self.tables_v4, self.tables_v6 = FakeTables(Family.IPV4), FakeTables(Family.IPV6)
        self.nftables, self.ipvs, self.sets, self.device = FakeNftables(), FakeIpvs(), FakeIpSets(), FakeAddresses()
        self.forwarder, self.conntrack = FakeForwarder(), FakeConntrack()
        self.diary, self.quiet, self.node = Diary(), Quiet(), FixedNode(HERE)
        self.containment = Containment(self.clock)
        self._own, self.queue, state = OwnTransactions(), EventQueue(), ClusterState(NODE)
        self._plans = PlanQueue(state, tuple(Family), self.diary, self.containment)
        ports = HealthCheckPorts(self.quiet)
        self.proxiers = {family: self._proxier(family, ports) for family in Family}
        self._controller = Controller(
            state, self.queue, self._plans, self.node, self.diary, self._wake, self.containment
        )

    def _proxier(self, family: Family, ports: HealthCheckPorts) -> Proxier:
        post_sync = FamilyPostSync(
            family,
            Reconciler(family, self.conntrack, self.clock.monotonic),
            lambda family, plans, node: plans,
            KubeProxyConfiguration,
            ports,
            self.quiet,
            self.quiet,
            self.clock,
            self.containment,
        )
        dataplane, schedule, diary = self._dataplane(family), Schedule(0.0, 3600.0), self.diary
        return Proxier(
            dataplane, lambda *_: None, schedule, self._plans, post_sync, diary, self.clock, self.containment
        )

    def _dataplane(self, family: Family) -> Dataplane:
        pods, now = PODS[family], self.clock.monotonic
        tables = self.tables_v4 if family is Family.IPV4 else self.tables_v6
        match self.mode:
            case ProxyMode.IPTABLES:
                return IptablesDataplane(IptablesSettings(family, detect_local=pods), tables)
            case ProxyMode.NFTABLES:
                table = Table(family, TABLE, self.nftables, self._own, pause=lambda seconds: None)
                return NftablesDataplane(NftablesSettings(family, detect_local=pods), table, clock=now)
            case ProxyMode.USERSPACE:
                settings = UserspaceSettings(family, OWN[family], detect_local=pods)
                return UserspaceDataplane(settings, tables, self.forwarder)
        tables.refuse = lambda table, chain, rule: self.sets.unknown(rule)
        self.sets.users.append(SavedTables(tables.save))
        of_ipvs = IpvsSettings(family, detect_local=pods)
        return IpvsDataplane(of_ipvs, self.ipvs, self.sets, self.device, tables, clock=now)

    def _wake(self) -> None:
        for proxier in self.proxiers.values():
            proxier.changed()

    def run(self, seconds: float, *events: Event) -> None:
        """Put events and let time pass, in turns of a quarter of a second."""
        for event in events:
            self.queue.put(event)
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
            self._controller.turn(0.0)
            for proxier in self.proxiers.values():
                proxier.turn()

    def holds(self, family: Family) -> list[Any]:
        """What the kernel has of a family, but for proxy ports, which depend on the order of events."""
        tables = self.tables_v4 if family is Family.IPV4 else self.tables_v6
        made = (family, TABLE) in self.nftables.tables()
        sets = self.nftables.sets(family, TABLE) if made else {}
        return [
            sorted(PROXY_PORT.sub("PORT", tables.save()).splitlines()),
            {name: frozenset(self.nftables.elements(family, TABLE, name)) for name in sets},
            {key: dict(held.reals) for key, held in self.ipvs.servers(family).items()},
            self.device.held(family),
            {key for of, key in self.forwarder.listeners if of is family},
        ]
