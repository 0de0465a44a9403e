"""Findings, and the list of the checks that make them."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

IGNORE = "lint.kproxy.io/ignore"
"""The annotation that silences checks on its object: their identifiers, separated by commas, or "all"."""


class Severity(StrEnum):
    """How bad a finding is. error: connections fail or go astray. warning: some may, or protection is missing. info:
    nothing is wrong today, or something in the object has no effect."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


class Check(NamedTuple):
    """One kind of finding. id: stable. title: what it looks for, for the docs. fix: what to do about it."""

    id: str
    severity: Severity
    title: str
    fix: str


class Finding(NamedTuple):
    """Something found in one object.

    id, severity: the check's. object: "Kind namespace/name". field: the path in the object, "" for the whole. message:
    what happens because of it. fix: what to do.
    """

    id: str
    severity: Severity
    object: str
    field: str
    message: str
    fix: str


_ERROR, _WARNING, _INFO = Severity

CHECKS = {
    check.id: check
    for check in (
        Check(
            "unusable",
            _ERROR,
            "An object, or a field of it, that a proxy cannot read and leaves out",
            "correct the field",
        ),
        # ---- conflicts
        Check(
            "cluster-ip-conflict",
            _ERROR,
            "Services with the same cluster IP and port",
            "leave clusterIP to the API server, or give each Service its own",
        ),
        Check(
            "address-conflict",
            _ERROR,
            "Services with the same external or load balancer address and port",
            "give one of them another address or port",
        ),
        Check("node-port-conflict", _ERROR, "Services with the same node port", "give one of them another nodePort"),
        Check(
            "health-check-port-conflict",
            _ERROR,
            "A health check node port that is used twice",
            "give one of them another healthCheckNodePort",
        ),
        # ---- Services that nobody can reach
        Check(
            "no-endpoints",
            _ERROR,
            "A Service without any endpoint",
            "check the selector, or create an EndpointSlice with the label kubernetes.io/service-name",
        ),
        Check(
            "no-ready-endpoints",
            _ERROR,
            "A Service whose endpoints are all not ready",
            "look why the pods are not ready: kubectl describe pod",
        ),
        Check(
            "port-mismatch",
            _ERROR,
            "A Service port that no EndpointSlice has by this name and protocol",
            "use the same name and protocol in the Service and in the EndpointSlice",
        ),
        Check(
            "family-without-endpoints",
            _WARNING,
            "A dual-stack Service with endpoints in one IP family only",
            "let the pods have addresses of both families, or set ipFamilies",
        ),
        Check(
            "local-policy-empty-nodes",
            _WARNING,
            "A traffic policy Local, and nodes without an endpoint",
            "run a pod on each of these nodes, send no traffic there, or use policy Cluster",
        ),
        Check(
            "one-endpoint-for-zone",
            _WARNING,
            "Topology hints that leave a zone one of several endpoints",
            "spread the pods over the zones, or switch the hints off",
        ),
        Check(
            "hints-ignored",
            _INFO,
            "Topology hints that have no effect, as not every endpoint has one",
            "give every ready endpoint a hint, or none",
        ),
        # ---- source ranges
        Check(
            "load-balancer-closed",
            _ERROR,
            "Source ranges of which none can be read: the load balancer's addresses admit nobody",
            "correct loadBalancerSourceRanges",
        ),
        Check(
            "source-range-ignored",
            _WARNING,
            "A source range that cannot be read",
            "write it as ADDRESS/LENGTH",
        ),
        Check(
            "source-ranges-leave-family-open",
            _WARNING,
            "Source ranges of one IP family, and load balancer addresses of the other, which everybody may use",
            "add ranges of the other family",
        ),
        # ---- fields without an effect
        Check(
            "unused-field",
            _INFO,
            "A field that has no effect beside the other fields of the Service",
            "remove it, or set the field that it depends on",
        ),
        Check(
            "slice-without-service",
            _INFO,
            "An EndpointSlice that belongs to no Service",
            "set the label kubernetes.io/service-name to the name of a Service in the same namespace",
        ),
        Check(
            "contradicting-copies",
            _WARNING,
            "An endpoint that stands in several EndpointSlices of a Service with different conditions",
            "leave it in one of them",
        ),
        # ---- what newer API servers refuse
        Check(
            "legacy-address",
            _WARNING,
            "An address that the API server refuses from Kubernetes 1.38 on (KEP-4858)",
            "write it in its canonical form",
        ),
        # ---- risks
        Check(
            "external-ips",
            _INFO,
            "externalIPs, which anybody who may create Services can use to take over addresses (CVE-2020-8554)",
            "use a Service of type LoadBalancer; Kubernetes will switch externalIPs off by default (KEP-5707)",
        ),
        Check(
            "node-address-as-external-ip",
            _WARNING,
            "An external or load balancer IP that is a node's own address",
            "use an address that no node has",
        ),
        Check(
            "ipvs-node-address",
            _ERROR,
            "In IPVS mode, an external or load balancer IP that is a node's own address",
            "use an address that no node has, or another proxy mode",
        ),
        Check(
            "unknown-check",
            _INFO,
            "An annotation lint.kproxy.io/ignore that names no check",
            "use identifiers of this list",
        ),
    )
}
"""Every check by its identifier, in the order of the docs."""


def finding(id: str, subject: str, field: str, message: str, fix: str = "") -> Finding:
    """A finding of check `id` in object `subject`; fix: what to do, where it can be said better than by the check."""
    check = CHECKS[id]
    return Finding(id, check.severity, subject, field, message, fix or check.fix)
