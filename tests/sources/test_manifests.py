"""A folder of manifests, read once or followed while it changes under editors, mounts and half-written files."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kproxy.clocks import SystemClock
from kproxy.containment import Containment
from kproxy.errors import SourceError
from kproxy.model.events import Listed, Resolved
from kproxy.model.objects import EndpointSlice, Kind, Service
from kproxy.modes.preview import load
from kproxy.sources.manifests import ManifestSource, read_manifests
from tests.fakes.sinks import Mirror
from tests.sources.cluster import endpoint_slice, node, service

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.5], conditions: null}]
ports: [{port: 80}]
"""
API = WEB.replace("web", "api").replace("10.96.0.10", "10.96.0.11")


def _yaml(*items: dict[str, Any]) -> str:
    return "\n---\n".join(json.dumps(item) for item in items)


def _ip(mirror: Mirror, name: str) -> str | None:
    item = mirror.objects(Kind.SERVICE).get(name)
    return item.spec.cluster_ip if isinstance(item, Service) and item.spec else None


# ---- reading once


def test_documents_lists_and_json_are_read_and_other_kinds_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{WEB}---\n---\n{API}---\nkind: Deployment\napiVersion: apps/v1\nspec: 7\n")
    (tmp_path / "b.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [endpoint_slice("web", "10.244.0.5"), node("node1")]})
    )
    knative = "kind: Service\napiVersion: serving.knative.dev/v1\nmetadata: {name: fn}\nspec: {template: {}}\n"
    (tmp_path / "c.yml").write_text(knative)
    plain = {**service("listed"), "kind": None, "apiVersion": None}
    (tmp_path / "d.json").write_text(json.dumps({"kind": "ServiceList", "apiVersion": "v1", "items": [plain]}))
    (tmp_path / "README.txt").write_text("no manifest")
    (tmp_path / ".hidden.yaml").write_text(": : :")
    objects, problems = read_manifests([str(tmp_path)])
    assert problems == []
    names = {kind: [(o.metadata.namespace, o.metadata.name) for o in items] for kind, items in objects.items()}
    assert names == {
        Kind.SERVICE: [("default", "web"), ("default", "api"), ("default", "listed")],
        Kind.ENDPOINT_SLICE: [("default", "web-1")],
        Kind.NODE: [(None, "node1")],
        Kind.SERVICE_CIDR: [],
    }


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(WEB.encode())))
    objects, problems = read_manifests(["-"])
    assert [o.metadata.name for o in objects[Kind.SERVICE]] == ["web"]
    assert problems == []


def test_yaml_is_read_as_kubernetes_reads_it(tmp_path: Path) -> None:
    """A date stays text, and a decimal IPv6 address is no number to the base of 60."""
    (tmp_path / "a.yaml").write_text(
        "kind: Service\nmetadata: {name: web, creationTimestamp: 2026-01-02T03:04:05Z, deletionTimestamp: 2026-01-02}\n"
        "spec: {clusterIP: 10:20:30:40:50:51:52:53, ports: [{port: 0x50}]}\n"
    )
    objects, problems = read_manifests([str(tmp_path / "a.yaml")])
    (found,) = objects[Kind.SERVICE]
    assert problems == []
    assert isinstance(found, Service)
    assert found.spec
    assert (found.spec.cluster_ip, found.metadata.deletion_timestamp) == ("10:20:30:40:50:51:52:53", "2026-01-02")
    assert [p.port for p in found.spec.ports or ()] == [80]


