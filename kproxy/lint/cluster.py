"""The cluster as the checks look at it: its objects as they were given, and what a proxy makes of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

from kproxy.config.fields import ProxyMode
from kproxy.errors import InvalidObject
from kproxy.model.addresses import canonical_ip
from kproxy.model.events import Listed
from kproxy.model.node_info import ZONE_LABEL
from kproxy.model.objects import EndpointSlice, Kind, Node, Object, Service
from kproxy.model.planner import candidates
from kproxy.model.plans import ServicePlan
from kproxy.model.services import PROXY_NAME_LABEL
from kproxy.model.slices import SERVICE_LABEL, Slice
from kproxy.model.state import ClusterState, ServiceName
from kproxy.model.topology import Candidate


class KnownNode(NamedTuple):
    """A node that some object names. zone: "" if it is not known."""

    name: str
    zone: str = ""


class Cluster:
    """The subject of the checks. problems: of objects that could not be read. mode: the proxy mode of its nodes."""

    def __init__(
        self, objects: Mapping[Kind, Iterable[Object]], problems: Collection[InvalidObject], mode: ProxyMode
    ) -> None:
        self.mode = mode
        self.services = [item for item in objects.get(Kind.SERVICE, ()) if isinstance(item, Service)]
        self.slices = [item for item in objects.get(Kind.ENDPOINT_SLICE, ()) if isinstance(item, EndpointSlice)]
        self.nodes = [item for item in objects.get(Kind.NODE, ()) if isinstance(item, Node)]
        self._state = ClusterState("")
        kinds = (Kind.SERVICE_CIDR, Kind.SERVICE, Kind.ENDPOINT_SLICE)
        found = [p for kind in kinds for p in self._state.apply(Listed(kind, tuple(objects.get(kind, ()))))]
        self.problems = (*problems, *found)

    @property
    def objects(self) -> Iterable[Service | EndpointSlice | Node]:
        return (*self.services, *self.slices, *self.nodes)

    @cached_property
    def served(self) -> dict[ServiceName, tuple[ServicePlan, ...]]:
        """The Services that a proxy serves, each with a plan for each port and family, still without endpoints."""
        return {name: self._state.service(name) for name in self._state.names()}

    @cached_property
    def service_names(self) -> frozenset[ServiceName]:
        """Every Service, headless ones and those of other proxies included."""
        return frozenset(name_of(item) for item in self.services)

    def slices_of(self, name: ServiceName) -> tuple[Slice, ...]:
        """The usable slices of a Service, in the order in which a proxy reads them."""
        return tuple(self._state.slices(name))

    def candidates(self, plan: ServicePlan, node: str = "") -> list[Candidate]:
        """The endpoints of a Service port, whatever their conditions. node: for which they say if they are local."""
        at = ServiceName(plan.key.namespace, plan.key.name)
        return candidates(self.slices_of(at), plan.key.port, plan.protocol, plan.family, node)

    @cached_property
    def known_nodes(self) -> tuple[KnownNode, ...]:
        """The nodes: all Node objects, or where there are none, those on which endpoints run."""
        given = [KnownNode(n.metadata.name, (n.metadata.labels or {}).get(ZONE_LABEL) or "") for n in self.nodes]
        named = {e.node_name for item in self.slices for e in item.endpoints or () if e.node_name}
        return tuple(sorted(given or map(KnownNode, named)))

    @cached_property
    def node_addresses(self) -> dict[str, str]:
        """The names of the nodes by their addresses."""
        found = ((n, a.address) for n in self.nodes for a in (n.status.addresses if n.status else None) or ())
        return {ip: n.metadata.name for n, text in found if (ip := canonical_ip(text))}


def name_of(item: Service | EndpointSlice) -> ServiceName:
    return ServiceName(item.metadata.namespace or "default", item.metadata.name)


def owner_of(item: EndpointSlice) -> ServiceName | None:
    """The Service that a slice says it belongs to."""
    label = (item.metadata.labels or {}).get(SERVICE_LABEL)
    return ServiceName(item.metadata.namespace or "default", label) if label else None


def is_anothers(item: Service) -> bool:
    """Whether the Service is left to another proxy."""
    return PROXY_NAME_LABEL in (item.metadata.labels or {})


def subject_of(item: Object) -> str:
    """What a finding calls an object: "Service shop/web", "Node node1"."""
    kind = type(item).__name__
    if isinstance(item, Service | EndpointSlice):
        return f"{kind} {item.metadata.namespace or 'default'}/{item.metadata.name}"
    return f"{kind} {item.metadata.name}"


def service(name: ServiceName) -> str:
    """What a finding calls the Service of this name."""
    return f"Service {name.namespace}/{name.name}"
