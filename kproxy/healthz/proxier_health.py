"""The health of the proxy, and whether load balancers should send traffic to this node, as /healthz and /livez report.

An IP family is healthy unless a change has been waiting to be programmed for longer than two sync periods. Nothing else
makes it unhealthy, so a quiet cluster stays healthy. What cannot be checked of the kernel is shown with the family
(`degraded`): its Services are served, so load balancers and the kubelet should leave the node alone. The node is
eligible unless it is being deleted or the cluster autoscaler is about to remove it. The paths are in
`kproxy.status.pages`.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kproxy.clocks import ZERO_TIME, Clock, rfc3339
from kproxy.model.node_info import NodeInfo
from kproxy.model.plans import Family


@dataclass(frozen=True, slots=True)
class FamilyHealth:
    """The health of one IP family. last_updated: when its rules were last up to date, None for never. degraded: a line
    for each part of the kernel's state that cannot be checked."""

    last_updated: datetime | None
    healthy: bool
    degraded: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The family's part of the body; kube-proxy's, unless it is degraded."""
        degraded = {"degraded": self.degraded} if self.degraded else {}
        return {"lastUpdated": _time(self.last_updated), "healthy": self.healthy, **degraded}


@dataclass(frozen=True, slots=True)
class Health:
    """The health of all families and the node at one moment."""

    now: datetime
    node_eligible: bool
    families: dict[Family, FamilyHealth]

    @property
    def healthy(self) -> bool:
        """Whether no family has an overdue change, whatever the state of the node."""
        return all(family.healthy for family in self.families.values())

    @property
    def last_updated(self) -> datetime | None:
        """The latest update of any family, None for never."""
        return max((f.last_updated for f in self.families.values() if f.last_updated), default=None)

    def healthz(self) -> tuple[int, bytes]:
        """Return HTTP status and JSON body of /healthz."""
        return self._page(self.healthy and self.node_eligible, {"nodeEligible": self.node_eligible})

    def livez(self) -> tuple[int, bytes]:
        """Return HTTP status and JSON body of /livez: the same without the node."""
        return self._page(self.healthy, {})

    def _page(self, ok: bool, node: dict[str, bool]) -> tuple[int, bytes]:
        # Monitoring written for kube-proxy compares the two times, so a good answer is up to date as of now, even
        # when nothing changed for hours.
        body: dict[str, Any] = {
            "lastUpdated": _time(self.now if ok else self.last_updated),
            "currentTime": _time(self.now),
            **node,
            "healthy": self.healthy,
        }
        if self.families:
            body["status"] = {family.value: state.as_json() for family, state in sorted(self.families.items())}
        return (200 if ok else 503), json.dumps(body, separators=(",", ":")).encode()


class ProxierHealth:
    """Tracks what the health depends on. Every method may be called from any thread.

    sync_period: seconds, positive; a change may wait for twice as long.
    """

    def __init__(self, sync_period: float, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.expect(sync_period)
        self._last_updated: dict[Family, datetime] = {}
        self._waiting_since: dict[Family, float] = {}
        self._degraded: dict[Family, tuple[str, ...]] = {}
        self._node_eligible = True

    def expect(self, sync_period: float) -> None:
        """Let changes wait for twice `sync_period` seconds from now on. Raises ValueError unless it is positive."""
        if sync_period <= 0:
            raise ValueError(f"sync_period must be positive, is {sync_period}")
        with self._lock:
            self._longest_wait = 2 * sync_period

    def queued_update(self, family: Family) -> None:
        """Note that a change of `family` waits to be programmed. Only the oldest that waits counts."""
        with self._lock:
            self._waiting_since.setdefault(family, self._clock.monotonic())

    def updated(self, family: Family) -> None:
        """Note that the kernel holds everything that is known of `family`."""
        with self._lock:
            self._waiting_since.pop(family, None)
            self._last_updated[family] = self._clock.now()

    def degraded(self, family: Family, lines: tuple[str, ...]) -> None:
        """Set what cannot be checked of `family`, a line each; none when all can."""
        with self._lock:
            self._degraded[family] = lines

    def node_changed(self, node: NodeInfo | None) -> None:
        """Take this node's object, None when it was deleted. Until the first call the node is eligible."""
        eligible = node is not None and node.eligible
        with self._lock:
            self._node_eligible = eligible

    def healthy(self) -> bool:
        """Whether no change has waited too long, whatever the state of the node."""
        return self.health().healthy

    def health(self) -> Health:
        """Return the health at this moment."""
        with self._lock:
            now = self._clock.monotonic()
            families = {
                family: FamilyHealth(
                    last_updated=self._last_updated.get(family),
                    healthy=now - self._waiting_since.get(family, now) < self._longest_wait,
                    degraded=self._degraded.get(family, ()),
                )
                for family in {*self._last_updated, *self._waiting_since}
            }
            return Health(now=self._clock.now(), node_eligible=self._node_eligible, families=families)


def _time(moment: datetime | None) -> str:
    return rfc3339(moment) if moment else ZERO_TIME
