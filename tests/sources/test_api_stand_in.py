"""The stand-in keeps the promises of an API server that clients build on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import urllib3

from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.fakes.apistatus import Refusal
from tests.fakes.apistore import Selection, Store
from tests.sources.cluster import EVENT, EVENTS, eventually, node, service


def _store(history: int = 1000) -> Store:
    return Store(history, lambda kind: None)


SELECTORS = [
    ("", True),
    ("app", True),
    ("!app", False),
    ("app=web", True),
    ("app==web,tier!=back", True),
    ("app=web,tier=back", False),
    ("tier in (front, middle)", True),
    ("tier notin (front)", False),
    ("other notin (front)", True),
    ("other!=x", True),
    ("!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless", True),
    ("! tier", False),
    ("size>4", True),
    ("size > 5", False),
    ("size<6,!absent", True),
    ("absent>1", False),
]


@pytest.mark.parametrize(("selector", "taken"), SELECTORS)
def test_label_selectors(selector: str, taken: bool) -> None:
    store = _store()
    store.put(service("web", tier="front", size="5"))
    assert bool(store.objects(Selection("Service", labels=selector))[1]) is taken


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"fields": "metadata.name=web"}, ["default/web", "shop/web"]),
        ({"fields": "metadata.name==web,metadata.namespace!=shop"}, ["default/web"]),
        ({"fields": "spec.clusterIP!=None"}, ["default/web", "shop/web"]),
        ({"fields": "spec.type=,metadata.namespace=shop"}, ["shop/api", "shop/web"]),
        ({"namespace": "shop"}, ["shop/api", "shop/web"]),
    ],
)
def test_field_selectors_and_namespaces(wanted: dict[str, str], names: list[str]) -> None:
    store = _store()
    for item in (service("web"), service("web", "shop"), service("api", "shop", "None")):
        store.put(item)
    found = store.objects(Selection("Service", **wanted))[1]
    assert [f"{item.namespace}/{item.name}" for item in found] == names


@pytest.mark.parametrize(
    "query",
    [
        *[
            f"labelSelector={each}"
            for each in ("a%20b", "=x", "a%20in%20(", "(", "a=1,,b", "a=(1)", "a%20in%20b", "a>x")
        ],
        *["labelSelector=a=-x", "labelSelector=a,", "fieldSelector=spec.ports=1", "fieldSelector=metadata.name"],
        "resourceVersion=x",
    ],
)
@pytest.mark.parametrize("watch", ["", "&watch=true"])
def test_a_selector_that_cannot_be_read_is_refused(api: Api, query: str, watch: str) -> None:
    status, said = api.ask("GET", f"/api/v1/services?{query}{watch}")
    assert (status, said["reason"]) == (400, "BadRequest")


def test_pages_are_a_snapshot_until_it_is_forgotten() -> None:
    store = _store()
    for name in "abcde":
        store.put(service(name))
    version, items, token, left = store.page(Selection("Service"), 2, "")
    assert ([item.name for item in items], left) == (["a", "b"], 3)
    store.remove("Service", "default", "c")
    store.put(service("aa"))
    again, items, token, left = store.page(Selection("Service"), 2, token)
    assert ([item.name for item in items], left, again) == (["c", "d"], 1, version)
    assert [item.name for item in store.page(Selection("Service"), 2, token)[1]] == ["e"]
    store.compact()
    with pytest.raises(Refusal, match="too old"):
        store.page(Selection("Service"), 2, token)


def test_what_happened_is_told_through_the_selection() -> None:
    store, ours = _store(), Selection("Service", labels="!foreign")
    start = store.put(service("web")).version
    store.put(service("web", ip="10.96.0.2"))
    store.put(service("web", foreign=""))
    store.put(service("web", foreign="", ip="10.96.0.3"))
    store.put(service("web"))
    store.remove("Service", "default", "web")
    store.put(node("node1"))
    now, events = store.since(ours, start)
    assert [kind for kind, _ in events] == ["MODIFIED", "DELETED", "ADDED", "DELETED"]
    versions = [item.version for _, item in events]
    assert versions == sorted(set(versions))
    assert versions[-1] < now == store.version
    assert all(json.loads(item.body)["metadata"]["resourceVersion"] == str(item.version) for _, item in events)
    assert store.since(ours, now) == (now, [])


def test_history_is_bounded_and_says_so() -> None:
    store = _store(history=5)
    first = store.put(service("web")).version
    for _ in range(20):
        last = store.put(service("web")).version
    with pytest.raises(Refusal, match="too old"):
        store.since(Selection("Service"), first)
    assert len(store.since(Selection("Service"), last - 3)[1]) == 3


def test_a_namespace_takes_its_objects_along() -> None:
    store = _store()
    store.put({"kind": "Namespace", "metadata": {"name": "shop"}})
    for name, namespace in (("web", "shop"), ("db", "shop"), ("web", "other")):
        store.put({"kind": "Service", "metadata": {"name": name, "namespace": namespace}})
    before = store.version
    assert store.remove("Namespace", "", "shop") is not None
    assert [(item.namespace, item.name) for item in store.objects(Selection("Service"))[1]] == [("other", "web")]
    gone = [(sort, item.name) for sort, item in store.since(Selection("Service"), before)[1]]
    assert gone == [("DELETED", "db"), ("DELETED", "web")]


@dataclass
class Api:
    """Requests to SERVER, and their answers: HTTP status and JSON."""

    server: ApiServer
    http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False))

    def ask(self, method: str, path: str, body: Any = None, sort: str = "") -> tuple[int, Any]:
        text = body if body is None or isinstance(body, bytes) else json.dumps(body)
        headers = {"Content-Type": sort} if sort else {}
        answer = self.http.request(method, f"{self.server.url}{path}", body=text, headers=headers, timeout=10)
        return answer.status, json.loads(answer.data)

    def events(self, query: str, kind: str = "services") -> list[tuple[str, str, bool]]:
        """What a watch of a second tells: type, version or name, and whether it ends the initial events."""
        url = f"{self.server.url}/api/v1/{kind}?watch=true&timeoutSeconds=1&{query}"
        lines = self.http.request("GET", url, timeout=10).data.splitlines()
        return [_told(json.loads(line)) for line in lines]


def _told(event: dict[str, Any]) -> tuple[str, str, bool]:
    metadata = event["object"]["metadata"]
    ends = (metadata.get("annotations") or {}).get("k8s.io/initial-events-end") == "true"
    what = metadata.get("name") or event["object"].get("reason") or metadata["resourceVersion"]
    return event["type"], str(what), ends


@pytest.fixture
def api(server: ApiServer) -> Iterator[Api]:
    made = Api(server)
    yield made
    made.http.clear()


SERVICES, SLICES = "/api/v1/namespaces/default/services", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
PORT = {"port": 80}


def made(name: str = "new", metadata: Any = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **(metadata or {})}, "spec": {"ports": [PORT], **spec}}


def sliced(**values: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s1"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}], **values}


# What a client does wrong: method, path, body, HTTP status, reason, and a part of the message.
REFUSED: list[tuple[str, str, Any, int, str, str]] = [
    ("POST", SERVICES, made(metadata={"resourceVersion": "1"}), 500, "", "resourceVersion should not be set"),
    ("POST", "/api/v1/nodes", {"metadata": {"name": "n", "resourceVersion": "1"}}, 500, "", "should not be set"),
    ("POST", SERVICES, made("web"), 409, "AlreadyExists", 'services "web" already exists'),
    ("POST", SERVICES, {"metadata": {}, "spec": {"ports": [PORT]}}, 422, "Invalid", "name or generateName is required"),
    ("POST", SERVICES, made("Web"), 422, "Invalid", "metadata.name: Invalid value"),
    ("POST", SERVICES, made("new", ports=[]), 422, "Invalid", 'Service "new" is invalid: spec.ports: Required value'),
    ("POST", SERVICES, made("new", ports=[PORT, PORT]), 422, "Invalid", "spec.ports[1].name: Required value"),
    ("POST", SERVICES, made("new", ports=[{}]), 422, "Invalid", "spec.ports[0].port: Invalid value"),
    ("POST", SERVICES, made("new", ports=[PORT | {"protocol": "tcp"}]), 422, "Invalid", 'Unsupported value: "tcp"'),
    ("POST", SERVICES, made("new", ports=[PORT | {"port": "http"}]), 400, "BadRequest", "cannot be handled"),
    ("POST", SERVICES, made("new", type="Cluster"), 422, "Invalid", "spec.type: Unsupported value"),
    ("POST", SERVICES, made("new", type="ExternalName"), 422, "Invalid", "spec.externalName: Required value"),
    ("POST", SERVICES, made("new", clusterIP="10.96.0.300"), 422, "Invalid", "must be a valid IP address"),
    ("POST", SERVICES, made(metadata={"namespace": "shop"}), 400, "BadRequest", "does not match the namespace sent"),
    ("POST", SERVICES, {"kind": "Node", **made()}, 400, "BadRequest", "does not match the expected one"),
    ("POST", SERVICES, b"{", 400, "BadRequest", "JSON"),
    ("POST", SERVICES, [], 400, "BadRequest", "no JSON object"),
    ("POST", SERVICES.replace("default", "no"), made(), 404, "NotFound", 'namespaces "no" not found'),
    ("POST", SLICES, sliced(addressType=None), 422, "Invalid", "addressType: Required value"),
    ("POST", SLICES, sliced(addressType="ipv4"), 422, "Invalid", "addressType: Unsupported value"),
    ("POST", SLICES, sliced(addressType="IPv6"), 422, "Invalid", "endpoints[0].addresses[0]: Invalid value"),
    ("POST", SLICES, sliced(endpoints=[{}]), 422, "Invalid", "endpoints[0].addresses: Required value"),
    ("POST", SLICES, sliced(endpoints=[{"addresses": ["10.1.0.1"]}] * 1001), 422, "Invalid", "Too many: 1001"),
    ("POST", "/apis/networking.k8s.io/v1/servicecidrs", {"metadata": {"name": "c"}}, 422, "Invalid", "spec.cidrs"),
    ("POST", EVENTS, EVENT | {"action": ""}, 422, "Invalid", 'Event.events.k8s.io "e1" is invalid: action: Required'),
    ("POST", EVENTS, EVENT | {"regarding": {"namespace": "shop"}}, 422, "Invalid", "does not match event.namespace"),
    ("POST", EVENTS, EVENT | {"type": "Bad", "note": "x" * 1025}, 422, "Invalid", "type: Invalid value"),
    ("PUT", f"{SERVICES}/web", made("web", metadata={"resourceVersion": "1"}), 409, "Conflict", "has been modified"),
    ("PUT", f"{SERVICES}/web", made("web", metadata={"uid": "x"}), 409, "Conflict", "Precondition failed: UID"),
    ("PUT", f"{SERVICES}/web", made("other"), 400, "BadRequest", "does not match the name on the URL"),
    ("PUT", f"{SERVICES}/web", made("web", clusterIP="10.96.0.99"), 422, "Invalid", "may not change once set"),
    ("PUT", f"{SERVICES}/no", made("no"), 404, "NotFound", 'services "no" not found'),
    ("PATCH", f"{SERVICES}/web", {"metadata": {"resourceVersion": "1"}}, 409, "Conflict", "has been modified"),
    ("PATCH", f"{SLICES}/web-1", {"addressType": "IPv6"}, 422, "Invalid", "addressType: Invalid value"),
    ("DELETE", f"{SLICES}/no", None, 404, "NotFound", 'endpointslices.discovery.k8s.io "no" not found'),
    ("DELETE", "/api/v1/namespaces/default", None, 403, "Forbidden", "may not be deleted"),
    ("DELETE", SERVICES, None, 405, "MethodNotAllowed", "does not allow this method"),
    ("POST", "/api/v1/services", made(), 405, "MethodNotAllowed", "does not allow this method"),
    ("POST", f"{SERVICES}/new", made(), 405, "MethodNotAllowed", "does not allow this method"),
    ("GET", "/apis/nowhere/v1/things", None, 404, "NotFound", "could not find the requested resource"),
    ("GET", f"{SERVICES}/web/status", None, 404, "NotFound", "could not find the requested resource"),
    ("GET", "/api/v1/services?resourceVersion=999999", None, 504, "Timeout", "Too large resource version"),
    ("GET", "/api/v1/services?continue=1.1", None, 410, "Expired", "continue parameter is too old"),
    ("GET", "/api/v1/services?continue=1.1&resourceVersion=5", None, 400, "BadRequest", "not allowed when using"),
    ("GET", "/api/v1/services?sendInitialEvents=true", None, 422, "Invalid", "sendInitialEvents: Forbidden"),
    ("GET", "/api/v1/services?resourceVersionMatch=Exact", None, 422, "Invalid", "unless resourceVersion is provided"),
    ("GET", "/api/v1/services?resourceVersionMatch=No&resourceVersion=1", None, 422, "Invalid", "Unsupported value"),
    ("GET", "/api/v1/services?watch=1&sendInitialEvents=true", None, 422, "Invalid", "requires setting"),
    ("GET", "/api/v1/services?watch=1&resourceVersionMatch=NotOlderThan", None, 422, "Invalid", "forbidden for watch"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "code", "reason", "message"), REFUSED)
def test_what_a_real_server_refuses(
    api: Api, method: str, path: str, body: Any, code: int, reason: str, message: str
) -> None:
    before = api.server.store.version
    status, said = api.ask(method, path, body)
    assert (status, said["kind"], said["status"], said["code"], said.get("reason", "")) == (
        code, "Status", "Failure", code, reason,
    )  # fmt: skip
    assert message in said["message"]
    assert api.server.store.version == before, "nothing may be written"


def test_a_status_names_the_object_and_each_field(api: Api) -> None:
    _, said = api.ask("POST", SLICES, sliced(addressType="", endpoints=[{}]))
    assert said["details"] == {
        "name": "s1",
        "group": "discovery.k8s.io",
        "kind": "EndpointSlice",
        "causes": [
            {"field": "addressType", "reason": "FieldValueRequired", "message": "Required value"},
            {
                "field": "endpoints[0].addresses",
                "reason": "FieldValueRequired",
                "message": "Required value: must contain at least 1 address",
            },
        ],
    }
    assert api.ask("GET", f"{SERVICES}/no")[1]["details"] == {"name": "no", "kind": "services"}


@pytest.mark.parametrize(
    ("method", "path", "sort"),
    [
        ("POST", SERVICES, "application/vnd.kubernetes.protobuf"),
        ("PATCH", f"{SERVICES}/web", "application/json-patch+json"),
        ("PATCH", f"{SERVICES}/web", "application/json"),
    ],
)
def test_a_body_in_another_form_is_refused(api: Api, method: str, path: str, sort: str) -> None:
    status, said = api.ask(method, path, {}, sort)
    assert (status, said["reason"]) == (415, "UnsupportedMediaType")


def test_a_namespace_goes_in_its_own_time_and_takes_nothing_new_meanwhile(api: Api) -> None:
    spaces, inside = "/api/v1/namespaces", "/api/v1/namespaces/shop/services"
    assert api.ask("POST", inside, made())[0] == 404
    space = {"metadata": {"name": "shop"}}
    assert [api.ask("POST", spaces, space)[0], api.ask("POST", inside, made())[0]] == [201, 201]
    api.server.rules = Rules(termination_seconds=0.5)
    status, going = api.ask("DELETE", f"{spaces}/shop")
    assert (status, going["status"]["phase"], "deletionTimestamp" in going["metadata"]) == (200, "Terminating", True)
    status, said = api.ask("POST", inside, made("late"))
    assert (status, said["reason"]) == (403, "Forbidden")
    assert said["message"].startswith('services "late" is forbidden: unable to create new content in namespace shop')
    assert said["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    status, said = api.ask("POST", spaces, space)
    assert (status, said["message"]) == (409, 'object is being deleted: namespaces "shop" already exists')
    assert api.ask("DELETE", f"{spaces}/shop")[0] == 409
    assert api.ask("GET", f"{inside}/new")[0] == 200, "what is in it goes last"
    assert eventually(lambda: api.ask("GET", f"{spaces}/shop")[0] == 404, 5)
    assert api.ask("GET", f"{inside}/new")[0] == 404
    assert api.ask("POST", spaces, space)[0] == 201


@pytest.mark.parametrize(
    ("spec", "given"),
    [({}, True), ({"clusterIP": "10.96.0.5"}, False), ({"clusterIP": "None"}, False),
     ({"type": "ExternalName", "externalName": "a.example"}, False)],
)  # fmt: skip
def test_a_service_that_comes_without_a_cluster_ip_gets_one_of_its_own(
    api: Api, spec: dict[str, Any], given: bool
) -> None:
    ips = [api.ask("POST", SERVICES, made(name, **spec))[1]["spec"].get("clusterIP") for name in ("one", "two")]
    assert ips == [spec.get("clusterIP")] * 2 if not given else len(set(ips)) == 2


def test_objects_are_made_changed_and_removed_over_http(api: Api) -> None:
    status, new = api.ask("POST", SERVICES, made("new"))
    assert (status, new["kind"], new["metadata"]["namespace"]) == (201, "Service", "default")
    assert new["metadata"].keys() >= {"uid", "creationTimestamp", "resourceVersion"}
    spec = new["spec"]
    assert spec["ports"] == [{"port": 80, "targetPort": 80, "protocol": "TCP"}]
    assert (spec["type"], spec["internalTrafficPolicy"], spec["ipFamilies"]) == ("ClusterIP", "Cluster", ["IPv4"])
    status, changed = api.ask("PUT", f"{SERVICES}/new", {**new, "spec": {**spec, "type": "NodePort"}})
    assert (status, changed["spec"]["type"]) == (200, "NodePort")
    assert api.ask("PUT", f"{SERVICES}/new", new)[0] == 409, "it is not what the client saw"
    patch = {"spec": {"clusterIP": None, "externalIPs": ["192.0.2.9"]}}
    patched = api.ask("PATCH", f"{SERVICES}/new", patch)[1]["spec"]
    assert (patched["clusterIP"], patched["externalIPs"]) == (spec["clusterIP"], ["192.0.2.9"])
    assert [item["metadata"]["name"] for item in api.ask("GET", SERVICES)[1]["items"]] == ["api", "new", "web"]
    assert api.ask("DELETE", f"{SERVICES}/new")[0] == 200
    assert api.ask("GET", f"{SERVICES}/new")[0] == 404
    assert api.ask("POST", SLICES, sliced(ports=[{"port": 1}]))[1]["ports"] == [
        {"name": "", "protocol": "TCP", "port": 1}
    ]
    assert api.ask("POST", EVENTS, EVENT)[0] == 201
    assert api.server.served["create", "Service"] == 1


def test_a_list_out_of_the_servers_memory_has_no_pages(api: Api) -> None:
    for query, count in (("resourceVersion=0&limit=1", 2), ("limit=1", 1)):
        status, found = api.ask("GET", f"/api/v1/services?{query}")
        assert (status, len(found["items"]), "continue" in found["metadata"]) == (200, count, count == 1)


@pytest.mark.parametrize(
    ("header", "status"), [({}, 401), ({"Authorization": "Bearer no"}, 401), ({"Authorization": "Bearer yes"}, 200)]
)
def test_only_known_tokens_are_let_in(header: dict[str, str], status: int) -> None:
    with ApiServer(tokens={"yes"}) as server:
        assert urllib3.request("GET", f"{server.url}/api/v1/services", headers=header).status == status


STREAMED = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan"


@pytest.mark.parametrize(("version", "bookmarks"), [("", True), ("0", False), ("now", True)])
def test_a_streamed_list_is_all_there_is_its_end_and_then_what_changes(api: Api, version: str, bookmarks: bool) -> None:
    """Also from a version: the list is not older than that, and not what happened since."""
    now = str(api.server.store.version)
    asked = f"{STREAMED}&resourceVersion={now if version == 'now' else version}"
    found = api.events(f"{asked}&allowWatchBookmarks=true" if bookmarks else asked)
    assert [event[:2] for event in found[:2]] == [("ADDED", "api"), ("ADDED", "web")]
    assert found[2:3] == ([("BOOKMARK", now, True)] if bookmarks else [])
    assert {event[2] for event in found[3:]} <= {False}, "it ends once"


def test_a_list_is_not_streamed_by_a_server_that_cannot_or_to_a_client_that_does_not_want_it(api: Api) -> None:
    assert not [event for event in api.events(STREAMED.replace("true", "false")) if event[0] != "BOOKMARK"]
    api.server.rules = Rules(watch_lists=False)
    status, said = api.ask("GET", f"/api/v1/services?watch=1&{STREAMED}")
    assert (status, said["reason"], said["details"]["causes"][0]["field"]) == (422, "Invalid", "sendInitialEvents")


@pytest.mark.parametrize(("gone_as", "told"), [("event", [("ERROR", "Expired", False)]), ("status", None)])
def test_a_watch_from_a_forgotten_version_is_gone(api: Api, gone_as: Any, told: Any) -> None:
    version = api.server.store.version
    api.server.apply(service("new"))
    api.server.compact()
    api.server.rules = Rules(gone_as=gone_as)
    if told:
        assert api.events(f"resourceVersion={version}") == told
    else:
        status, said = api.ask("GET", f"/api/v1/services?watch=1&resourceVersion={version}")
        assert (status, said["reason"]) == (410, "Expired")


def test_a_watch_ends_when_its_time_is_over_with_a_bookmark(server: ApiServer) -> None:
    query = f"watch=1&timeoutSeconds=1&resourceVersion={server.store.version}"
    server.apply(service("new"))
    with_bookmarks = urllib3.request(
        "GET", f"{server.url}/api/v1/services?{query}&allowWatchBookmarks=true", timeout=10
    )
    lines = [json.loads(line) for line in with_bookmarks.data.splitlines()]
    assert [line["type"] for line in lines][:1] == ["ADDED"]
    assert {line["type"] for line in lines[1:]} == {"BOOKMARK"}
    assert lines[-1]["object"]["metadata"]["resourceVersion"] == str(server.store.version)
    without = urllib3.request("GET", f"{server.url}/api/v1/services?{query}", timeout=10)
    assert [json.loads(line)["type"] for line in without.data.splitlines()] == ["ADDED"]


def test_a_watch_without_a_version_starts_with_what_there_is(server: ApiServer) -> None:
    answer = urllib3.request("GET", f"{server.url}/api/v1/services?watch=1&timeoutSeconds=1", timeout=10)
    assert [json.loads(line)["object"]["metadata"]["name"] for line in answer.data.splitlines()] == ["api", "web"]
