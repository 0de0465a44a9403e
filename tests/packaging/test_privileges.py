"""The pods as the manifests describe them work with the rights that they get, need each, and ask for no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.config.fields import ProxyMode
from kproxy.errors import CommandError
from kproxy.lab import links, probes
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import choose_backend, wait_for
from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.packaging.kustomize import build
from tests.packaging.pods import NODE, TOKEN, Pod

pytestmark = pytest.mark.root

FOLDER = Path(__file__).resolve().parents[2] / "manifests"
OVERLAYS = {mode.value: build(FOLDER / "overlays" / mode.value) for mode in ProxyMode}
KUBEADM = list(yaml.safe_load_all((Path(__file__).parent / "data" / "kubeadm.yaml").read_text()))
SECONDS = 90
GUEST_SECONDS = 240  # an emulated processor
# Of the whole machine, and so read-only in every network namespace but its first.
USUAL = (
    "net.netfilter.nf_conntrack_max",  # is not of a namespace
    "Object cannot be used",
    "no proxy mode is configured",
    "ipvs mode is deprecated",
)
in_guest = pytest.mark.ipvs_kernel


def service(name: str, **spec: Any) -> dict[str, Any]:
    port = {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}
    both = {"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00:96::5"], "ipFamilies": ["IPv4", "IPv6"]}
    spec = {"type": "NodePort", "ports": [port], **both, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def endpoint_slice(family: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"web-{family.lower()}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


CLUSTER = (
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
    },
    service("web"),
    service("bad", clusterIP="10.96.0.300", clusterIPs=["10.96.0.300"], ipFamilies=["IPv4"]),
    endpoint_slice("IPv4", "10.244.1.2"),
    endpoint_slice("IPv6", "fd00:244::2"),
)

Made = tuple[Pod, Namespace, ApiServer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    """A pod of these objects, on a node that uses this backend of iptables."""
    if reason := unavailable(("iptables-nft", "setpriv", "unshare")):
        pytest.skip(reason)
    with ExitStack() as stack:

        def pod(objects: list[dict[str, Any]], backend: str = "nft") -> Made:
            space = stack.enter_context(closing(Namespace(NODE)))
            links.up(space)
            choose_backend(space, backend)
            server = space.call(ApiServer(tls=True, tokens={TOKEN}).start)
            stack.callback(server.stop)
            for item in CLUSTER:
                server.apply(item)
            return Pod(objects, space, server, tmp_path), space, server

        yield pod


def complaints(said: str) -> list[str]:
    """Warnings and errors in a log, but for those that a namespace, or the mode, cannot do without."""
    lines = [line for line in said.splitlines() if re.match(r"[WE]\d{4} |kproxy: ", line)]
    return [line for line in lines if not any(each in line for each in USUAL)]


def works(pod: Pod, backend: str, seconds: float) -> bool:
    """It programs both families, and in the node's backend, which nobody has named to it."""
    return pod.await_outcome(seconds) and (backend == "nft" or 'backend="legacy"' in pod.said())


@pytest.mark.parametrize(
    ("mode", "backend", "seconds"),
    [
        ("iptables", "nft", SECONDS),
        ("iptables", "legacy", SECONDS),
        ("nftables", "nft", SECONDS),
        ("userspace", "nft", SECONDS),
        pytest.param("ipvs", "nft", GUEST_SECONDS, marks=in_guest),
    ],
)
def test_a_confined_pod_programs_everything_without_complaint(
    make: Callable[..., Made], mode: str, backend: str, seconds: float
) -> None:
    pod, space, _ = make(OVERLAYS[mode], backend)
    pod.init()
    pod.start()
    assert works(pod, backend, seconds), pod.said()
    (container,) = pod.spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in (container["livenessProbe"]["httpGet"], container["readinessProbe"]["httpGet"]):
        status, _, _ = space.call(probes.http_status, "127.0.0.1", ports[probe["port"]], probe["path"])
        assert status == 200, probe
    assert complaints(pod.said()) == []
    assert pod.stop() == 0