UNUSABLE = {
    "- 1\n- 2": "manifest {file}: Expected object, got array",
    "just text": "manifest {file}: Expected object, got str",
    "metadata: {name: x}": "manifest {file}: kind: is missing",
    "kind: 7": "manifest {file}: kind: Expected str, got int",
    f"{WEB}---\n7": "manifest {file}: documents[1]: Expected object, got int",
    "kind: List\nitems: [{kind: Service}]": "manifest {file}: items[0].metadata: is missing",
    "kind: List\nitems: [{kind: Node}, 3]": "manifest {file}: items[1]: Expected object, got int",
    "kind: Service\nmetadata: {}": "manifest {file}: metadata.name: is missing",
    "kind: Service\nmetadata: {name: [x]}": "manifest {file}: metadata.name: Expected str, got array",
    WEB.replace("80", "http"): "Service default/web: spec.ports[0].port: Expected int, got str",
    WEB.replace("[{port: 80}]", "{port: 80}"): "Service default/web: spec.ports: Expected array, got object",
    WEB.replace("app: web", "app: 1"): "Service default/web: metadata.labels[...]: Expected str, got int",
    WEB.replace("v1", "v2"): "Service default/web: apiVersion: Expected v1, got v2",
    WEB.replace("Service", "service"): "manifest {file}: kind: 'service' is no kind (is Service meant?)",
    WEB.replace("spec:", "spec:\n  externalTrafficPolicy: local"): (
        "Service default/web: spec.externalTrafficPolicy: 'local' is not Cluster or Local"
    ),
    WEB.replace("spec:", "spec:\n  internalTrafficPolicy: LOCAL"): (
        "Service default/web: spec.internalTrafficPolicy: 'LOCAL' is not Cluster or Local"
    ),
    WEB.replace("spec:", "spec:\n  sessionAffinity: clientip"): (
        "Service default/web: spec.sessionAffinity: 'clientip' is not None or ClientIP"
    ),
    WEB.replace("spec:", "spec:\n  type: clusterIP"): (
        "Service default/web: spec.type: 'clusterIP' is not ClusterIP, NodePort, LoadBalancer or ExternalName"
    ),
    WEB.replace("spec:", "spec:\n  type: NodePort"): (
        "Service default/web: spec.ports[0].nodePort: is missing, and without an API server nobody allocates one"
    ),
    WEB.replace(
        "spec:", "spec:\n  ipFamilies: [ipv4]"
    ): "Service default/web: spec.ipFamilies[0]: 'ipv4' is not IPv4 or IPv6",
    WEB.replace("spec:", "spec:\n  ipFamilies: [IPv6]"): (
        "Service default/web: spec.ipFamilies[0]: is IPv6, and the cluster IP of that place is 10.96.0.10"
    ),
    WEB.replace("spec:", "spec:\n  clusterIPs: [10.96.0.11]"): (
        "Service default/web: spec.clusterIPs[0]: is '10.96.0.11' and must be spec.clusterIP, '10.96.0.10'"
    ),
    WEB.replace("spec:", "status: {loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: vip}]}}\nspec:"): (
        "Service default/web: status.loadBalancer.ingress[0].ipMode: 'vip' is not VIP or Proxy"
    ),
    WEB.replace("clusterIP", "clusterIp"): "Service default/web: spec.clusterIp: unknown field (is clusterIP meant?)",
    WEB.replace("{port: 80}", "{port: 80, node_port: 30080}"): (
        "Service default/web: spec.ports[0].node_port: unknown field (is nodePort meant?)"
    ),
    WEB.replace("  clusterIP: 10.96.0.10\n", ""): (
        "Service default/web: spec.clusterIP: is missing, and without an API server nobody allocates one"
    ),
    WEB.replace(
        "[{port: 80}]", "null"
    ): "Service default/web: spec.ports: is missing, so there is nothing to connect to",
    WEB.replace(
        "port: 80", "protocol: TCP"
    ): "Service default/web: spec.ports[0].port: None is not between 1 and 65535",
    WEB.replace(
        "port: 80", "port: 80, protocol: tcp"
    ): "Service default/web: spec.ports[0].protocol: 'tcp' is not TCP, UDP or SCTP",
    SLICE.replace("[{port: 80}]", "null"): (
        "EndpointSlice default/web-1: ports: is missing, so the endpoints serve no port of a Service"
    ),
    SLICE.replace("IPv4", "ipv4"): "EndpointSlice default/web-1: addressType: 'ipv4' is not IPv4, IPv6 or FQDN",
    SLICE.replace("addresses", "Addresses"): (
        "EndpointSlice default/web-1: endpoints[0].Addresses: unknown field (is addresses meant?)"
    ),
    "kind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: internalip, address: 10.0.0.1}]}": (
        "Node n: status.addresses[0].type: 'internalip' is not "
        "InternalIP, ExternalIP, Hostname, InternalDNS or ExternalDNS"
    ),
    "kind: ServiceCIDR\nmetadata: {name: c}\nspec: {}": "ServiceCIDR c: spec.cidrs: is missing",
    "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\nmetadata: {name: s, namespace: x}": (
        "EndpointSlice x/s: apiVersion: Expected discovery.k8s.io/v1, got discovery.k8s.io/v1beta1"
    ),
}


