"""TCP node ports on loopback, in modes whose rules cannot serve them: the forwarder listens there (KEP-6032).

A connection to 127.0.0.1 or ::1 cannot be translated to a pod's address without the sysctl route_localnet, which opens
the node's loopback addresses to the neighbours on the link. A process that listens and connects anew does not need it.

Decides: which Service port a node port belongs to, which listeners change, and what becomes of those that cannot be
opened. Leaves out: what the mode's rules do with packets to loopback (its render module), and forwarding itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

from kproxy import logs
from kproxy.containment import Stage
from kproxy.errors import KernelError, one_line
from kproxy.model.plans import Family, PortKey, ServicePlan, address_port
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.base import Dataplane, Outcome
from kproxy.modes.drivers import Equipment
from kproxy.modes.userspace.forwarder import ForwarderProcess
from kproxy.modes.userspace.listener_table import ListenersLost, ListenerTable
from kproxy.modes.userspace.listeners import (
    LOOPBACK,
    Forwarder,
    Listener,
    ListenerKey,
    Statistics,
    localhost_listener,
)
from kproxy.modes.userspace.messages import Settings

_log = logs.get("localhost-ports")

HOUSEKEEPING = 1.0  # seconds

Plans = Mapping[PortKey, ServicePlan]


class NodePortForwarder(Forwarder, Protocol):
    """A Forwarder whose processes end when nothing needs them."""

    def end_unused(self) -> bool:
        """See ForwarderProcess."""


class Counts(Protocol):
    """Counts listeners (see kproxy.metrics)."""

    def localhost_listeners(self, family: Family, number: int) -> None: ...

    def localhost_listener_failed(self, family: Family) -> None: ...


class LocalhostNodePorts:
    """The forwarder of a mode's driver for node ports on loopback, which both families share. One process at most."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._dataplanes: dict[Family, LocalhostDataplane] = {}
        config = equipment.config
        self._forwarder = ForwarderProcess(
            Settings(
                drain_seconds=config.userspace.drain_timeout.seconds,
                workers=1,
                log_format=config.logging.format.value,
                verbosity=config.logging.verbosity,
            )
        )
        equipment.stack.callback(self.close)

    def beside(self, dataplane: Dataplane) -> Dataplane:
        """DATAPLANE, with its family's listeners on loopback."""
        family, equipment = dataplane.family, self._equipment
        stage = equipment.containment.stage("localhost-ports", f"{family} node ports on loopback are tried again")
        made = LocalhostDataplane(dataplane, self._forwarder, equipment.metrics, stage)
        self._dataplanes[family] = made
        return made

    def configure(self, family: Family, serves: bool) -> None:
        """Serve TCP node ports on the family's loopback address from its next sync on, or stop that."""
        self._dataplanes[family].serves = serves

    def statistics(self) -> Statistics:
        """The forwarder's counters. Raises KernelError while none runs."""
        if not self._forwarder.pids:
            raise KernelError("no node port on loopback is served")
        return self._forwarder.statistics()

    def close(self) -> None:
        """End the forwarder, and with it every connection."""
        self._forwarder.close()
        for dataplane in self._dataplanes.values():
            dataplane.ended()