@pytest.mark.parametrize(
    ("mode", "backend", "without"),
    [
        ("nftables", "nft", "NET_ADMIN"),
        ("iptables", "nft", "NET_ADMIN"),
        ("iptables", "legacy", "NET_RAW"),
    ],
)
def test_each_capability_is_needed(make: Callable[..., Made], mode: str, backend: str, without: str) -> None:
    pod, _, _ = make(OVERLAYS[mode], backend)
    assert without in pod.spec["containers"][0]["securityContext"]["capabilities"]["add"]
    pod.init()
    pod.start(without)
    assert not works(pod, backend, SECONDS)


@in_guest
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_ipvs_modes_rules_need_net_raw_on_either_backend(backend: str) -> None:
    rule = f"iptables-{backend} -A OUTPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT".split()
    with closing(Namespace(NODE)) as space:
        space.run(["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"])
        with pytest.raises(CommandError, match="Can't open socket to ipset"):
            space.run(["setpriv", "--bounding-set", "-all,+net_admin", *rule])
        space.run(["setpriv", "--bounding-set", "-all,+net_admin,+net_raw", *rule])


def test_without_the_init_container_rules_work_and_parameters_of_the_kernel_stay(make: Callable[..., Made]) -> None:
    pod, _, _ = make(OVERLAYS["iptables"])
    pod.start()
    assert pod.await_outcome(SECONDS), pod.said()
    lost = complaints(pod.said())
    assert any("Node ports will not work on 127.0.0.1" in line for line in lost)
    assert any("nf_conntrack_tcp_timeout_established" in line for line in lost)
    assert all("Read-only file system" in line for line in lost)


def asked(server: ApiServer) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of every request that was served."""
    found = set()
    for request in server.requests:
        parts = request.path.strip("/").split("/")  # api/v1/... or apis/GROUP/VERSION/..., then [namespaces/NAME/]
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        rest = rest[2:] if rest[0] == "namespaces" and len(rest) > 2 else rest
        found.add((group, rest[0], "watch" if request.verb == "stream" else request.verb))
    return found


def granted(objects: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    (role,) = (item for item in objects if item["kind"] == "ClusterRole")
    return {
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


def test_the_role_grants_what_is_asked_for_and_nothing_else(make: Callable[..., Made]) -> None:
    """Of a server that does not stream lists, which needs the most rights."""
    pod, _, server = make(OVERLAYS["nftables"])
    server.rules = Rules(watch_lists=False)
    pod.start()
    assert pod.await_outcome(SECONDS), pod.said()
    followed = {(g, r, v) for g, r, v in granted(OVERLAYS["nftables"]) if v == "watch"}
    assert wait_for(lambda: server.events != [] and followed <= asked(server), SECONDS), asked(server)
    # A look at one object by name and a repeated Event's count are what every version of kube-proxy's role has too.
    spare = {(g, r, "get") for g, r, _ in followed} | {("events.k8s.io", "events", "patch")}
    assert granted(OVERLAYS["nftables"]) - spare == asked(server) - spare


def test_kubeadms_pod_works_with_nothing_but_another_image(make: Callable[..., Made]) -> None:
    pod, space, server = make(KUBEADM)
    pod.start()
    assert pod.await_outcome(SECONDS), pod.said()
    assert "10.244.1.2:8080" in space.run(["iptables-nft-save", "-t", "nat"])
    assert complaints(pod.said()) == []
    # kubeadm binds the account to the role system:node-proxier, which may do these things.
    followed = {("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")}
    node_proxier = {(g, r, v) for g, r in followed for v in ("list", "watch")}
    node_proxier |= {("networking.k8s.io", "servicecidrs", v) for v in ("list", "watch")}
    node_proxier |= {("events.k8s.io", "events", v) for v in ("create", "patch", "update")}
    assert asked(server) <= node_proxier