@pytest.mark.parametrize(("text", "line"), UNUSABLE.items(), ids=[line[:60] for line in UNUSABLE.values()])
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    found, problems = read_manifests([str(file)])
    _, more = load("node1", found)
    assert line.format(file=file) in [str(p) for p in (*problems, *more)]


@pytest.mark.parametrize(("text", "place"), [("a: [1", "line 2, column 1"), ("\tx: 1", "line 1, column 1")])
def test_the_place_of_a_yaml_error_is_named(tmp_path: Path, text: str, place: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    _, problems = read_manifests([str(file)])
    assert str(problems[0]).startswith(f"manifest {file}: {place}: ")


@pytest.mark.parametrize("text", ['{"kind": "Service",', '{"kind": 1e999999}', '{"a": "\xff"', "[" * 100_000])
def test_broken_json_is_one_line_too(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="latin-1")
    _, problems = read_manifests([str(file)])
    assert len(problems) == 1
    assert str(problems[0]).startswith(f"manifest {file}: ")


@pytest.mark.parametrize("text", [WEB, SLICE, SLICE.replace("[{port: 80}]", "null").replace("[{addr", "null #")])
def test_nothing_is_said_of_what_is_in_order(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    found, problems = read_manifests([str(tmp_path)])
    assert (problems, load("node1", found)[1]) == ([], [])


def _doubled(levels: int, line: str) -> str:
    """LEVELS lines, each with the anchor before it, which stands for the line before."""
    return "a0: &a0 {k: x}\n" + "".join(line.format(n=n, b=n - 1) for n in range(1, levels))


@pytest.mark.parametrize(
    "text",
    [
        _doubled(25, "a{n}: &a{n} [*a{b}, *a{b}]\n"),
        _doubled(25, "a{n}: &a{n} {{<<: [*a{b}, *a{b}], k{n}: 1}}\n"),
        "a: &a [*a]\n",
        "---\n".join([_doubled(16, "a{n}: &a{n} [*a{b}, *a{b}]\n")] * 20),
    ],
    ids=["lists", "merged", "of itself", "many documents"],
)
def test_aliases_that_stand_for_too_much_are_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    (problem,) = read_manifests([str(file)])[1]
    assert problem.field.startswith("line ")
    assert problem.reason == "has aliases that repeat more than 1000000 values"
    assert "\n" not in str(problem)


@pytest.mark.parametrize("text", ["[" * 50_000, "- " * 50_000, "[\n" * 50_000, "{a: " * 50_000, '["]", ' * 50_000])
def test_absurd_nesting_is_refused_and_not_a_crash(tmp_path: Path, text: str) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text(text)
    _, problems = read_manifests([str(file)])
    assert [str(p).partition(": ")[2] for p in problems] == ["is nested too deeply"]


def test_a_long_list_on_one_line_is_not_deep(tmp_path: Path) -> None:
    items = ", ".join(f"{{kind: Node, metadata: {{name: s{n}}}}}" for n in range(3000))
    (tmp_path / "long.yaml").write_text(f"kind: List\nitems: [{items}]")
    objects, problems = read_manifests([str(tmp_path)])
    assert (len(objects[Kind.NODE]), problems) == (3000, [])


def test_a_broken_file_leaves_the_others_readable(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "good.yaml").write_text(WEB)
    objects, problems = read_manifests([str(tmp_path), str(tmp_path / "missing.yaml")])
    assert [o.metadata.name for o in objects[Kind.SERVICE]] == ["web"]
    assert len(problems) == 2
    assert str(problems[1]) == f"manifest {tmp_path}/missing.yaml: cannot be read: No such file or directory"


def test_an_object_in_two_files_is_the_one_of_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "b.yaml").write_text(WEB.replace("10.96.0.10", "10.96.0.99"))
    (tmp_path / "a.yaml").write_text(WEB)
    objects, _ = read_manifests([str(tmp_path)])
    (found,) = objects[Kind.SERVICE]
    assert isinstance(found, Service)
    assert found.spec
    assert found.spec.cluster_ip == "10.96.0.99"
    (line,) = caplog.records
    shown = {"kind": "Service", "object": "default/web", "first": f"{tmp_path}/a.yaml", "used": f"{tmp_path}/b.yaml"}
    assert getattr(line, "fields", {}) == shown


# ---- following

Watch = Callable[..., Mirror]


@pytest.fixture
def watch() -> Iterator[Watch]:
    sources: list[ManifestSource] = []

    def start(*paths: Path) -> Mirror:
        mirror, source = Mirror(), ManifestSource(paths, Containment(SystemClock()))
        source.start(mirror)
        sources.append(source)
        assert mirror.wait(lambda m: m.complete)
        return mirror

    yield start
    for source in sources:
        source.stop()
        assert source.join(5), "the thread did not end"


def _replace(path: Path, text: str) -> None:
    """As editors write: a new file takes the place of the old one."""
    spare = path.with_name(f".{path.name}.tmp")
    spare.write_text(text)
    spare.replace(path)


@pytest.mark.parametrize("write", [_replace, Path.write_text], ids=["renamed into place", "written over"])
def test_changes_of_files_arrive(tmp_path: Path, watch: Watch, write: Callable[[Path, str], object]) -> None:
    file = tmp_path / "web.yaml"
    write(file, WEB)
    mirror = watch(tmp_path)
    assert _ip(mirror, "default/web") == "10.96.0.10"
    write(file, WEB.replace("10.96.0.10", "10.96.0.20"))
    assert mirror.wait(lambda m: _ip(m, "default/web") == "10.96.0.20")
    write(tmp_path / "api.yaml", API)
    assert mirror.wait(lambda m: _ip(m, "default/api") == "10.96.0.11")
    write(file, WEB.replace("web", "renamed"))
    assert mirror.wait(lambda m: set(m.objects(Kind.SERVICE)) == {"default/api", "default/renamed"})
    (tmp_path / "api.yaml").unlink()
    assert mirror.wait(lambda m: set(m.objects(Kind.SERVICE)) == {"default/renamed"})
    assert [mirror.lists(kind) for kind in Kind] == [1, 1, 1, 1]
    assert not mirror.problems


def test_only_what_differs_is_told(tmp_path: Path, watch: Watch) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service("web"), service("api"), endpoint_slice("web", "10.244.0.5")))
    mirror = watch(tmp_path)
    before = len(mirror.events)
    _replace(file, _yaml(service("web"), service("api"), endpoint_slice("web", "10.244.0.6")))
    assert mirror.wait(lambda m: len(m.events) > before)
    _replace(tmp_path / "more.yaml", _yaml(service("more")))
    assert mirror.wait(lambda m: "default/more" in m.objects(Kind.SERVICE))
    changed = mirror.objects(Kind.ENDPOINT_SLICE)["default/web-1"]
    assert isinstance(changed, EndpointSlice)
    assert [e.addresses for e in changed.endpoints or ()] == [["10.244.0.6"]]
    assert len(mirror.events) == before + 2


