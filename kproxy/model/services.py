"""Turns a Service into plans without endpoints.

Decides which Services kproxy handles, their addresses and node ports, and their policies. Problems of a Service never
raise: they are returned next to whatever can still be programmed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from kproxy.errors import InvalidObject
from kproxy.model import objects
from kproxy.model.addresses import canonical_cidr, canonical_ip
from kproxy.model.node_info import family_of
from kproxy.model.plans import PROTOCOLS, Family, PortKey, ServicePlan

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
"""Services with this label are another proxy's; on an EndpointSlice it means nothing."""
DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400

# Looser than the API's own rule, which has changed over time; strict enough for a name to be safe in rules and logs.
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")


def unusable_name(name: str) -> str | None:
    """Why NAME must not be used in a rule, or None when it may."""
    if _NAME.fullmatch(name):
        return None
    return f"{name!r} is not a valid name: letters, digits, '-', '_' and '.' only, at most 253"


def parse_cidrs(source: objects.ServiceCIDR) -> tuple[tuple[str, ...], list[InvalidObject]]:
    """The CIDRs of a ServiceCIDR in canonical text, and what is wrong with the others."""
    texts = (source.spec.cidrs if source.spec else None) or ()
    cidrs = [canonical_cidr(text) for text in texts]
    problems = [
        InvalidObject("ServiceCIDR", source.metadata.name, f"spec.cidrs[{i}]", f"{text!r} is not a CIDR")
        for i, text in enumerate(texts)
        if cidrs[i] is None
    ]
    return tuple([cidr for cidr in cidrs if cidr is not None]), problems


def parse(service: objects.Service) -> tuple[tuple[ServicePlan, ...], list[InvalidObject]]:
    """The plans of a Service, still without endpoints, in both families; and what is wrong with it.

    Headless and ExternalName Services, and those of another proxy, have none.
    """
    meta, spec = service.metadata, service.spec or objects.ServiceSpec()
    if PROXY_NAME_LABEL in (meta.labels or {}) or spec.type == "ExternalName" or spec.cluster_ip in (None, "", "None"):
        return (), []
    reader = _Reader(service, spec)
    return tuple(reader.plans()), reader.problems


