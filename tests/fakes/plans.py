"""The plans of a cluster in both families, as two proxiers hold them; and a state in which planning goes wrong."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.errors import InvalidObject
from kproxy.model.events import Changed, Deleted, Event, Listed
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind
from kproxy.model.plan_store import Changes, FamilyPlans, PlanStore
from kproxy.model.plans import Family
from kproxy.model.slices import Slice
from kproxy.model.state import ClusterState, ServiceName


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


class FaultyState(ClusterState):
    """A ClusterState with a bug: an event about an object called one of `unusable` raises ZeroDivisionError, and so
    does planning a Service that is one of `unplannable`; and a list of a kind in `unlistable`."""

    def __init__(self, node_name: str) -> None:
        super().__init__(node_name)
        self.unusable: set[str] = set()
        self.unplannable: set[ServiceName] = set()
        self.unlistable: set[Kind] = set()

    def apply(self, event: Event) -> list[InvalidObject]:
        match event:
            case Changed(_, item):
                name = item.metadata.name
            case Deleted(_, _, name):
                pass
            case Listed():
                name = next((name for _, name in self.absent(event) if name in self.unusable), "")
            case _:
                name = ""
        if name in self.unusable:
            raise ZeroDivisionError("division by zero")
        return super().apply(event)

    def absent(self, event: Listed) -> list[tuple[str, str]]:
        if event.kind in self.unlistable:
            raise ZeroDivisionError("division by zero")
        return super().absent(event)

    def slices(self, name: ServiceName) -> Iterable[Slice]:
        if name in self.unplannable:
            raise ZeroDivisionError("division by zero")
        return super().slices(name)