def test_a_half_written_file_changes_nothing_and_is_told_once(tmp_path: Path, watch: Watch) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(WEB)
    mirror = watch(tmp_path)
    for text in ("kind: Service\nmetadata: {na", "kind: Service\nmetadata: {nam"):
        _replace(file, text)
        assert mirror.wait(lambda m: bool(m.problems))
    _replace(tmp_path / "api.yaml", API)
    assert mirror.wait(lambda m: set(m.objects(Kind.SERVICE)) == {"default/web", "default/api"})
    assert {(p.kind, p.name) for p in mirror.problems} == {("manifest", str(file))}
    assert len({str(p) for p in mirror.problems}) == len(mirror.problems)
    _replace(file, WEB.replace("10.96.0.10", "10.96.0.20"))
    assert mirror.wait(lambda m: _ip(m, "default/web") == "10.96.0.20")


def test_a_broken_object_keeps_its_last_good_state(tmp_path: Path, watch: Watch) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(f"{WEB}---\n{API}")
    mirror = watch(tmp_path)
    _replace(file, f"{WEB.replace('80', 'http')}---\n{API.replace('10.96.0.11', '10.96.0.12')}")
    assert mirror.wait(lambda m: _ip(m, "default/api") == "10.96.0.12" and bool(m.problems))
    assert _ip(mirror, "default/web") == "10.96.0.10"
    assert [str(p) for p in mirror.problems] == ["Service default/web: spec.ports[0].port: Expected int, got str"]
    assert Resolved("Service", "default/web") not in mirror.events
    _replace(file, f"{WEB}---\n{API}")
    assert mirror.wait(lambda m: Resolved("Service", "default/web") in m.events), "although the object is as it was"
    _replace(file, "a: [1")
    assert mirror.wait(lambda m: len(m.problems) == 2)
    file.unlink()
    assert mirror.wait(lambda m: Resolved("manifest", str(file)) in m.events)
    assert not mirror.objects(Kind.SERVICE)


