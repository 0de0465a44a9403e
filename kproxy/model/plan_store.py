"""Holds the plans of the whole cluster and updates them when the cluster changes.

Only Services that are dirty are planned again, and sums over all plans are kept by adding and subtracting, so the cost
of a change does not grow with the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from kproxy.model.node_info import NodeInfo
from kproxy.model.planner import plan_service
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.model.state import ClusterState, Dirty, ServiceName

Changes = dict[PortKey, tuple[ServicePlan | None, ServicePlan | None]]
"""Plans that changed, by port: the plan before (None: there was none) and after (None: it is gone)."""


def merge(earlier: Changes, later: Changes) -> None:
    """Add `later` changes to `earlier` ones in place; several changes of one port become one."""
    for key, (old, new) in later.items():
        first = earlier[key][0] if key in earlier else old
        earlier[key] = (first, new)


@dataclass(slots=True)
class FamilyPlans:
    """One family's plans with totals over them.

    endpoints: of all ports together. no_internal, no_external: ports with policy Local that have endpoints, but none on
    this node. checks: the plans of ports whose Service has a health check node port.
    """

    plans: dict[PortKey, ServicePlan] = field(default_factory=dict)
    endpoints: int = 0
    no_internal: int = 0
    no_external: int = 0
    checks: dict[PortKey, ServicePlan] = field(default_factory=dict)

    def update(self, changes: Changes) -> None:
        """Replace each changed plan, and remove those that are gone."""
        for key, (_, new) in changes.items():
            self._replace(key, self.plans.get(key), new)

    def _replace(self, key: PortKey, old: ServicePlan | None, new: ServicePlan | None) -> None:
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
    """The newest plans of all Services, in both families."""

    def __init__(self) -> None:
        self._plans: dict[ServiceName, tuple[ServicePlan, ...]] = {}

    def plans(self) -> Iterator[ServicePlan]:
        """All plans."""
        for plans in self._plans.values():
            yield from plans

    def update(
        self,
        state: ClusterState,
        dirty: Dirty,
        node: NodeInfo,
        external_ips: bool = True,
        failed: Callable[[ServiceName, Exception], None] | None = None,
    ) -> dict[Family, Changes]:
        """Plan dirty Services for `node` again; returns the plans that really changed, by family.

        failed: called with a Service whose planning raised an exception; its plans stay as they were. Without it the
        exception passes through.
        """
        changes: dict[Family, Changes] = {family: {} for family in Family}
        names: Iterable[ServiceName] = {*state.names(), *self._plans} if dirty.all else dirty.names
        for name in names:
            try:
                plans = tuple(plan_service(state, name, node, external_ips))
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
            else:
                self._replace(name, plans, changes)
        return changes

    def _replace(self, name: ServiceName, plans: tuple[ServicePlan, ...], changes: dict[Family, Changes]) -> None:
        before = self._plans.get(name, ())
        if before == plans:
            return
        if not before:
            for plan in plans:
                changes[plan.family][plan.key] = (None, plan)
            self._plans[name] = plans
            return
        old = {(plan.family, plan.key): plan for plan in before}
        new = {(plan.family, plan.key): plan for plan in plans}
        # An unchanged plan stays the same object, so that proxiers share it with this store.
        kept = tuple(old[at] if old.get(at) == plan else plan for at, plan in new.items())
        for at in {*old, *new}:
            was, now = old.get(at), new.get(at)
            if was != now:
                changes[at[0]][at[1]] = (was, now)
        if kept:
            self._plans[name] = kept
        else:
            self._plans.pop(name, None)


HealthChecks = dict[tuple[int, ServiceName], frozenset[str]]
"""By health check node port and Service: the IPs of its ready endpoints on this node."""


def health_checks(plans: FamilyPlans) -> HealthChecks:
    """The health check node ports of one family's Services."""
    found: dict[tuple[int, ServiceName], set[str]] = {}
    for key, plan in plans.checks.items():
        at = plan.health_check_node_port, ServiceName(key.namespace, key.name)
        found.setdefault(at, set()).update(plan.ready_local_ips)
    return {at: frozenset(ips) for at, ips in found.items()}


class ServiceCheck(NamedTuple):
    """What a health check node port answers for: a Service, how many ready endpoints of it this node has, and the
    families that it asks for the port in."""

    service: ServiceName
    endpoints: int
    families: frozenset[Family]


def checks_by_port(
    of_families: Mapping[Family, HealthChecks], owners: Mapping[int, ServiceName] = MappingProxyType({})
) -> dict[int, ServiceCheck]:
    """What each health check node port answers for.

    Of several Services that ask for one port, the one that OWNERS names keeps it, else the first by name gets it: as in
    kube-proxy it is whoever opened the port, and never a mixture. An endpoint has an address in each family; the family
    that has more tells how many endpoints there are.
    """
    found: dict[int, dict[ServiceName, ServiceCheck]] = {}
    for family, checks in of_families.items():
        for (port, service), ips in checks.items():
            claims = found.setdefault(port, {})
            _, number, families = claims.get(service, (service, 0, frozenset()))
            claims[service] = ServiceCheck(service, max(number, len(ips)), families | {family})
    return {port: claims[owners[port] if owners.get(port) in claims else min(claims)] for port, claims in found.items()}