class LocalhostDataplane:
    """A mode's dataplane, and beside it the family's listeners on loopback: the Dataplane of both.

    Whatever goes wrong with the listeners costs these alone. serves: whether loopback takes TCP node ports.
    """

    def __init__(self, inner: Dataplane, forwarder: NodePortForwarder, counts: Counts, stage: Stage) -> None:
        self._inner, self._forwarder, self._counts, self._stage = inner, forwarder, counts, stage
        self._listeners = ListenerTable(inner.family, forwarder)
        self._owners = NodePortOwners()
        self._failed: dict[PortKey, str] = {}
        self.serves = False
        self._in_step_with: bool | None = False  # the value of `serves` that the listeners were brought to
        self._ending = False  # the last listener was closed, and the process has not ended yet

    @property
    def family(self) -> Family:
        return self._inner.family

    def apply(self, wanted: Plans, touched: Collection[PortKey] | None) -> Outcome:
        """See Dataplane. A port whose listener cannot be opened is `rejected`, although its rules are written."""
        try:
            outcome = self._inner.apply(wanted, touched)
        finally:  # listeners follow the plans also while the rules cannot be written
            self._follow(wanted, touched)
        for key, why in self._failed.items():
            outcome.rejected.setdefault(key, why)
        return outcome

    def drifted(self) -> bool:
        """Also True when listeners were lost."""
        lost = self._stage.attempt(lambda: not self._listeners.alive(), otherwise=False)
        return self._inner.drifted() or lost

    def housekeeping(self) -> float | None:
        """Also close what a busy forwarder did not close, and end the process when nothing needs it any more."""
        mine: float | None = HOUSEKEEPING
        own = self._stage.attempt(self._clear_up, otherwise=mine)
        pauses = (own, self._inner.housekeeping())
        return min((pause for pause in pauses if pause is not None), default=None)

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """The names in the mode's rules, and the listener on loopback."""
        needed = localhost_listener(plan)
        if needed is None or not self._listeners.port(needed[0]):
            return self._inner.names(plan)
        return (*self._inner.names(plan), f"listener {self._address(plan.node_port)}")

    def ended(self) -> None:
        """Note that the forwarder was closed. Another mode's listeners may be counted already, or still."""
        if self._listeners.all():
            self._counts.localhost_listeners(self.family, 0)

    # ---------------------------------------------------------------- inside

    def _follow(self, wanted: Plans, touched: Collection[PortKey] | None) -> None:
        """Bring the listeners to WANTED; `_failed` says afterwards which could not be opened, and why."""
        if not self.serves and self._in_step_with is False:
            return
        complete = touched is None or self._in_step_with is not self.serves
        self._in_step_with = None
        failed = self._stage.attempt(lambda: self._open_and_close(wanted, None if complete else touched), None)
        if failed is None:  # how far it came is unknown
            failed = self._all_failed("unexpected error")
        else:
            self._in_step_with = self.serves
        for _ in failed:
            self._counts.localhost_listener_failed(self.family)
        self._failed = failed
        number = len(self._listeners.all())
        self._ending = not number
        self._counts.localhost_listeners(self.family, number)

    def _open_and_close(self, wanted: Plans, touched: Collection[PortKey] | None) -> dict[PortKey, str]:
        """Returns the ports whose listeners are missing, each with one line of why."""
        try:
            try:
                self._listeners.check()
                return self._change(wanted, touched)
            except ListenersLost as lost:
                _log.warning(
                    "The forwarder has ended; opening all node ports on loopback again",
                    family=self.family,
                    why=str(lost),
                )
                return self._change(wanted, None)
        except KernelError as error:  # no forwarder can be started, or it ends at once
            return self._all_failed(str(error))

    def _change(self, wanted: Plans, touched: Collection[PortKey] | None) -> dict[PortKey, str]:
        """See _open_and_close. Raises ListenersLost, or KernelError when no forwarder can be started."""
        if touched is None:
            self._owners.clear()
            touched = wanted
        keys = {*self._failed, *touched}
        ports = self._owners.change((key, wanted.get(key) if self.serves else None) for key in keys)
        # Before any is opened, as a node port that had another owner must be free.
        self._listeners.close([key for key in self._listeners.all() if not self._is_needed(key)])
        failed = self._listeners.open(dict(found for port in ports if (found := self._owners.listener(port))))
        return {key.key: self._why(key, why) for key, why in failed.items()}

    def _is_needed(self, key: ListenerKey) -> bool:
        found = self._owners.listener(key.node_port)
        return found is not None and found[0] == key

    def _clear_up(self) -> float | None:
        try:
            self._listeners.close(())
            if self._ending:
                self._ending = not self._forwarder.end_unused()
        except KernelError as error:  # a forwarder that has ended is noticed by `drifted`
            _log.v(2).info("The forwarder does not answer", family=self.family, err=str(error))
            return HOUSEKEEPING
        return HOUSEKEEPING if self._ending or self._listeners.closing else None

    def _all_failed(self, why: str) -> dict[PortKey, str]:
        return {key.key: self._why(key, why) for key in self._owners.listeners()}

    def _why(self, key: ListenerKey, why: str) -> str:
        return one_line(f"{key.key}: node port not served on {self._address(key.node_port)}: {why}")

    def _address(self, node_port: int) -> str:
        return address_port(LOOPBACK[self.family], node_port)


class NodePortOwners:
    """Which Service port each TCP node port belongs to: of several the first by name, as in the rules. Pure."""

    def __init__(self) -> None:
        self._claims: dict[int, dict[PortKey, tuple[ListenerKey, Listener] | None]] = {}
        self._node_ports: dict[PortKey, int] = {}

    def clear(self) -> None:
        """Forget all."""
        self._claims.clear()
        self._node_ports.clear()

    def change(self, plans: Iterable[tuple[PortKey, ServicePlan | None]]) -> set[int]:
        """Take over new plans, None for a port that is gone. Returns the node ports that this may affect."""
        return {port for key, plan in plans for port in self._replace(key, plan)}

    def listener(self, node_port: int) -> tuple[ListenerKey, Listener] | None:
        """The listener that the owner of a node port needs; None without an owner, or when it needs none."""
        claims = self._claims.get(node_port)
        return claims[min(claims)] if claims else None

    def listeners(self) -> dict[ListenerKey, Listener]:
        """All listeners that are needed."""
        return dict(found for port in self._claims if (found := self.listener(port)))

    def _replace(self, key: PortKey, plan: ServicePlan | None) -> Iterator[int]:
        if former := self._node_ports.pop(key, 0):
            del self._claims[former][key]
            if not self._claims[former]:
                del self._claims[former]
            yield former
        if plan is not None and plan.node_port and plan.protocol is Transport.TCP:
            self._node_ports[key] = plan.node_port
            self._claims.setdefault(plan.node_port, {})[key] = localhost_listener(plan)
            yield plan.node_port
