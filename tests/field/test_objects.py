"""Reports about Services, EndpointSlices and Nodes, through the daemon's own path: source, state, plans, every mode."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.cli.main import main
from kproxy.cli.render import RENDERERS
from kproxy.clocks import SystemClock
from kproxy.config import defaults
from kproxy.config.fields import ProxyMode
from kproxy.containment import Containment
from kproxy.lab import links
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind
from kproxy.model.planner import candidates
from kproxy.model.plans import Family, Protocol
from kproxy.model.slices import SliceAddress, parse
from kproxy.model.state import ClusterState
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import nftables_settings
from kproxy.sources.api import ApiSource
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from kproxy.sources.manifests import ManifestSource
from kproxy.sync.node_info import LiveAddresses, NodeWatcher
from tests.fakes.apiserver import ApiServer
from tests.fakes.sinks import Mirror
from tests.model.builders import changed, deleted, service, slice_
from tests.status.nodes import OperatedNode

Json = dict[str, Any]
IPTABLES, IPVS, NFTABLES, USERSPACE = ProxyMode.IPTABLES, ProxyMode.IPVS, ProxyMode.NFTABLES, ProxyMode.USERSPACE
HOST = NodeInfo(ips=("172.30.0.11", "fd00:30::11"), addresses=("127.0.0.1", "172.30.0.11", "::1", "fd00:30::11"))
SERVICE_NAME, PROXY_NAME = "kubernetes.io/service-name", "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"
FOUR, SIX = "10.244.{n}.{k}", "fd00:244:{n}::{k}"


def a_service(*, labels: Json | None = None, ingress: Sequence[Json] = (), **spec: Any) -> Json:
    """Service r{n} with the cluster IP 10.96.30.{n}; {n} is the number of the row."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "r{n}", "namespace": "default", "labels": labels},
        "spec": {"clusterIP": "10.96.30.{n}", "ports": [{"name": "http", "port": 80}], **spec},
        "status": {"loadBalancer": {"ingress": list(ingress)}},
    }


