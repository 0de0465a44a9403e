"""userspace mode's Dataplane: listeners first, then the portal rules that lead to them, then what listens in vain.

Decides: which listeners change, what is done about those that cannot be had, and what is believed when the forwarder
has ended or the rules are refused. Leaves out: what rules look like (render), how they are written (ChainWriter), and
forwarding itself (the Forwarder).

A Service port whose listener cannot be had is refused like one without endpoints; the next apply tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from kproxy import logs
from kproxy.errors import one_line
from kproxy.kernel.iptables import Tables
from kproxy.model.plans import Endpoint, Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.userspace.listener_table import ListenersLost, ListenerTable
from kproxy.modes.userspace.listeners import Forwarder, ListenerKey, Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base, render_port, unserved
from kproxy.modes.xtables.chain_writer import ChainWriter, Drift
from kproxy.modes.xtables.rules import Fragment

_log = logs.get("userspace")

Plans = Mapping[PortKey, ServicePlan]


class UserspaceDataplane:
    """Programs one family: a forwarder's listeners, and through iptables-restore the rules that lead to them."""

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        forwarder: Forwarder,
        drift: Drift | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, monotonic."""
        self._settings = settings
        base, render = render_base(settings), _renderer(settings)
        self._chains: ChainWriter[Portal] = ChainWriter(settings.family, base, render, tables, drift, clock)
        self._doors = ListenerTable(settings.family, forwarder)
        self._portals: dict[PortKey, Portal] = {}
        self._written: dict[PortKey, Portal] = {}
        self._rejected: frozenset[PortKey] = frozenset()
        self._believed = False
        self._moved = False

    @property
    def family(self) -> Family:
        return self._settings.family

    def configure(self, settings: Settings) -> None:
        """Take new settings. When they differ the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings = settings
            self._chains.rebase(render_base(settings), _renderer(settings))

    def apply(self, wanted: Plans, touched: Collection[PortKey] | None) -> Outcome:
        """As Dataplane.apply. A forwarder that is found to have ended is replaced, with all its listeners."""
        some = touched if self._believed else None
        self._believed = False
        try:
            self._doors.check()
            outcome = self._apply(wanted, some)
        except ListenersLost as lost:
            _log.warning("The forwarder has ended; setting up all listeners again", family=self.family, why=str(lost))
            outcome = self._apply(wanted, None)
            outcome.repaired = False  # the rules were as they should be, and had to change nevertheless
            # Ports that nobody touched have moved as well, which concerns those who follow flows: all is due.
            self._moved = True
        self._believed = True
        self._moved = self._moved and touched is not None
        return outcome

    def drifted(self) -> bool:
        """As Dataplane.drifted; also when listeners were lost."""
        return self._moved or not self._doors.alive() or self._chains.drifted()

    def housekeeping(self) -> float | None:
        """As Dataplane.tend: the forwarder sees to connections by itself."""
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """As Dataplane.names: the proxy ports to which the port's rules lead."""
        doors = ((reach, self._doors.port(ListenerKey(plan.key, reach))) for reach in Reach)
        return tuple(f"proxy port {port} ({reach.value})" for reach, port in doors if port)

    def cleanup(self) -> None:
        """Remove all that kube-proxy or kproxy ever wrote into this backend's tables, and close every listener."""
        self._believed = False
        self._chains.cleanup()
        self._portals, self._written = {}, {}
        with suppress(ListenersLost):
            self._doors.close(ListenerKey(key, reach) for key in self._doors.names() for reach in Reach)

    def carriers(self, plans: Plans, own_ips: Collection[str]) -> Plans:
        """PLANS with what answers their flows, as connection tracking sees it, in the place of their endpoints.

        own_ips: all addresses of this host in this family. Computed when looked up: only a few of them ever are.
        """
        return _Carried(plans, self._ports, own_ips)

    def _ports(self, key: PortKey) -> tuple[int, ...]:
        return tuple(port for reach in Reach if (port := self._doors.port(ListenerKey(key, reach))))

    # ---------------------------------------------------------------- one attempt

    def _apply(self, wanted: Plans, touched: Collection[PortKey] | None) -> Outcome:
        """touched: None for all. Raises ListenersLost when the forwarder ends meanwhile."""
        keys = {*self._rejected, *(touched or ())}
        if touched is None:
            keys.update(wanted, self._portals, self._written, self._doors.names())
        needed = {
            ListenerKey(key, reach): listener
            for key in keys & wanted.keys()
            for reach, listener in listeners(wanted[key]).items()
        }
        refused = self._doors.open(needed)
        for key in keys:
            _put(self._portals, key, self._portal(wanted[key], needed) if key in wanted else None)
        outcome = self._chains.apply(self._portals, None if touched is None else keys)
        for key in keys - outcome.rejected.keys():
            _put(self._written, key, self._portals.get(key))
        self._doors.close(self._in_vain(keys, needed, outcome.rejected))
        for key, why in _not_served(wanted, keys, refused):
            outcome.rejected.setdefault(key, why)
        self._rejected = frozenset(outcome.rejected)
        return outcome

    def _portal(self, plan: ServicePlan, needed: Collection[ListenerKey]) -> Portal:
        cluster, local = (
            self._doors.port(key) if (key := ListenerKey(plan.key, reach)) in needed else 0
            for reach in (Reach.CLUSTER, Reach.LOCAL)
        )
        return Portal(plan, cluster, local)

    def _in_vain(
        self, keys: Iterable[PortKey], needed: Collection[ListenerKey], refused: Collection[PortKey]
    ) -> list[ListenerKey]:
        """The listeners that no rule leads to. A port whose new rules the kernel refused still has its old ones."""
        return [
            door
            for key in keys
            for reach in Reach
            if (door := ListenerKey(key, reach)) not in needed
            and not (key in refused and key in self._written and self._written[key].port(reach))
        ]


def carried(plan: ServicePlan, ports: Iterable[int], own_ips: Iterable[str]) -> ServicePlan:
    """PLAN as connection tracking sees it: what answers is this host, at the proxy ports of the plan's listeners.

    An endpoint may answer as well: its flow began before this mode stood, and goes on until it ends.
    """
    found = tuple(Endpoint(ip, port, local=True) for ip in own_ips for port in ports)
    return replace(plan, reachable=(*plan.reachable, *found))


class _Carried(Plans):
    def __init__(self, plans: Plans, ports: Callable[[PortKey], tuple[int, ...]], own_ips: Collection[str]) -> None:
        self._plans, self._ports, self._own_ips = plans, ports, own_ips

    def __getitem__(self, key: PortKey) -> ServicePlan:
        return carried(self._plans[key], self._ports(key), self._own_ips)

    def __iter__(self) -> Iterator[PortKey]:
        return iter(self._plans)

    def __len__(self) -> int:
        return len(self._plans)


def _not_served(
    wanted: Plans, keys: Iterable[PortKey], refused: Mapping[ListenerKey, str]
) -> Iterator[tuple[PortKey, str]]:
    for (key, reach), why in refused.items():
        yield key, one_line(f"{key}: no listener for policy {reach.value}: {why}")
    for key in keys:
        if key in wanted and (reason := unserved(wanted[key])):
            yield key, reason


def _put(portals: dict[PortKey, Portal], key: PortKey, portal: Portal | None) -> None:
    if portal is None:
        portals.pop(key, None)
    else:
        portals[key] = portal


def _renderer(settings: Settings) -> Callable[[Portal], Fragment]:
    return partial(render_port, settings=settings)
