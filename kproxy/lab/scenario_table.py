"""The table of scenarios: what traffic must meet, whatever the proxy mode. Exceptions are in kproxy.lab.differences."""

from __future__ import annotations

from dataclasses import replace

from kproxy.lab.clusters import BALANCER, CLIENT
from kproxy.lab.probes import Nothing
from kproxy.lab.scenarios import End, Port, Probe, Scenario, Seen, Via
from kproxy.model.plans import Family, Protocol

LOCAL = {"externalTrafficPolicy": "Local"}
INTERNAL_LOCAL = {"internalTrafficPolicy": "Local"}
A, B, FAR = End("a"), End("b"), End("far")
IP, PORT, LB, EXT, HOME = Via.CLUSTER_IP, Via.NODE_PORT, Via.BALANCER, Via.EXTERNAL_IP, Via.LOCALHOST
KEPT, REWRITTEN = Seen.KEPT, Seen.REWRITTEN
REFUSED, DROPPED = Nothing.REFUSED, Nothing.TIMED_OUT

_TABLE: tuple[Scenario, ...] = (
    Scenario(
        "cluster-ip",
        (A, B, FAR),
        (
            Probe("caller", IP, ("a", "b", "far"), KEPT),
            Probe("node1", IP, ("a", "b", "far")),
            Probe("client", IP, ("a", "b", "far"), REWRITTEN),
        ),
    ),
    Scenario("hairpin", (A,), (Probe("a", IP, ("a",), REWRITTEN), Probe("b", IP, ("a",), KEPT))),
    Scenario(
        "no-endpoints",
        (),
        tuple(Probe(source, IP, REFUSED) for source in ("caller", "node1", "client"))
        + tuple(Probe(source, via, REFUSED) for source in ("caller", "client") for via in (PORT, LB, EXT)),
        type="LoadBalancer",
        external_ips=True,
    ),
    Scenario(
        "no-endpoints-policy-local",
        (),
        (Probe("client", PORT, REFUSED), Probe("client", LB, REFUSED), Probe("caller", IP, REFUSED)),
        type="LoadBalancer",
        spec=LOCAL | INTERNAL_LOCAL,
    ),
    Scenario(
        "node-port",
        (A, FAR),
        (
            Probe("client", PORT, ("a", "far"), REWRITTEN),
            Probe("caller", PORT, ("a", "far"), REWRITTEN),
            Probe("node1", PORT, ("a", "far"), REWRITTEN),
            Probe("node1", HOME, ("a", "far"), REWRITTEN, families=(Family.IPV4,)),
        ),
        type="NodePort",
    ),
    Scenario(
        "node-port-local",
        (A, FAR),
        (
            Probe("client", PORT, ("a",), KEPT),
            Probe("caller", PORT, ("a", "far"), KEPT),
            Probe("node1", PORT, ("a", "far"), REWRITTEN),
            Probe("caller", IP, ("a", "far"), KEPT),
        ),
        type="NodePort",
        spec=LOCAL,
    ),
    Scenario(
        "node-port-local-elsewhere",
        (FAR,),
        (
            Probe("client", PORT, DROPPED),
            Probe("caller", PORT, ("far",), KEPT),
            Probe("node1", PORT, ("far",), REWRITTEN),
        ),
        type="NodePort",
        spec=LOCAL,
    ),
    Scenario(
        "load-balancer",
        (A, FAR),
        (
            Probe("client", LB, ("a", "far"), REWRITTEN),
            Probe("caller", LB, ("a", "far"), REWRITTEN),
            Probe("node1", LB, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
    ),
    Scenario(
        "load-balancer-local",
        (A, FAR),
        (
            Probe("client", LB, ("a",), KEPT),
            Probe("caller", LB, ("a", "far"), KEPT),
            Probe("node1", LB, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
        spec=LOCAL,
        health=200,
    ),
    Scenario(
        "load-balancer-local-elsewhere",
        (FAR,),
        (Probe("client", LB, DROPPED), Probe("caller", LB, ("far",), KEPT)),
        type="LoadBalancer",
        spec=LOCAL,
        health=503,
    ),
    Scenario(
        "source-ranges",
        (A, FAR),
        (
            Probe("client", LB, ("a", "far"), REWRITTEN),
            Probe("client-other", LB, DROPPED),
            Probe("caller", LB, DROPPED),
            Probe("client-other", PORT, ("a", "far"), REWRITTEN),
            Probe("client-other", IP, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
        spec={"loadBalancerSourceRanges": [f" {CLIENT[Family.IPV4]}/32 ", f"{CLIENT[Family.IPV6]}/128"]},
    ),
    Scenario(
        "source-ranges-that-hold-the-node",
        (A,),
        (Probe("node1", LB, ("a",), REWRITTEN), Probe("client", LB, ("a",), REWRITTEN), Probe("caller", LB, DROPPED)),
        type="LoadBalancer",
        spec={"loadBalancerSourceRanges": ["172.30.0.0/24", "fd00:30::/64"]},
    ),
    Scenario(
        "source-ranges-of-old-objects",
        (A,),
        (Probe("client", LB, ("a",), REWRITTEN), Probe("client-other", LB, DROPPED), Probe("caller", LB, DROPPED)),
        type="LoadBalancer",
        spec={
            "loadBalancerSourceRanges": [
                f" ::ffff:{CLIENT[Family.IPV4]}/128",
                f"{CLIENT[Family.IPV6].replace('fd00', '0fd00')}/0128",
                "10.0.0.0/40",
            ]
        },
    ),
    Scenario(
        "source-ranges-that-cannot-be-read",
        (A,),
        (
            Probe("client", LB, DROPPED),
            Probe("caller", LB, DROPPED),
            Probe("client", PORT, ("a",), REWRITTEN),
            Probe("client", IP, ("a",), REWRITTEN),
        ),
        type="LoadBalancer",
        spec={"loadBalancerSourceRanges": ["172.30.0.0/40"]},
    ),
    Scenario(
        "balancer-in-mode-proxy",
        (A, FAR),
        (
            Probe("caller", LB, ("balancer",), KEPT),
            Probe("node1", LB, ("balancer",)),
            Probe("client", PORT, ("a", "far"), REWRITTEN),
        ),
        type="LoadBalancer",
        ingress=tuple({"ip": BALANCER[f], "ipMode": "Proxy"} for f in Family),
    ),
    Scenario(
        "external-ip",
        (A, FAR),
        (
            Probe("client", EXT, ("a", "far"), REWRITTEN),
            Probe("caller", EXT, ("a", "far"), REWRITTEN),
            Probe("node1", EXT, ("a", "far"), REWRITTEN),
        ),
        external_ips=True,
    ),
    Scenario(
        "external-ip-local",
        (A, FAR),
        (Probe("client", EXT, ("a",), KEPT), Probe("caller", EXT, ("a", "far"), KEPT)),
        spec=LOCAL,
        external_ips=True,
    ),
    Scenario(
        "internal-local",
        (A, FAR),
        (
            Probe("caller", IP, ("a",), KEPT),
            Probe("node1", IP, ("a",)),
            Probe("client", IP, ("a",), REWRITTEN),
            Probe("client", PORT, ("a", "far"), REWRITTEN),
        ),
        type="NodePort",
        spec=INTERNAL_LOCAL,
    ),
    Scenario(
        "internal-local-elsewhere",
        (FAR,),
        (Probe("caller", IP, DROPPED), Probe("client", IP, DROPPED), Probe("client", PORT, ("far",), REWRITTEN)),
        type="NodePort",
        spec=INTERNAL_LOCAL,
    ),
    Scenario(
        "affinity",
        (A, B, FAR),
        (
            Probe("caller", IP, ("a", "b", "far"), KEPT, sticky=True),
            Probe("client", PORT, ("a", "b", "far"), REWRITTEN, sticky=True),
            Probe("client-other", PORT, ("a", "b", "far"), REWRITTEN, sticky=True),
        ),
        type="NodePort",
        spec={"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}},
    ),
    Scenario("not-ready", (A, End("b", ready=False, serving=False)), (Probe("caller", IP, ("a",), KEPT),)),
    Scenario("conditions-left-out", (End("a", ready=None), FAR), (Probe("caller", IP, ("a", "far"), KEPT),)),
    Scenario("only-not-ready", (End("b", ready=False, serving=False),), (Probe("caller", IP, REFUSED),)),
    Scenario(
        "terminating-beside-ready",
        (A, End("b", ready=False, serving=True, terminating=True)),
        (Probe("caller", IP, ("a",), KEPT),),
    ),
    Scenario(
        "only-terminating",
        (
            End("a", ready=False, serving=True, terminating=True),
            End("far", ready=False, serving=False, terminating=True),
        ),
        (Probe("caller", IP, ("a",), KEPT), Probe("client", PORT, ("a",), REWRITTEN)),
        type="NodePort",
    ),
    Scenario(
        "last-local-terminating",
        (End("a", ready=False, serving=True, terminating=True), FAR),
        (Probe("client", PORT, ("a",), KEPT), Probe("caller", IP, ("far",), KEPT)),
        type="NodePort",
        spec=LOCAL,
    ),
    Scenario(
        "two-copies-that-terminate",
        (End("a", False, True, True), End("a", False, False, True)),
        (Probe("caller", IP, ("a",), KEPT),),
    ),
    Scenario(
        "two-copies-that-terminate-in-two-slices",
        (End("a", False, False, True), End("a", False, True, True, slice=2)),
        (Probe("caller", IP, REFUSED),),
    ),
    Scenario(
        "zone-hints",
        (End("a", zone="zone-1"), End("b", zone="zone-2"), End("far", zone="zone-2")),
        (Probe("caller", IP, ("a",), KEPT), Probe("client", IP, ("a",), REWRITTEN)),
    ),
    Scenario(
        "zone-hints-missing-on-one",
        (End("a", zone="zone-1"), FAR),
        (Probe("caller", IP, ("a", "far"), KEPT),),
    ),
    Scenario(
        "zone-hints-for-other-zones",
        (End("a", zone="zone-2"), End("far", zone="zone-3")),
        (Probe("caller", IP, ("a", "far"), KEPT),),
    ),
    Scenario(
        "node-hints",
        (End("a", zone="zone-1", node="node1"), End("far", zone="zone-1", node="node2")),
        (Probe("caller", IP, ("a",), KEPT),),
    ),
    Scenario(
        "two-slices",
        (A, End("far", slice=2), End("a", slice=2)),
        (Probe("caller", IP, ("a", "far"), KEPT),),
    ),
    Scenario(
        "several-ports",
        (A, FAR),
        (Probe("caller", IP, ("a", "far"), KEPT), Probe("client", PORT, ("a", "far"), REWRITTEN)),
        type="NodePort",
        ports=(Port("web", port=80), Port("admin", port=9090, target=8081), Port("dns", Protocol.UDP, 53, 8081)),
    ),
)

SCENARIOS = tuple(replace(scenario, number=number) for number, scenario in enumerate(_TABLE, 1))