class _Reader:
    """Reads one Service and collects its problems."""

    def __init__(self, service: objects.Service, spec: objects.ServiceSpec) -> None:
        self.problems: list[InvalidObject] = []
        self._spec = spec
        self._namespace, self._service_name = service.metadata.namespace or "default", service.metadata.name
        status = service.status and service.status.load_balancer
        self._ingress = (status.ingress if status else None) or []

    def plans(self) -> Iterator[ServicePlan]:
        for field, name in (("metadata.name", self._service_name), ("metadata.namespace", self._namespace)):
            if why := unusable_name(name):
                self._problem(field, why)
                return
        cluster_ips = self._cluster_ips()
        if not cluster_ips:
            return
        spec = self._spec
        external_ips = self._addresses("spec.externalIPs", spec.external_ips or ())
        ingress = [(f"status.loadBalancer.ingress[{i}].ip", g.ip) for i, g in enumerate(self._ingress) if _is_vip(g)]
        balancers = [ip for field, text in ingress if text for ip in self._address(field, text)]
        ranges, closed = self._ranges(cluster_ips)
        accessible = spec.type in ("NodePort", "LoadBalancer") or bool(spec.external_ips)
        external_local = accessible and spec.external_traffic_policy == "Local"
        internal_local = spec.internal_traffic_policy == "Local"
        check = self._health_check_node_port(external_local)
        affinity = self._affinity()
        for key, port, node_port in self._ports():
            for family, cluster_ip in cluster_ips.items():
                yield ServicePlan(
                    key=key,
                    family=family,
                    cluster_ip=cluster_ip,
                    port=port,
                    node_port=node_port,
                    external_ips=_of_family(family, external_ips),
                    load_balancer_ips=_of_family(family, balancers),
                    source_ranges=_restricting(_of_family(family, ranges)),
                    admits_nobody=family in closed,
                    affinity_seconds=affinity,
                    internal_local=internal_local,
                    external_local=external_local,
                    health_check_node_port=check,
                )

    def _cluster_ips(self) -> dict[Family, str]:
        """The first cluster IP of each family."""
        found: dict[Family, str] = {}
        if not self._spec.cluster_ips:
            ips = list(self._address("spec.clusterIP", self._spec.cluster_ip or ""))
        else:
            ips = self._addresses("spec.clusterIPs", self._spec.cluster_ips)
        for ip in ips:
            found.setdefault(family_of(ip), ip)
        return found

    def _ports(self) -> Iterator[tuple[PortKey, int, int]]:
        """Key, port and node port of each usable port."""
        seen = set()
        for i, port in enumerate(self._spec.ports or ()):
            at, name = f"spec.ports[{i}]", port.name or ""
            protocol = PROTOCOLS.get(port.protocol or "TCP")
            if protocol is None:
                self._problem(f"{at}.protocol", f"{port.protocol!r} is not TCP, UDP or SCTP")
                continue
            key = PortKey(self._namespace, self._service_name, name, protocol)
            if name and (why := unusable_name(name)):
                self._problem(f"{at}.name", why)
            elif not 0 < (port.port or 0) < 65536:
                self._problem(f"{at}.port", f"{port.port} is not between 1 and 65535")
            elif key in seen:
                self._problem(at, f"a second port of name {name!r} and protocol {protocol}")
            else:
                seen.add(key)
                yield key, port.port or 0, self._node_port(f"{at}.nodePort", port.node_port)

    def _node_port(self, field: str, port: int | None) -> int:
        if 0 <= (port or 0) < 65536:
            return port or 0
        self._problem(field, f"{port} is not between 0 and 65535")
        return 0

    def _health_check_node_port(self, external_local: bool) -> int:
        if self._spec.type != "LoadBalancer" or not external_local:
            return 0
        return self._node_port("spec.healthCheckNodePort", self._spec.health_check_node_port)

    def _affinity(self) -> int:
        if self._spec.session_affinity != "ClientIP":
            return 0
        config = self._spec.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
        if seconds is None:
            return DEFAULT_AFFINITY_SECONDS
        if 0 < seconds <= MAX_AFFINITY_SECONDS:
            return seconds
        self._problem("spec.sessionAffinityConfig.clientIP.timeoutSeconds", f"{seconds} is not between 1 and 86400")
        return DEFAULT_AFFINITY_SECONDS

    def _ranges(self, families: Iterable[Family]) -> tuple[list[str], list[Family]]:
        """The source ranges that can be read, and those of FAMILIES whose load balancer IPs admit nobody.

        A range that cannot be read may have been meant for either family. One that is left with none is closed: to
        leave the range out would open to everybody what somebody meant to restrict.
        """
        field, texts = "spec.loadBalancerSourceRanges", self._spec.load_balancer_source_ranges or ()
        cidrs = [canonical_cidr(text) for text in texts]
        ranges = [cidr for cidr in cidrs if cidr is not None]
        for i, text in enumerate(texts):
            if cidrs[i] is None:
                self._problem(f"{field}[{i}]", f"{text!r} is not a CIDR")
        closed = [f for f in families if len(ranges) < len(cidrs) and not _of_family(f, ranges)]
        if closed:
            names = " and ".join(closed)
            self._problem(field, f"no {names} range can be read, so the load balancer's {names} addresses admit nobody")
        return ranges, closed

    def _addresses(self, field: str, texts: Iterable[str]) -> list[str]:
        return [ip for i, text in enumerate(texts) for ip in self._address(f"{field}[{i}]", text)] if texts else []

    def _address(self, field: str, text: str) -> Iterator[str]:
        ip = canonical_ip(text)
        if ip is None:
            self._problem(field, f"{text!r} is not an IP address")
        else:
            yield ip

    def _problem(self, field: str, reason: str) -> None:
        self.problems.append(InvalidObject("Service", f"{self._namespace}/{self._service_name}", field, reason))


def _restricting(ranges: tuple[str, ...]) -> tuple[str, ...]:
    """RANGES, or none when one of them is the whole address space and so restricts nothing."""
    return () if ranges and any(r.endswith("/0") for r in ranges) else ranges


def _is_vip(ingress: objects.LoadBalancerIngress) -> bool:
    """Whether nodes serve the address; with ipMode Proxy traffic has to pass the load balancer itself (KEP-1860)."""
    return (ingress.ip_mode or "VIP") == "VIP"


def _of_family(family: Family, texts: list[str]) -> tuple[str, ...]:
    """The addresses or CIDRs of FAMILY among TEXTS, each once, in their order."""
    return tuple(dict.fromkeys(t for t in texts if family_of(t) is family)) if texts else ()