def a_slice(*ends: Any, number: int = 1, labels: Json | None = None, **fields: Any) -> Json:
    """A slice of Service r{n}. ends: the last number of an endpoint's address, or all of an endpoint."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"r{{n}}-{number}",
            "namespace": "default",
            "labels": {SERVICE_NAME: "r{n}"} | (labels or {}),
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [end if isinstance(end, dict) else at(FOUR, end) for end in ends],
        **fields,
    }


def at(address: str, k: int, **conditions: bool) -> Json:
    return {"addresses": [address.replace("{k}", str(k))], **({"conditions": conditions} if conditions else {})}


def dying(k: int, serving: bool) -> Json:
    return at(FOUR, k, ready=False, serving=serving, terminating=True)


@dataclass(frozen=True)
class Row:
    """One report. serves: the last numbers of the endpoints that each mode programs; of 1 to 5 no others.

    shows: what each mode's rules contain besides, as regular expressions. files: only in manifests, as the API server
    would not have it so.
    """

    report: str
    objects: Sequence[Json]
    serves: tuple[int, ...]
    shows: Mapping[ProxyMode, str] = field(default_factory=dict)
    files: bool = False
    family: Family = Family.IPV4


BALANCER: Json = {"type": "LoadBalancer", "ingress": [{"ip": "203.0.113.{n}"}]}
NOBODY = {
    IPTABLES: r"KUBE-FW-\w+ -m comment --comment .{1,60}dropped by KUBE-PROXY-FIREWALL",
    NFTABLES: r"203\.0\.113\.{n} \. tcp \. 80 (comment \S+ )?: goto external-1-firewall",
    IPVS: r"add KUBE-LOAD-BALANCER-FW 203\.0\.113\.{n},tcp:80",
    USERSPACE: r"KUBE-PROXY-FIREWALL -d 203\.0\.113\.{n}/32 .*-j DROP",
}
RANGE = dict.fromkeys(ProxyMode, r"\b10\.{n}\.0\.0/16")
SIXES: Json = {"clusterIP": "fd00:96::{n}"}

ROWS = (
    Row("kubernetes#134321: the headless label on a Service with a cluster IP",
        [a_service(labels={HEADLESS: ""}), a_slice(1, 2)], (1, 2)),
    Row("the same label on an EndpointSlice",
        [a_service(), a_slice(1, labels={HEADLESS: ""}), a_slice(2, number=2)], (2,)),
    Row("kubernetes#98577: service-proxy-name on an EndpointSlice",
        [a_service(), a_slice(1, 2, labels={PROXY_NAME: "x"})], (1, 2)),
    Row("the same label on a Service", [a_service(labels={PROXY_NAME: "x"}), a_slice(1, 2)], ()),
    Row("headless by its cluster IP alone", [a_service(clusterIP="None"), a_slice(1, 2)], ()),
    Row("kubernetes#135266: of two copies that terminate the first serves",
        [a_service(), a_slice(dying(1, True), dying(1, False))], (1,)),
    Row("and the first does not", [a_service(), a_slice(dying(1, False), dying(1, True))], ()),
    Row("over two slices", [a_service(), a_slice(dying(1, True), number=1), a_slice(dying(1, False), number=2)], (1,)),
    Row("over two slices, in the order of their names",
        [a_service(), a_slice(dying(1, True), number=2), a_slice(dying(1, False), number=1)], ()),
    Row("three copies of which the second does not terminate",
        [a_service(), a_slice(dying(1, False), at(FOUR, 1, ready=True)), a_slice(dying(1, False), number=2)], (1,)),
    Row("kubernetes#126203: an IPv4-mapped source range",
        [a_service(**BALANCER, loadBalancerSourceRanges=["::ffff:10.{n}.0.0/112"]), a_slice(1)], (1,), RANGE),
    Row("leading zeros and blanks in a source range, and another that cannot be read",
        [a_service(**BALANCER, loadBalancerSourceRanges=[" 010.0{n}.0.0/016 ", "10.0.0.0"]), a_slice(1)], (1,), RANGE),
    Row("source ranges of which none can be read",
        [a_service(**BALANCER, loadBalancerSourceRanges=["10.{n}.0.0/33", ""]), a_slice(1)], (1,), NOBODY),
    Row("kubernetes#100895: addresses of old objects",
        [a_service(clusterIP=" ::ffff:10.96.30.{n}", externalIPs=["0198.051.100.{n}", "::FFFF:198.51.101.{n} "]),
         a_slice(at("::ffff:10.244.{n}.{k}", 1), at("010.244.{n}.{k} ", 2))], (1, 2),
        dict.fromkeys(ProxyMode, r"198\.51\.100\.{n}\b[^$]*198\.51\.101\.{n}\b")),
    Row("kubernetes#123954: a slice's port without a name",
        [a_service(ports=[{"port": 80}]), a_slice(1, ports=[{"port": 8080}])], (1,), files=True),
    Row("a slice's port whose name is null",
        [a_service(ports=[{"port": 80, "name": None}]), a_slice(1, ports=[{"port": 8080, "name": None}])], (1,),
        files=True),
    Row("clusterIPs without clusterIP",
        [a_service(clusterIP=None, clusterIPs=["10.96.30.{n}"]), a_slice(1)], (1,), files=True),
    Row("conditions null, node null",
        [a_service(), a_slice({**at(FOUR, 1), "conditions": None, "nodeName": None})], (1,)),
    Row("ClientIP affinity without its configuration", [a_service(sessionAffinity="ClientIP"), a_slice(1)], (1,), {
        IPTABLES: r"--comment .default/r{n}:http.* --seconds 10800",
        NFTABLES: r"update @.*dnat to 10\.244\.{n}\.1",
        IPVS: r"10\.96\.30\.{n}:80 -s rr -p 10800",
        USERSPACE: r"default/r{n}:http .*affinity 10800 s",
    }),
    Row("ClientIP affinity whose configuration is empty",
        [a_service(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": None}), a_slice(1)], (1,),
        {IPVS: r"10\.96\.30\.{n}:80 -s rr -p 10800"}),
    Row("one bad address in a slice of IPv6",
        [a_service(**SIXES), a_slice(at("fd00:::1", 1), at(SIX, 2), at(FOUR, 3), at(SIX, 4), addressType="IPv6")],
        (2, 4), family=Family.IPV6),
    Row("one bad address in a slice of IPv4",
        [a_service(), a_slice(at("10.244.{n}", 1), 2, at(SIX, 3), {"addresses": []})], (2,)),
)  # fmt: skip


def numbered(rows: Sequence[Row], source: str) -> list[Json]:
    """The objects of the rows, each with its number for {n}."""
    return [
        json.loads(json.dumps(item).replace("{n}", str(number)))
        for number, row in enumerate(rows, 11)
        for item in row.objects
        if source == "manifests" or not row.files
    ]


@dataclass
class Followed:
    """A source that is followed. put: changes objects of the cluster."""

    mirror: Mirror
    put: Callable[[Sequence[Json]], None]

    def preview(self, mode: ProxyMode) -> Preview:
        state = ClusterState("node1")
        for event in list(self.mirror.events):
            state.apply(event)
        return Preview(state, defaults.default(mode), HOST)

    def text(self, mode: ProxyMode, family: Family = Family.IPV4) -> str:
        return RENDERERS[mode](self.preview(mode), family).native


@pytest.fixture(scope="module", params=["manifests", "server"])
def source(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def followed(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    mirror, items = Mirror(), numbered(ROWS, source)
    if source == "manifests":
        folder = tmp_path_factory.mktemp("manifests")

        def write(items: Sequence[Json]) -> None:
            for item in items:
                path: Path = folder / f"{item['kind']}-{item['metadata']['name']}.yaml"
                path.with_suffix(".tmp").write_text(json.dumps(item))
                path.with_suffix(".tmp").replace(path)

        write(items)
        manifests = ManifestSource(folder, Containment(SystemClock()))
        manifests.start(mirror)
        assert mirror.wait(lambda m: m.complete)
        yield Followed(mirror, write)
        manifests.stop()
        assert manifests.join(5)
        return
    with ApiServer() as server:

        def apply(items: Sequence[Json]) -> None:
            for item in items:
                server.apply(item)

        apply(items)
        client = ApiClient(ClientSettings(master=server.url))
        api = ApiSource(client, "node1", Containment(SystemClock()))
        api.start(mirror)
        assert mirror.wait(lambda m: m.complete)
        yield Followed(mirror, apply)
        api.stop()
        assert api.join(10)
        client.close()


@pytest.fixture(scope="module")
def rules(followed: Followed) -> dict[tuple[ProxyMode, Family], str]:
    return {(mode, family): followed.text(mode, family) for mode in ProxyMode for family in Family}


@pytest.mark.parametrize(("number", "row"), list(enumerate(ROWS, 11)), ids=[row.report for row in ROWS])
def test_every_mode_programs_what_the_report_asks_for(
    rules: dict[tuple[ProxyMode, Family], str], source: str, number: int, row: Row
) -> None:
    if row.files and source == "server":
        return
    for mode in ProxyMode:
        text = rules[mode, row.family]
        address = re.escape((FOUR if row.family is Family.IPV4 else SIX).replace("{n}", str(number)))
        shown = {k for k in range(1, 6) if re.search(address.replace(r"\{k\}", str(k)) + r"\b", text)}
        assert (mode, shown) == (mode, set(row.serves))
        if pattern := row.shows.get(mode):
            assert re.search(pattern.replace("{n}", str(number)), text), (mode, pattern)


def test_the_endpoints_of_a_slice_go_with_the_label_of_its_service(followed: Followed) -> None:
    """Stale endpoints stayed with the Service that a slice had belonged to."""
    old, new, moving = ({**item, "metadata": {**item["metadata"]}} for item in (a_service(), a_service(), a_slice(1)))
    old["metadata"]["name"], new["metadata"]["name"], moving["metadata"]["name"] = "old", "new", "moving"
    old["spec"] |= {"clusterIP": "10.96.31.1"}
    new["spec"] |= {"clusterIP": "10.96.31.2"}
    moving["endpoints"] = [{"addresses": ["10.244.99.1"]}]

    def owners() -> set[str]:
        plans = followed.preview(IPTABLES).families[Family.IPV4].plans.values()
        return {plan.key.name for plan in plans if any(end.ip == "10.244.99.1" for end in plan.cluster)}

    for name in ("old", "new"):
        moving["metadata"]["labels"] = {SERVICE_NAME: name}
        followed.put([old, new, moving])
        assert followed.mirror.wait(lambda m, name=name: owners() == {name})  # type: ignore[misc]
        for mode in ProxyMode:
            assert "10.244.99.1" in followed.text(mode)


# ---------------------------------------------------------------- copies of an endpoint

CONDITIONS = ((True, True, False), (False, True, True), (False, False, True), (True, True, True), (False, False, False))


def oracle(slices: Mapping[str, Sequence[SliceAddress]]) -> SliceAddress | None:
    """The copy that counts, as the report has it written out."""
    counting: SliceAddress | None = None
    for name in sorted(slices):
        for copy in slices[name]:
            if counting is None:
                counting = copy
            elif copy.terminating:
                continue
            else:
                counting = copy
    return counting


@given(
    st.dictionaries(st.sampled_from(["a", "b", "a-10", "a-2"]), st.lists(st.sampled_from(CONDITIONS), max_size=3)),
    st.randoms(use_true_random=False),
)
def test_of_all_copies_the_one_counts_that_the_report_says(
    shapes: dict[str, list[tuple[bool, bool, bool]]], random: Any
) -> None:
    copies = {
        name: [SliceAddress("10.244.0.1", f"{name}.{i}", *shape) for i, shape in enumerate(found)]
        for name, found in shapes.items()
    }
    state = ClusterState("node1")
    names = list(copies)
    random.shuffle(names)  # the order in which they come means nothing
    for name in names:
        ends = [
            {
                "addresses": [c.ip],
                "nodeName": c.node,
                "conditions": {"ready": c.ready, "serving": c.serving, "terminating": c.terminating},
            }
            for c in copies[name]
        ]
        state.apply(changed(slice_(name, ends)))
    slices = state.slices(("default", "web"))  # type: ignore[arg-type]
    found = candidates(slices, "http", Protocol.TCP, Family.IPV4, "node1")
    assert [candidate.address for candidate in found] == [c for c in [oracle(copies)] if c]


# ---------------------------------------------------------------- what operators see


def test_who_reads_log_events_and_status_learns_that_a_load_balancer_admits_nobody() -> None:
    ingress = [{"ip": "203.0.113.1"}]
    closed = service("shut", type="LoadBalancer", ingress=ingress, loadBalancerSourceRanges=["10.0.0.0/40"])
    said = "Service default/shut: spec.loadBalancerSourceRanges: no IPv4 range can be read, so the load balancer's IPv4"
    with OperatedNode() as node:
        node.start(closed, slice_("shut-1", [{"addresses": ["10.244.0.1"]}], "shut"))
        status = node.store.status(node.health)
        assert any(said in found.reason for found in status.unusable)
        assert any(said in line.text for line in status.log)
        assert any(said in notice.note for notice in node.notices)
        (row,) = status.services.items
        assert "load balancer: admits nobody, as its source ranges cannot be read" in row.ports[0].notes
        node.step(deleted(closed))
        assert node.store.status(node.health).unusable == ()
        before = len(node.notices)
        node.step(changed(closed))
        assert len(node.notices) == before + 2, "a new object of the same name is told of anew"


def test_a_slice_of_no_service_is_somebodys_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OperatedNode() as node:
        node.start(slice_("free-1", [{"addresses": ["10.244.0.1"]}], None))
        assert (node.notices, node.store.status(node.health).unusable, node.store.status(node.health).log) == (
            [],
            (),
            (),
        )
    item = a_slice(1)
    del item["metadata"]["labels"]
    (tmp_path / "a.json").write_text(json.dumps(item))
    assert main(["render", "--node=n", "-f", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    assert parse(msgspec.convert(item, TYPES[Kind.ENDPOINT_SLICE]))[0] is None


@pytest.mark.parametrize("mode", list(ProxyMode))
def test_render_prints_what_can_be_used_beside_what_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: ProxyMode
) -> None:
    good = numbered([Row("", [a_service(), a_slice(1)], ())], "manifests")
    for name, text in {
        "good.json": json.dumps({"kind": "List", "items": good}),
        "bad.yaml": "kind: Service\nmetadata: {name: bad}\nspec: {clusterIP: 10.96.0.300, ports: [{port: 80}]}\n",
        "typo.yaml": "kind: Service\nmetadata: {name: typo}\nspec: {clusterIP: 10.96.0.3, ports: 80}\n",
        "torn.yaml": "a: [1",
    }.items():
        (tmp_path / name).write_text(text)
    assert main(["render", f"--mode={mode.value}", "--family=ipv4", "--node=n", "-f", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "10.244.11.1" in out
    assert [line.split(": ")[2:4] for line in err.splitlines()] == [
        [f"manifest {tmp_path}/torn.yaml", "line 2, column 1"],
        ["Service default/typo", "spec.ports"],
        ["Service default/bad", "spec.clusterIP"],
    ]


# ---------------------------------------------------------------- the node


@pytest.mark.root
def test_node_ports_answer_on_an_address_that_comes_later() -> None:
    """In nftables mode they answered on the addresses of the start alone."""
    if reason := unavailable(("ip",)):
        pytest.skip(reason)
    config = msgspec.structs.replace(defaults.default(NFTABLES), node_port_addresses=("192.168.0.0/16", "fd07::/64"))
    known, _ = load("node1", {})
    with closing(Namespace("later")) as space:
        links.up(space)
        live = space.call(LiveAddresses)
        watcher = NodeWatcher(config, live, SystemClock())

        def programmed() -> dict[Family, tuple[str, ...]]:
            node = space.call(watcher.current, known)
            assert node is not None
            return {f: nftables_settings(config, f, node).node_port_addresses.ips for f in Family}

        assert programmed() == {Family.IPV4: (), Family.IPV6: ()}
        space.run(["ip", "address", "add", "192.168.7.7/24", "dev", "lo"])
        space.run(["ip", "address", "add", "fd07::7/64", "dev", "lo", "nodad"])
        assert programmed() == {Family.IPV4: ("192.168.7.7",), Family.IPV6: ("fd07::7",)}
        space.run(["ip", "address", "delete", "192.168.7.7/24", "dev", "lo"])
        assert programmed() == {Family.IPV4: (), Family.IPV6: ("fd07::7",)}
        space.call(live.close)
