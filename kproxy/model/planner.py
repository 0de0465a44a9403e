"""Makes the plans of one Service from the state of the cluster: one plan for each port and family."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from kproxy.model.addresses import contains
from kproxy.model.node_info import NodeInfo
from kproxy.model.plans import Endpoint, Family, Protocol, ServicePlan
from kproxy.model.slices import Slice
from kproxy.model.state import ClusterState, ServiceName
from kproxy.model.topology import Candidate, choose


def plan_service(
    state: ClusterState, name: ServiceName, node: NodeInfo, external_ips: bool = True
) -> list[ServicePlan]:
    """The plans of one Service for `node`, in the order of its ports; empty when it is gone or not for this proxy.

    external_ips: whether external IPs are served.
    """
    templates = state.service(name)
    if not templates:
        return []
    if not external_ips:
        templates = tuple(replace(template, external_ips=()) for template in templates)
    slices = tuple(state.slices(name))
    return [_plan(template, slices, node) for template in templates]


def _plan(template: ServicePlan, slices: tuple[Slice, ...], node: NodeInfo) -> ServicePlan:
    accessible = template.externally_accessible
    found = candidates(slices, template.key.port, template.protocol, template.family, node.name)
    choice = choose(
        found,
        uses_cluster=not template.internal_local or accessible,
        uses_local=template.internal_local or (template.external_local and accessible),
        node_name=node.name,
        zone=node.zone,
    )
    own = node.ip(template.family)
    return replace(
        template,
        node_in_source_ranges=_is_in(own, template.source_ranges),
        cluster=choice.cluster,
        local=choice.local,
        reachable=choice.reachable,
        has_endpoints=choice.anywhere,
        still_serving=_still_serving(found, choice.reachable) if template.protocol is not Protocol.TCP else (),
        ready_local_ips=_ready_local_ips(found) if template.health_check_node_port else (),
        all_local=_all_local(found, choice.reachable),
        endpoint_count=len(found),
    )


def _is_in(own: str, ranges: tuple[str, ...]) -> bool:
    return bool(own and ranges) and any(contains(cidr, own) for cidr in ranges)


def _still_serving(found: Iterable[Candidate], reachable: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    taken = frozenset(reachable)
    return tuple(c.endpoint for c in found if (c.address.ready or c.address.serving) and c.endpoint not in taken)


def _ready_local_ips(found: Iterable[Candidate]) -> tuple[str, ...]:
    return tuple(sorted({c.endpoint.ip for c in found if c.endpoint.local and c.address.ready}))


def _all_local(found: Iterable[Candidate], reachable: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    local = tuple([c.endpoint for c in found if c.endpoint.local])
    return reachable if local == reachable else local  # one tuple less in memory, on the only node that has any


def candidates(
    slices: Iterable[Slice], port_name: str, protocol: Protocol, family: Family, node: str
) -> list[Candidate]:
    """The endpoints of one Service port over all its slices, each address and port once, sorted by text.

    While a controller moves an endpoint between slices, or a pod's address is used again, the copies of an endpoint may
    disagree. In the order of the slices' names and within a slice, a copy takes the place of an earlier one only if it
    does not terminate; so of several that terminate the first counts. Source: kubernetes#135593.
    """
    found: dict[str, Candidate] = {}
    for piece in slices:
        if piece.family is not family:
            continue
        for name, proto, number in piece.ports:
            if proto is protocol and name == port_name:
                start, end = ("[", f"]:{number}") if family is Family.IPV6 else ("", f":{number}")
                for address in piece.addresses:
                    text = f"{start}{address.ip}{end}"  # as str() of the endpoint has it
                    if text not in found or not address.terminating:
                        local = bool(node) and address.node == node
                        found[text] = Candidate(Endpoint(address.ip, number, local), address)
    return [found[text] for text in sorted(found)]