def test_what_is_broken_from_the_start_is_listed_as_unreadable(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a.yaml").write_text(WEB.replace("80", "http"))
    (tmp_path / "b.yaml").write_text("a: [1")
    (tmp_path / "c.yaml").write_text(API)
    mirror = watch(tmp_path)
    assert mirror.wait(lambda m: set(m.objects(Kind.SERVICE)) == {"default/api"})
    listed = next(e for e in mirror.events if isinstance(e, Listed) and e.kind is Kind.SERVICE)
    assert listed.unreadable == {"default/web"}
    assert len(mirror.problems) == 2


def test_a_single_file_is_followed(tmp_path: Path, watch: Watch) -> None:
    file = tmp_path / "cluster"  # a file that is named may be called anything
    file.write_text(WEB)
    (tmp_path / "other.yaml").write_text(API)
    mirror = watch(file)
    _replace(file, WEB.replace("10.96.0.10", "10.96.0.20"))
    assert mirror.wait(lambda m: _ip(m, "default/web") == "10.96.0.20")
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web"}


def test_a_folder_that_vanishes_changes_nothing_until_it_is_back(tmp_path: Path, watch: Watch) -> None:
    folder, away = tmp_path / "manifests", tmp_path / "away"
    folder.mkdir()
    (folder / "web.yaml").write_text(WEB)
    mirror = watch(folder)
    folder.rename(away)
    assert mirror.wait(lambda m: bool(m.problems))
    assert str(mirror.problems[0]) == f"manifest {folder}: cannot be read: No such file or directory"
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web"}
    (away / "api.yaml").write_text(API)
    away.rename(folder)
    assert mirror.wait(lambda m: set(m.objects(Kind.SERVICE)) == {"default/web", "default/api"}, 20)
    assert len(mirror.problems) == 1


def test_the_object_of_a_file_that_goes_comes_back_from_another(
    tmp_path: Path, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.yaml").write_text(WEB)
    (tmp_path / "b.yaml").write_text(WEB.replace("10.96.0.10", "10.96.0.20"))
    with caplog.at_level(logging.WARNING, "kproxy.source"):
        mirror = watch(tmp_path)
        assert _ip(mirror, "default/web") == "10.96.0.20"
        _replace(tmp_path / "c.yaml", API)
        assert mirror.wait(lambda m: _ip(m, "default/api") == "10.96.0.11")
    assert len(caplog.records) == 1, "it is said once"
    (tmp_path / "b.yaml").unlink()
    assert mirror.wait(lambda m: _ip(m, "default/web") == "10.96.0.10")


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read: No such file or directory"):
        ManifestSource([tmp_path / "missing"], Containment(SystemClock())).start(Mirror())
