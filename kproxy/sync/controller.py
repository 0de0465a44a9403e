"""Follows the cluster: applies what sources learnt, keeps an eye on the node, and wakes the proxiers.

It runs in the main thread and waits for no proxier. It decides nothing: Service semantics are the model's, rules are
the modes', and when a family is written is its proxier's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

from kproxy.containment import Containment
from kproxy.errors import InvalidObject, KproxyError
from kproxy.model.events import Event
from kproxy.model.node_info import NodeInfo
from kproxy.model.state import ClusterState
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.plan_queue import PlanQueue

POLL_SECONDS = 0.2
"""How often the host's addresses are looked at; a look costs microseconds."""


class Observer(Protocol):
    """Is told of the cluster's objects, one method per kind of news."""

    def applied(self, events: Collection[Event], problems: Collection[InvalidObject]) -> None:
        """These events were applied; `problems` is what is wrong with the objects in them."""

    def node(self, node: NodeInfo | None) -> None:
        """The Node object changed."""


class NodeSource(Protocol):
    """The node that the rules are for, which may change."""

    def current(self, state: ClusterState) -> NodeInfo | None:
        """The node as it is now; None while too little is known of it to program anything."""

    def external_ips(self) -> bool:
        """Whether external IPs are served."""


class Controller:
    """Applies events and wakes the proxiers. state: the one that `plans` owns, read here by this thread alone."""

    def __init__(
        self,
        state: ClusterState,
        queue: EventQueue,
        plans: PlanQueue,
        node_source: NodeSource,
        observer: Observer,
        wake_proxiers: Callable[[], None],
        containment: Containment,
    ) -> None:
        self._state, self._queue, self._plans, self._node_source = state, queue, plans, node_source
        self._observer, self._wake_proxiers = observer, wake_proxiers
        self._node: NodeInfo | None = None
        self._node_stage = containment.stage("node", "the rules stay made for the node as it was last known")
        self._turn_stage = containment.stage("controller", "it goes on with the next events")
        self._report_stage = containment.stage("report", "a change is missing in metrics, status or Events")

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Work until `EventQueue.stop` was called or `until` holds. May be called again.

        until: asked between turns; `EventQueue.wake` lets it be asked soon.
        """
        while not self._queue.stopped and not until():
            try:
                self._turn_stage.attempt(lambda: self.turn(POLL_SECONDS), None)
            except KproxyError as error:  # each is handled where it means something; this one was not
                self._turn_stage.failed(error)
            if self._turn_stage.failures:
                time.sleep(POLL_SECONDS)

    def turn(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for events, then do what follows from them."""
        events = self._queue.take(timeout)
        changed = self._apply(events)
        if self._state.node != self._node:
            self._node = self._state.node
            self._report_stage.attempt(lambda: self._observer.node(self._node), None)
        if self._state.ready and self._node_stage.ready:
            changed |= self._node_stage.attempt(self._follow_node, otherwise=False)
        if changed:
            self._wake_proxiers()

    def _apply(self, events: list[Event]) -> bool:
        problems, changed = self._plans.add(events) if events else ([], False)
        again, late = self._plans.retry()
        if events or again:
            self._report_stage.attempt(lambda: self._observer.applied(events, [*problems, *again]), None)
        return changed or late

    def _follow_node(self) -> bool:
        """Returns whether the rules depend on anything that changed."""
        return self._plans.set_node(self._node_source.current(self._state), self._node_source.external_ips())
