"""The plans of a cluster in both families, as two proxiers hold them."""

from __future__ import annotations

from kproxy.model.node_info import NodeInfo
from kproxy.model.plan_store import Changes, FamilyPlans, PlanStore
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState


class BothFamilies:
    """A PlanStore, and each family's plans brought up to date by its changes."""

    def __init__(self) -> None:
        self.store = PlanStore()
        self.families = {family: FamilyPlans() for family in Family}

    def update(self, state: ClusterState, node: NodeInfo, everything: bool = False) -> dict[Family, Changes]:
        """Plan what is dirty, or everything; returns what changed."""
        dirty = state.take_dirty()
        changes = self.store.update(state, dirty._replace(all=dirty.all or everything), node)
        for family, plans in self.families.items():
            plans.update(changes[family])
        return changes
