"""The cluster as far as a Service proxy needs it, and which Services changed since last asked.

Every event is turned at once into the small values of services, slices and nodes, and compared with what was known:
an event that changes nothing marks nothing, and a relist is only its difference. What is refused here never reaches a
mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from kproxy.errors import InvalidObject
from kproxy.model import node_info, objects, services, slices
from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, ListPage, Resolved
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind
from kproxy.model.plans import ServicePlan
from kproxy.model.slices import Slice

TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
REQUIRED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE})


class ServiceName(NamedTuple):
    namespace: str
    name: str


class Dirty(NamedTuple):
    """What changed: the Services to plan again (or, with `all`, every one), and how many changes that took.

    triggers: for the Services whose endpoints changed, when the cause of it happened (seconds since the epoch).
    """

    names: frozenset[ServiceName]
    all: bool
    service_changes: int
    endpoint_changes: int
    triggers: dict[ServiceName, list[float]]


class ClusterState:
    """What is known of the cluster. Not thread-safe: one thread applies events and plans."""

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.node: NodeInfo | None = None
        self.service_cidrs: tuple[str, ...] = ()
        self._services: dict[ServiceName, tuple[ServicePlan, ...]] = {}
        self._slices: dict[ServiceName, dict[str, Slice]] = {}
        self._owners: dict[tuple[str, str], ServiceName] = {}
        self._cidrs: dict[str, tuple[str, ...]] = {}
        self._listed: set[Kind] = set()
        self._reset()

    def _reset(self) -> None:
        self._dirty: set[ServiceName] = set()
        self._all_dirty = False
        self._service_changes = self._endpoint_changes = 0
        self._triggers: dict[ServiceName, list[float]] = {}

    # ---- what is known

    @property
    def ready(self) -> bool:
        """Whether the first lists of all required kinds are complete; planning sooner would remove unknown Services."""
        return self._listed >= REQUIRED

    def listed(self, kind: Kind) -> bool:
        """Whether the first list of this kind is complete."""
        return kind in self._listed

    def names(self) -> Iterable[ServiceName]:
        return self._services.keys()

    def service(self, name: ServiceName) -> tuple[ServicePlan, ...]:
        """The plans of a Service without endpoints; empty when it is unknown or has none."""
        return self._services.get(name, ())

    def slices(self, name: ServiceName) -> Iterable[Slice]:
        """The slices of a Service in the order of their names, so that the result of duplicates never varies."""
        found = self._slices.get(name)
        if not found:
            return ()
        return found.values() if len(found) == 1 else (found[k] for k in sorted(found))

    @property
    def pending(self) -> tuple[int, int]:
        """The numbers of changes of Services and of endpoints since the last take_dirty."""
        return self._service_changes, self._endpoint_changes

    @property
    def all_dirty(self) -> bool:
        """Whether something changed that every plan depends on."""
        return self._all_dirty

    def take_dirty(self) -> Dirty:
        """What changed since the last call."""
        dirty = Dirty(
            frozenset(self._dirty), self._all_dirty, self._service_changes, self._endpoint_changes, self._triggers
        )
        self._reset()
        return dirty

    # ---- what happens

    def apply(self, event: Event) -> list[InvalidObject]:
        """Apply one event; returns the problems of the objects in it."""
        match event:
            case ListPage():
                return self._take(event.objects)
            case Listed():
                return self._list(event)
            case Changed(_, item):
                return self._change(item)
            case Deleted(kind, namespace, name):
                self._delete(kind, namespace, name)
                return []
            case Invalid(error):
                return [error]
            case Resolved():
                return []

    def _take(self, items: Iterable[objects.Object]) -> list[InvalidObject]:
        return [problem for item in items for problem in self._change(item)]

    def _list(self, event: Listed) -> list[InvalidObject]:
        problems = self._take(event.objects)
        gone = self.absent(event)
        self._listed.add(event.kind)
        for namespace, name in gone:
            self._delete(event.kind, namespace, name)
        return problems

    def absent(self, event: Listed) -> list[tuple[str, str]]:
        """Namespaces and names of the known objects that a list does not have."""
        keep = {f"{o.metadata.namespace or 'default'}/{o.metadata.name}" for o in event.objects}
        keep |= event.delivered | event.unreadable
        return [known for known in self._known(event.kind) if "/".join(known) not in keep]

    def _known(self, kind: Kind) -> list[tuple[str, str]]:
        match kind:
            case Kind.SERVICE:
                return list(self._services)
            case Kind.ENDPOINT_SLICE:
                return list(self._owners)
            case Kind.NODE:
                return [("default", self.node_name)] if self.node else []
            case Kind.SERVICE_CIDR:
                return [("default", name) for name in self._cidrs]

    def _change(self, item: objects.Object) -> list[InvalidObject]:
        match item:
            case objects.Service():
                return self._change_service(item)
            case objects.EndpointSlice():
                return self._change_slice(item)
            case objects.Node():
                if item.metadata.name == self.node_name:
                    self._set_node(node_info.parse(item))
                    return node_info.problems(item)
            case objects.ServiceCIDR():
                cidrs, problems = services.parse_cidrs(item)
                self._set_cidrs(item.metadata.name, cidrs)
                return problems
        return []

    def _delete(self, kind: Kind, namespace: str, name: str) -> None:
        namespace = namespace or "default"
        match kind:
            case Kind.SERVICE:
                self._set_service(ServiceName(namespace, name), ())
            case Kind.ENDPOINT_SLICE:
                self._set_slice(namespace, name, None)
            case Kind.NODE:
                if name == self.node_name:
                    self._set_node(None)
            case Kind.SERVICE_CIDR:
                self._set_cidrs(name, None)

    def _change_service(self, item: objects.Service) -> list[InvalidObject]:
        plans, problems = services.parse(item)
        self._set_service(ServiceName(item.metadata.namespace or "default", item.metadata.name), plans)
        return problems

    def _change_slice(self, item: objects.EndpointSlice) -> list[InvalidObject]:
        found, problems = slices.parse(item)
        if self._set_slice(item.metadata.namespace or "default", item.metadata.name, found) and found:
            self._note_trigger(item, found)
        return problems

    def _set_service(self, name: ServiceName, plans: tuple[ServicePlan, ...]) -> None:
        if self._services.get(name, ()) == plans:
            return
        if plans:
            self._services[name] = plans
        else:
            self._services.pop(name, None)
        self._dirty.add(name)
        self._service_changes += 1

    def _set_slice(self, namespace: str, name: str, new: Slice | None) -> bool:
        """Store a slice; returns whether that changed anything. If the slice changes its Service, both are dirty."""
        owner = ServiceName(namespace, new.service) if new else None
        before = self._owners.get((namespace, name))
        if before is None and owner is None:
            return False
        if before is not None and before == owner and self._slices[before][name] == new:
            return False
        if before is not None:
            self._drop_slice(before, namespace, name)
        if owner is not None and new is not None:
            self._owners[namespace, name] = owner
            self._slices.setdefault(owner, {})[name] = new
            self._dirty.add(owner)
        self._endpoint_changes += 1
        return True

    def _drop_slice(self, owner: ServiceName, namespace: str, name: str) -> None:
        del self._owners[namespace, name]
        del self._slices[owner][name]
        if not self._slices[owner]:
            del self._slices[owner]
        self._dirty.add(owner)

    def _note_trigger(self, item: objects.EndpointSlice, found: Slice) -> None:
        """Remember when the cause of this change happened. Ignored in the first list, whose causes are long past."""
        text = (item.metadata.annotations or {}).get(TRIGGER_ANNOTATION)
        if not text or not self.listed(Kind.ENDPOINT_SLICE):
            return
        try:
            when = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):  # the latter two for local times that the C library cannot count
            return
        name = ServiceName(item.metadata.namespace or "default", found.service)
        self._triggers.setdefault(name, []).append(when)

    def _set_node(self, node: NodeInfo | None) -> None:
        if node != self.node:
            self.node = node
            self._all_dirty = True

    def _set_cidrs(self, name: str, cidrs: tuple[str, ...] | None) -> None:
        if cidrs is None:
            self._cidrs.pop(name, None)
        else:
            self._cidrs[name] = cidrs
        self.service_cidrs = tuple(sorted({c for group in self._cidrs.values() for c in group}))
