"""The checks, each a function from the cluster to what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from kproxy.config.fields import ProxyMode
from kproxy.lint.cluster import Cluster, is_anothers, name_of, owner_of, service, subject_of
from kproxy.lint.findings import CHECKS, IGNORE, Finding, finding
from kproxy.model.addresses import canonical_cidr, canonical_ip
from kproxy.model.conflicts import Conflicts
from kproxy.model.objects import EndpointSlice, Object, Service, ServiceSpec
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan, address_port
from kproxy.model.slices import SliceAddress
from kproxy.model.state import ServiceName
from kproxy.model.topology import Candidate, choose

SHOWN = 5
"""So many names of a list are written out."""
RANGES = "spec.loadBalancerSourceRanges"


def lint(cluster: Cluster) -> list[Finding]:
    """Everything that the checks find and no annotation silences: the worst first, then by object and field."""
    silenced = {subject_of(item): _ignored(item) for item in cluster.objects}
    found = (each for check in _CHECKS for each in check(cluster))
    shown = {each for each in found if not {"all", each.id} & silenced.get(each.object, frozenset())}
    return sorted(shown, key=lambda each: (each.severity.rank, each.object, each.field, each.id, each.message))


def _ignored(item: Object) -> frozenset[str]:
    text = (item.metadata.annotations or {}).get(IGNORE) or ""
    return frozenset(filter(None, (word.strip() for word in text.split(","))))


def _names(names: Iterable[str]) -> str:
    """Names as text: "a, b and 7 more"."""
    some = list(names)
    return ", ".join(some[:SHOWN]) + (f" and {len(some) - SHOWN} more" if len(some) > SHOWN else "")


def _port(key: PortKey) -> str:
    return f"spec.ports[{key.port}]" if key.port else "spec.ports"


def _owner(plan: ServicePlan) -> ServiceName:
    return ServiceName(plan.key.namespace, plan.key.name)


# ---------------------------------------------------------------- what cannot be read


def _unusable(cluster: Cluster) -> Iterator[Finding]:
    for problem in cluster.problems:
        subject = f"{problem.kind} {problem.name}"
        if problem.field == RANGES:
            yield finding("load-balancer-closed", subject, problem.field, problem.reason)
        elif problem.field.startswith(RANGES):
            yield finding("source-range-ignored", subject, problem.field, f"{problem.reason}; it admits nobody")
        elif problem.kind != "EndpointSlice" or "belongs to no Service" not in problem.reason:
            yield finding("unusable", subject, problem.field, f"{problem.reason}; it is left out")


def _unknown_checks(cluster: Cluster) -> Iterator[Finding]:
    for item in cluster.objects:
        for word in sorted(_ignored(item) - CHECKS.keys() - {"all"}):
            yield finding("unknown-check", subject_of(item), f"metadata.annotations[{IGNORE}]", f"there is no {word!r}")


# ---------------------------------------------------------------- conflicts


def _cluster_ip_conflicts(cluster: Cluster) -> Iterator[Finding]:
    claimants: dict[tuple[str, int, Protocol], dict[ServiceName, None]] = {}
    for name, plans in cluster.served.items():
        for plan in plans:
            claimants.setdefault((plan.cluster_ip, plan.port, plan.protocol), {})[name] = None
    for (ip, port, protocol), names in claimants.items():
        where = f"{address_port(ip, port)}/{protocol}"
        yield from _conflicting("cluster-ip-conflict", "spec.clusterIP", where, names)


def _conflicts(cluster: Cluster) -> Iterator[Finding]:
    for family in Family:
        plans = (plan for plans in cluster.served.values() for plan in plans if plan.family is family)
        conflicts = Conflicts()
        conflicts.update({plan.key: (None, plan) for plan in plans})
        for conflict in conflicts.found:
            names = {ServiceName(*text.split(" ")[0].split(":")[0].split("/")): None for text in conflict.claimants}
            if any("health check" in text for text in conflict.claimants):
                yield from _conflicting(
                    "health-check-port-conflict", "spec.healthCheckNodePort", f"port {conflict.frontend.port}", names
                )
            elif conflict.frontend.ip:
                yield from _conflicting("address-conflict", "", conflict.where, names)
            else:
                yield from _conflicting("node-port-conflict", "spec.ports", conflict.where, names)


def _conflicting(id: str, field: str, where: str, names: Iterable[ServiceName]) -> Iterator[Finding]:
    """A finding for each of several Services that want the same."""
    all_names = sorted(names)
    for name in all_names if len(all_names) > 1 else ():
        others = _names(f"{other.namespace}/{other.name}" for other in all_names if other != name)
        yield finding(id, service(name), field, f"{where} is also asked for by {others}; only one of them gets it")


# ---------------------------------------------------------------- Services that nobody can reach


def _endpoints(cluster: Cluster) -> Iterator[Finding]:
    for name, plans in cluster.served.items():
        slices = cluster.slices_of(name)
        if not any(piece.addresses for piece in slices):
            yield finding("no-endpoints", service(name), "", "it has no endpoints: connections are refused")
            continue
        families = {piece.family for piece in slices if piece.addresses}
        for family in sorted({plan.family for plan in plans} - families):
            message = f"it has no {family} endpoints: connections to its {family} addresses are refused"
            yield finding("family-without-endpoints", service(name), "", message)
        for plan in plans:
            if plan.family in families:
                yield from _of_port(cluster, plan)


def _of_port(cluster: Cluster, plan: ServicePlan) -> Iterator[Finding]:
    found = cluster.candidates(plan)
    subject, field = service(_owner(plan)), _port(plan.key)
    if not found:
        there = {
            f"{name or '(no name)'}/{protocol}"
            for piece in cluster.slices_of(_owner(plan))
            for name, protocol, _ in piece.ports
        }
        wanted = f"{plan.key.port or '(no name)'}/{plan.protocol}"
        have = f"they have {_names(sorted(there))}" if there else "they have no ports"
        yield finding(
            "port-mismatch", subject, field, f"no EndpointSlice has a port {wanted}; {have}: connections are refused"
        )
    elif not any(_serves(each.address) for each in found):
        message = f"none of its {len(found)} {plan.family} endpoints is ready: connections are refused"
        yield finding("no-ready-endpoints", subject, field, message)


def _serves(address: SliceAddress) -> bool:
    return address.ready or (address.serving and address.terminating)


def _local_policy(cluster: Cluster) -> Iterator[Finding]:
    for plans in cluster.served.values():
        for plan in plans:
            external = plan.external_local and plan.externally_accessible
            if not (plan.internal_local or external):
                continue
            found = cluster.candidates(plan)
            empty = [node.name for node in cluster.known_nodes if not _local(found, node.name)]
            if not empty or not any(_serves(each.address) for each in found):
                continue
            where = f"{len(empty)} of {len(cluster.known_nodes)} nodes ({_names(empty)})"
            if plan.internal_local:
                message = f"{where} have no {plan.family} endpoint: connections from there are dropped"
                yield finding("local-policy-empty-nodes", service(_owner(plan)), "spec.internalTrafficPolicy", message)
            if external and not plan.health_check_node_port:
                message = f"{where} have no {plan.family} endpoint: connections that arrive there are dropped"
                yield finding("local-policy-empty-nodes", service(_owner(plan)), "spec.externalTrafficPolicy", message)


def _local(found: Sequence[Candidate], node: str) -> bool:
    return any(each.address.node == node and _serves(each.address) for each in found)


def _hints(cluster: Cluster) -> Iterator[Finding]:
    for plans in cluster.served.values():
        for plan in plans:
            if not plan.internal_local or plan.externally_accessible:
                yield from _hints_of(cluster, plan)


def _hints_of(cluster: Cluster, plan: ServicePlan) -> Iterator[Finding]:
    found = cluster.candidates(plan)
    ready = [each for each in found if each.address.ready]
    hinted = [each for each in ready if each.address.zone_hints or each.address.node_hints]
    subject, field = service(_owner(plan)), _port(plan.key)
    if hinted and len(hinted) < len(ready):
        message = f"{len(ready) - len(hinted)} of {len(ready)} ready {plan.family} endpoints have no hint"
        yield finding("hints-ignored", subject, field, f"{message}: all hints are ignored")
    named = {zone for each in ready for zone in each.address.zone_hints}
    zones = {node.zone for node in cluster.known_nodes if node.zone} or named
    for zone in sorted(zones & named) if len(ready) > 1 else ():
        chosen = choose(found, True, False, "", zone).cluster
        if len(chosen) == 1:
            message = f"in zone {zone} all connections go to {chosen[0]}, one of {len(ready)} ready endpoints"
            yield finding("one-endpoint-for-zone", subject, field, message)


# ---------------------------------------------------------------- fields


def _open_family(cluster: Cluster) -> Iterator[Finding]:
    for name, plans in cluster.served.items():
        restricted = any(plan.restricts_sources for plan in plans)
        for family in sorted({p.family for p in plans if p.load_balancer_ips and not p.restricts_sources}):
            if restricted:
                message = f"it has no {family} range, so everybody may use the load balancer's {family} addresses"
                yield finding("source-ranges-leave-family-open", service(name), RANGES, message)


class _Unused(NamedTuple):
    """A field that only has an effect under a condition. set: whether it has a value. used: the condition."""

    field: str
    set: Callable[[ServiceSpec], bool]
    used: Callable[[ServiceSpec], bool]
    depends: str


def _is_external(spec: ServiceSpec) -> bool:
    return spec.type in ("NodePort", "LoadBalancer") or bool(spec.external_ips)


def _is_headless(spec: ServiceSpec) -> bool:
    return spec.cluster_ip == "None"


_UNUSED = (
    _Unused(
        RANGES,
        lambda s: bool(s.load_balancer_source_ranges),
        lambda s: s.type == "LoadBalancer",
        "the type is LoadBalancer",
    ),
    _Unused(
        "spec.externalTrafficPolicy",
        lambda s: s.external_traffic_policy == "Local",
        _is_external,
        "the type is NodePort or LoadBalancer, or there are externalIPs",
    ),
    _Unused(
        "spec.healthCheckNodePort",
        lambda s: bool(s.health_check_node_port),
        lambda s: s.type == "LoadBalancer" and s.external_traffic_policy == "Local",
        "the type is LoadBalancer and externalTrafficPolicy is Local",
    ),
    _Unused(
        "spec.sessionAffinityConfig",
        lambda s: s.session_affinity_config is not None,
        lambda s: s.session_affinity == "ClientIP",
        "sessionAffinity is ClientIP",
    ),
    _Unused(
        "spec.sessionAffinity",
        lambda s: s.session_affinity == "ClientIP",
        lambda s: not _is_headless(s),
        "there is a cluster IP: clients of a headless Service choose an endpoint themselves",
    ),
    _Unused(
        "spec.externalIPs",
        lambda s: bool(s.external_ips),
        lambda s: not _is_headless(s) and s.type != "ExternalName",
        "there is a cluster IP",
    ),
)


def _unused_fields(cluster: Cluster) -> Iterator[Finding]:
    for item in cluster.services:
        spec = item.spec or ServiceSpec()
        for row in _UNUSED:
            if row.set(spec) and not row.used(spec):
                yield finding("unused-field", subject_of(item), row.field, f"it has an effect only if {row.depends}")


def _slices(cluster: Cluster) -> Iterator[Finding]:
    for item in cluster.slices:
        owner = owner_of(item)
        if owner is None:
            message = "it has no label kubernetes.io/service-name: its endpoints serve no Service"
            yield finding("slice-without-service", subject_of(item), "metadata.labels", message)
        elif owner not in cluster.service_names:
            message = f"there is no Service {owner.namespace}/{owner.name}"
            yield finding("slice-without-service", subject_of(item), "metadata.labels", message)


def _copies(cluster: Cluster) -> Iterator[Finding]:
    for name, plans in cluster.served.items():
        slices = cluster.slices_of(name)
        for plan in plans if len(slices) > 1 else ():
            seen: dict[tuple[str, int], set[tuple[bool, bool, bool]]] = {}
            for piece in slices:
                numbers = [n for port, protocol, n in piece.ports if (port, protocol) == (plan.key.port, plan.protocol)]
                for address in piece.addresses if piece.family is plan.family else ():
                    state = (address.ready, address.serving, address.terminating)
                    for number in numbers:
                        seen.setdefault((address.ip, number), set()).add(state)
            for (ip, number), states in seen.items():
                if len(states) > 1:
                    message = f"{address_port(ip, number)} is in it with different conditions"
                    yield finding("contradicting-copies", service(name), _port(plan.key), message)


def _legacy_addresses(cluster: Cluster) -> Iterator[Finding]:
    items: list[Service | EndpointSlice] = [*cluster.services, *cluster.slices]
    for item in items:
        for field, text in _addresses(item):
            is_range = field.startswith(RANGES)
            read = canonical_cidr(text) if is_range else canonical_ip(text)
            if read is not None and not _is_strict(text, is_range):
                message = (
                    f"{text!r} is read as {read}; from Kubernetes 1.38 on the API server refuses it in new objects"
                )
                yield finding("legacy-address", subject_of(item), field, message, f"write {read}")


def _is_strict(text: str, is_range: bool) -> bool:
    """Whether validation of KEP-4858 takes it: no leading zeros, no IPv4-mapped address, no bits beyond the prefix."""
    try:
        if is_range:
            network = ip_network(text)
            return ip_address(network.network_address).version == 4 or network.network_address.ipv4_mapped is None  # type: ignore[union-attr]
        address = ip_address(text)
    except ValueError:
        return False
    return address.version == 4 or address.ipv4_mapped is None


def _addresses(item: Service | EndpointSlice) -> Iterator[tuple[str, str]]:
    """Each address and CIDR of an object with its field."""
    if isinstance(item, EndpointSlice):
        if item.address_type != "FQDN":
            for number, endpoint in enumerate(item.endpoints or ()):
                for place, text in enumerate(endpoint.addresses or ()):
                    yield f"endpoints[{number}].addresses[{place}]", text
        return
    spec = item.spec or ServiceSpec()
    lists = (("spec.clusterIPs", spec.cluster_ips), ("spec.externalIPs", spec.external_ips))
    if spec.cluster_ip and not spec.cluster_ips:
        yield "spec.clusterIP", spec.cluster_ip
    for field, texts in (*lists, (RANGES, spec.load_balancer_source_ranges)):
        yield from ((f"{field}[{number}]", text) for number, text in enumerate(texts or ()))
    balancer = item.status.load_balancer if item.status else None
    for number, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        if ingress.ip:
            yield f"status.loadBalancer.ingress[{number}].ip", ingress.ip


# ---------------------------------------------------------------- risks


def _external_ips(cluster: Cluster) -> Iterator[Finding]:
    for item in cluster.services:
        if item.spec and item.spec.external_ips and not is_anothers(item) and name_of(item) in cluster.served:
            message = f"it takes over {_names(item.spec.external_ips)} for every pod of the cluster"
            yield finding("external-ips", subject_of(item), "spec.externalIPs", message)


def _node_addresses(cluster: Cluster) -> Iterator[Finding]:
    for name, plans in cluster.served.items():
        claimed = [(field, ip) for plan in plans for field, ip in _external_addresses(plan)]
        for field, ip in dict.fromkeys(claimed):
            if node := cluster.node_addresses.get(ip):
                yield _node_address(cluster, name, field, ip, node)


def _external_addresses(plan: ServicePlan) -> Iterator[tuple[str, str]]:
    yield from (("spec.externalIPs", ip) for ip in plan.external_ips)
    yield from (("status.loadBalancer.ingress", ip) for ip in plan.load_balancer_ips)


def _node_address(cluster: Cluster, name: ServiceName, field: str, ip: str, node: str) -> Finding:
    if cluster.mode is ProxyMode.IPVS:
        message = f"{ip} is an address of node {node}: every other node takes it for its own and cannot reach {node}"
        return finding("ipvs-node-address", service(name), field, message)
    message = f"{ip} is an address of node {node}: connections to this port of {node} go to the Service instead"
    return finding("node-address-as-external-ip", service(name), field, message)


_CHECKS: tuple[Callable[[Cluster], Iterator[Finding]], ...] = (
    _unusable,
    _unknown_checks,
    _cluster_ip_conflicts,
    _conflicts,
    _endpoints,
    _local_policy,
    _hints,
    _open_family,
    _unused_fields,
    _slices,
    _copies,
    _legacy_addresses,
    _external_ips,
    _node_addresses,
)
