"""All current plans, and what a change of the cluster makes of them.

Only Services that are dirty are planned again, and the sums over all plans are kept by adding and subtracting, so the
cost of a change does not grow with the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kproxy.model.planner import Place, plan_service
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.model.state import ClusterState, Dirty, ServiceName

Touched = dict[PortKey, tuple[ServicePlan | None, ServicePlan | None]]
"""What changed, by port: the plan before (None: there was none) and after (None: it is gone)."""


@dataclass(slots=True)
class FamilyPlans:
    """One family's plans with the sums over them.

    endpoints: of all ports together. checks: per Service with a health check node port, its plans' keys.
    no_internal, no_external: ports with policy Local that have endpoints, but none on this node.
    """

    plans: dict[PortKey, ServicePlan] = field(default_factory=dict)
    endpoints: int = 0
    no_internal: int = 0
    no_external: int = 0
    checks: dict[PortKey, ServicePlan] = field(default_factory=dict)

    def replace(self, key: PortKey, old: ServicePlan | None, new: ServicePlan | None) -> None:
        """Put `new` where `old` was."""
        if old is not None:
            self._count(old, -1)
            del self.plans[key]
            self.checks.pop(key, None)
        if new is not None:
            self._count(new, 1)
            self.plans[key] = new
            if new.health_check_node_port:
                self.checks[key] = new

    def _count(self, plan: ServicePlan, sign: int) -> None:
        self.endpoints += sign * plan.endpoint_count
        if plan.has_endpoints and not plan.local:
            self.no_internal += sign * plan.internal_local
            self.no_external += sign * (plan.external_local and plan.externally_accessible)


class PlanStore:
    """The plans of all Services, a page a family."""

    def __init__(self) -> None:
        self.pages: Mapping[Family, FamilyPlans] = {family: FamilyPlans() for family in Family}
        self._keys: dict[ServiceName, tuple[tuple[Family, PortKey], ...]] = {}

    def update(self, state: ClusterState, dirty: Dirty, place: Place) -> dict[Family, Touched]:
        """Plan what is dirty again; returns only plans that really differ."""
        touched: dict[Family, Touched] = {family: {} for family in Family}
        names: Iterable[ServiceName] = dirty.names
        if dirty.all:
            names = {*state.names(), *self._keys}
        for name in names:
            self._update(state, name, place, touched)
        return touched

    def _update(self, state: ClusterState, name: ServiceName, place: Place, touched: dict[Family, Touched]) -> None:
        plans = {(plan.family, plan.key): plan for plan in plan_service(state, name, place)}
        for at in {*self._keys.get(name, ()), *plans}:
            family, key = at
            page, new = self.pages[family], plans.get(at)
            old = page.plans.get(key)
            if old != new:
                page.replace(key, old, new)
                touched[family][key] = (old, new)
        if plans:
            self._keys[name] = tuple(plans)
        else:
            self._keys.pop(name, None)

    def health_checks(self) -> dict[int, tuple[ServiceName, int]]:
        """By health check node port: the Service, and how many ready endpoints of it this node has.

        An endpoint has an address in each family; the family that has more tells how many endpoints there are.
        """
        found: dict[int, tuple[ServiceName, int]] = {}
        for page in self.pages.values():
            ips: dict[tuple[int, ServiceName], set[str]] = {}
            for key, plan in page.checks.items():
                service = ServiceName(key.namespace, key.name)
                ips.setdefault((plan.health_check_node_port, service), set()).update(plan.ready_here)
            for (port, service), here in ips.items():
                other = found.get(port, (service, 0))[1]
                found[port] = (service, max(other, len(here)))
        return found
