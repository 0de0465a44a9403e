"""The Services of the status: the plans that a search finds, cut into pages, each plan as a row. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kproxy.model.plans import Family, PortKey, ServicePlan, address_port
from kproxy.status.schema import PortRow, ServicePage, ServiceRow

SHOWN_ENDPOINTS = 16
"""Endpoints of a port that are listed; the others are counted."""
LONGEST_QUERY = 256
"""Characters of a search that are read."""

Names = Callable[[ServicePlan], tuple[str, ...]]
"""Returns the names of a port's chains, map elements or virtual servers in the kernel."""
Refused = Mapping[tuple[Family, PortKey], str]
"""Why the kernel refused a port."""


def service_page(
    plans: Iterable[ServicePlan], names: Names, refused: Refused, query: str = "", page: int = 1, size: int = 50
) -> ServicePage:
    """Return page number `page` (from 1) of the Services that `query` finds, ordered by namespace and name.

    query: words, all of which must occur in the Service's name, addresses, ports, endpoints, or names in the kernel.
    size: Services a page. For a page that does not exist the nearest one is returned.
    """
    services: dict[tuple[str, str], list[ServicePlan]] = {}
    for plan in plans:
        services.setdefault((plan.key.namespace, plan.key.name), []).append(plan)
    words = query.lower().split()
    found = sorted(name for name, held in services.items() if not words or _found(words, held, names))
    pages = max(1, -(-len(found) // size))
    page = min(max(1, page), pages)
    return ServicePage(
        query=query,
        page=page,
        pages=pages,
        total=len(services),
        matching=len(found),
        items=tuple(_row(name, services[name], names, refused) for name in found[(page - 1) * size : page * size]),
    )


def _found(words: Sequence[str], plans: Iterable[ServicePlan], names: Names) -> bool:
    # Names in the kernel are computed only when nothing else has the words, since many of them are hashes.
    plans = list(plans)
    text = "\n".join(part for plan in plans for part in _words(plan)).lower()
    missing = [word for word in words if word not in text]
    if not missing:
        return True
    in_kernel = "\n".join(name for plan in plans for name in names(plan)).lower()
    return all(word in in_kernel for word in missing)


def _words(plan: ServicePlan) -> Iterator[str]:
    yield f"{plan.key} {plan.protocol}"
    yield from _addresses(plan)
    yield from (str(endpoint) for endpoint in plan.reachable)


def _row(name: tuple[str, str], plans: Iterable[ServicePlan], names: Names, refused: Refused) -> ServiceRow:
    ordered = sorted(plans, key=lambda plan: (plan.family, plan.key))
    ports = tuple(_port(plan, names(plan), refused.get((plan.family, plan.key), "")) for plan in ordered)
    return ServiceRow(namespace=name[0], name=name[1], ports=ports)


def _port(plan: ServicePlan, names: tuple[str, ...], refused: str) -> PortRow:
    return PortRow(
        family=plan.family.value,
        port=plan.key.port,
        protocol=plan.protocol.value,
        addresses=tuple(_addresses(plan)),
        endpoints=tuple(f"{e} (here)" if e.local else str(e) for e in plan.reachable[:SHOWN_ENDPOINTS]),
        serving=len(plan.reachable),
        known=plan.endpoint_count,
        names=names,
        notes=tuple(_notes(plan)),
        refused=refused,
    )


def _addresses(plan: ServicePlan) -> Iterator[str]:
    yield address_port(plan.cluster_ip, plan.port)
    if plan.node_port:
        yield f"node port {plan.node_port}"
    yield from (f"{address_port(ip, plan.port)} (external)" for ip in plan.external_ips)
    yield from (f"{address_port(ip, plan.port)} (load balancer)" for ip in plan.load_balancer_ips)


def _notes(plan: ServicePlan) -> Iterator[str]:
    if not plan.has_endpoints:
        yield "no usable endpoint: connections are rejected"
    elif plan.internal_local and not plan.local:
        yield "no endpoint on this node: connections to the cluster IP are dropped"
    if plan.has_endpoints and plan.externally_accessible and plan.external_local and not plan.local:
        yield "no endpoint on this node: connections from outside are dropped"
    if plan.internal_local:
        yield "internal traffic stays on the node"
    if plan.external_local:
        yield "external traffic stays on the node"
    if plan.affinity_seconds:
        yield f"client IP affinity for {plan.affinity_seconds} s"
    if plan.admits_nobody:
        yield "load balancer: admits nobody, as its source ranges cannot be read"
    elif plan.source_ranges:
        yield f"load balancer: only from {', '.join(plan.source_ranges)}"
    if plan.health_check_node_port:
        yield f"health checks on node port {plan.health_check_node_port}"
