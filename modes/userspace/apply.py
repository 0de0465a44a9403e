"""userspace mode's Dataplane: opens listeners, writes the portal rules that redirect to them, closes unused listeners.

Decides: which listeners change, what happens if one cannot be opened, and what has to be compared anew after the
forwarder has ended or rules were refused. Leaves out: what rules look like (render), how they are written
(ChainWriter), and forwarding itself (the Forwarder).

The clients of a Service port whose listener cannot be opened are refused, as for one without endpoints; the next apply
tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

from msgspec.structs import replace

from kproxy import logs
from kproxy.errors import one_line
from kproxy.kernel.iptables import Tables
from kproxy.model.plans import Endpoint, Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.userspace.listener_table import ListenersLost, ListenerTable
from kproxy.modes.userspace.listeners import Forwarder, Listener, ListenerKey, Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base, render_port, unserved
from kproxy.modes.xtables.chain_writer import ChainWriter, Drift
from kproxy.modes.xtables.rules import Fragment

_log = logs.get("userspace")

CLOSE_AGAIN = 1.0  # seconds

Plans = Mapping[PortKey, ServicePlan]


class UserspaceDataplane:
    """Programs one family: the forwarder's listeners, and through iptables-restore the rules that redirect to them."""

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
        self._listeners = ListenerTable(settings.family, forwarder)
        self._portals: dict[PortKey, Portal] = {}
        self._written: dict[PortKey, Portal] = {}
        self._rejected: frozenset[PortKey] = frozenset()
        self._in_step = False
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
        """See Dataplane. Should the forwarder have ended, another one is started with all listeners."""
        some = touched if self._in_step else None
        self._in_step = False
        try:
            self._listeners.check()
            outcome = self._apply(wanted, some)
        except ListenersLost as lost:
            _log.warning("The forwarder has ended; setting up all listeners again", family=self.family, why=str(lost))
            outcome = self._apply(wanted, None)
            outcome.repaired = False  # the rules were correct, and changed because the proxy ports did
            # Ports that nobody touched have moved as well; only a full apply makes post-sync work look at their flows.
            self._moved = True
        self._in_step = True
        self._moved = self._moved and touched is not None
        return outcome

    def drifted(self) -> bool:
        """Also True when listeners were lost."""
        return self._moved or not self._listeners.alive() or self._chains.drifted()

    def housekeeping(self) -> float | None:
        """Close the listeners that a busy forwarder did not close before."""
        try:
            self._listeners.close(())
        except ListenersLost:
            self._moved = True
        return CLOSE_AGAIN if self._listeners.closing else None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """The proxy ports to which the port's rules redirect."""
        found = ((reach, self._listeners.port(ListenerKey(plan.key, reach))) for reach in Reach)
        return tuple(f"proxy port {port} ({reach.value})" for reach, port in found if port)

    def carriers(self, plans: Plans, own_ips: Collection[str]) -> Plans:
        """PLANS, each with what answers its flows according to connection tracking instead of its endpoints.

        own_ips: all addresses of this host in this family. Computed when looked up, as only a few of them ever are.
        """
        return _Carried(plans, self._ports, own_ips)

    def _ports(self, key: PortKey) -> tuple[int, ...]:
        return tuple(port for reach in Reach if (port := self._listeners.port(ListenerKey(key, reach))))

    # ---------------------------------------------------------------- one attempt

    def _apply(self, wanted: Plans, touched: Collection[PortKey] | None) -> Outcome:
        """touched: None for all. Raises ListenersLost when the forwarder ends in the meantime."""
        keys = {*self._rejected, *(touched or ())}
        if touched is None:
            keys.update(wanted, self._portals, self._written, self._listeners.names())
        needed, faults = _needed(wanted, keys)
        keys -= faults.keys() - self._misdirected(faults)  # they keep the listeners and rules that they have
        failed = self._listeners.open(needed)
        for key in keys:
            served = key in wanted and key not in faults
            _put(self._portals, key, self._portal(wanted[key], needed) if served else None)
        outcome = self._chains.apply(self._portals, None if touched is None else keys)
        for key in keys - outcome.rejected.keys():
            _put(self._written, key, self._portals.get(key))
        self._listeners.close(self._unused(keys, needed, outcome.rejected))
        for key, why in _not_served(wanted, keys, failed, faults):
            outcome.rejected.setdefault(key, why)
        outcome.faults.update(faults)
        self._rejected = frozenset(outcome.rejected)
        return outcome

    def _misdirected(self, keys: Iterable[PortKey]) -> set[PortKey]:
        """The ports whose rules redirect to a proxy port that they no longer own, which another may own by now."""
        return {
            key
            for key in keys
            for reach in Reach
            if (portal := self._portals.get(key))
            and portal.port(reach) not in (0, self._listeners.port(ListenerKey(key, reach)))
        }

    def _portal(self, plan: ServicePlan, needed: Collection[ListenerKey]) -> Portal:
        cluster, local = (
            self._listeners.port(key) if (key := ListenerKey(plan.key, reach)) in needed else 0
            for reach in (Reach.CLUSTER, Reach.LOCAL)
        )
        return Portal(plan, cluster, local)

    def _unused(
        self, keys: Iterable[PortKey], needed: Collection[ListenerKey], refused: Collection[PortKey]
    ) -> list[ListenerKey]:
        """The listeners that no rule redirects to. A port whose new rules the kernel refused still has its old ones."""
        return [
            listener
            for key in keys
            for reach in Reach
            if (listener := ListenerKey(key, reach)) not in needed
            and not (key in refused and key in self._written and self._written[key].port(reach))
        ]


def carried(plan: ServicePlan, ports: Iterable[int], own_ips: Iterable[str]) -> ServicePlan:
    """PLAN as connection tracking sees it: this host answers, at the proxy ports of the plan's listeners.

    An endpoint may answer as well: a flow that began before this mode was active continues until it ends.
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


def _needed(wanted: Plans, keys: Collection[PortKey]) -> tuple[dict[ListenerKey, Listener], dict[PortKey, Exception]]:
    """The listeners that these ports need, and the ports for which that could not be decided."""
    needed: dict[ListenerKey, Listener] = {}
    faults: dict[PortKey, Exception] = {}
    for key in keys:
        try:
            if key in wanted:
                needed.update((ListenerKey(key, reach), each) for reach, each in listeners(wanted[key]).items())
        except Exception as error:
            faults[key] = error
    return needed, faults


def _not_served(
    wanted: Plans,
    keys: Iterable[PortKey],
    failed: Mapping[ListenerKey, str],
    faults: Mapping[PortKey, Exception],
) -> Iterator[tuple[PortKey, str]]:
    """Each port that is not served as it should be, with one line of why."""
    for key, error in faults.items():
        yield key, one_line(f"{key}: unexpected {type(error).__name__}: {error}")
    for (key, reach, _), why in failed.items():
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
