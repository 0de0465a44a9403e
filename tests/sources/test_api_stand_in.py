"""The stand-in keeps the promises of an API server that clients build on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import urllib3

from tests.fakes.apiserver import ApiServer
from tests.fakes.apistore import Conflict, Expired, Selection, Store
from tests.sources.cluster import node, service


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
]


@pytest.mark.parametrize(("selector", "taken"), SELECTORS)
def test_label_selectors(selector: str, taken: bool) -> None:
    store = _store()
    store.put(service("web", tier="front"))
    assert bool(store.objects(Selection("Service", labels=selector))[1]) is taken


def test_field_selectors_and_namespaces() -> None:
    store = _store()
    for item in (service("web"), service("web", "shop"), service("api", "shop")):
        store.put(item)

    def names(**wanted: str) -> list[tuple[str, str]]:
        return [(item.namespace, item.name) for item in store.objects(Selection("Service", **wanted))[1]]

    assert names(fields="metadata.name=web") == [("default", "web"), ("shop", "web")]
    assert names(fields="metadata.name=web,metadata.namespace!=shop") == [("default", "web")]
    assert names(namespace="shop") == [("shop", "api"), ("shop", "web")]


@pytest.mark.parametrize("selector", ["a b", "=x", "a in (", "(", "a=1,,b"])
def test_a_selector_that_cannot_be_read_is_refused(selector: str) -> None:
    store = _store()
    store.put(service("web", a="1"))
    with pytest.raises(ValueError, match="unable to parse"):
        store.objects(Selection("Service", labels=selector))


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
    with pytest.raises(Expired):
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
    with pytest.raises(Expired):
        store.since(Selection("Service"), first)
    assert len(store.since(Selection("Service"), last - 3)[1]) == 3


def test_what_exists_is_not_created_again() -> None:
    store = _store()
    store.put(service("web"), new=True)
    with pytest.raises(Conflict):
        store.put(service("web"), new=True)


@pytest.mark.parametrize("item", [{}, {"kind": "Pod", "metadata": {"name": "x"}}, {"kind": "Service"}])
def test_an_object_that_cannot_be_kept_is_refused(item: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kind|name"):
        _store().put(item)


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


@pytest.mark.parametrize(
    ("spec", "given"),
    [
        ({"ports": []}, True),
        ({"clusterIP": "10.96.0.5"}, False),
        ({"clusterIP": "None"}, False),
        ({"type": "ExternalName"}, False),
    ],
)
def test_a_service_that_comes_without_a_cluster_ip_gets_one_of_its_own(
    server: ApiServer, spec: dict[str, Any], given: bool
) -> None:
    http = urllib3.PoolManager(retries=False)
    url = f"{server.url}/api/v1/namespaces/shop/services"
    made = [
        json.loads(http.request("POST", url, body=json.dumps({"metadata": {"name": name}, "spec": spec})).data)["spec"]
        for name in ("one", "two")
    ]
    assert made == [spec, spec] if not given else len({each["clusterIP"] for each in made}) == 2


def test_objects_are_made_changed_and_removed_over_http(server: ApiServer) -> None:
    http = urllib3.PoolManager(retries=False)
    base = f"{server.url}/api/v1/namespaces/shop/services"

    def ask(method: str, url: str, body: Any = None) -> tuple[int, Any]:
        answer = http.request(method, url, body=None if body is None else json.dumps(body))
        return answer.status, json.loads(answer.data)

    status, made = ask("POST", base, {"metadata": {"name": "new"}, "spec": {"clusterIP": "10.96.0.5"}})
    assert (status, made["kind"], made["metadata"]["namespace"]) == (201, "Service", "shop")
    assert ask("POST", base, made)[0] == 409
    made["spec"]["clusterIP"] = "10.96.0.6"
    assert ask("PUT", f"{base}/new", made)[1]["spec"] == {"clusterIP": "10.96.0.6"}
    assert ask("PATCH", f"{base}/new", {"spec": {"clusterIP": None, "type": "NodePort"}})[1]["spec"] == {
        "type": "NodePort"
    }
    assert ask("GET", f"{base}/new")[1]["spec"] == {"type": "NodePort"}
    assert [item["metadata"]["name"] for item in ask("GET", base)[1]["items"]] == ["new"]
    assert ask("DELETE", f"{base}/new")[0] == 200
    status, refused = ask("GET", f"{base}/new")
    assert (status, refused["kind"], refused["message"]) == (404, "Status", "services 'new' not found")
    assert ask("GET", f"{server.url}/apis/nowhere/v1/things")[0] == 404
    assert ask("GET", f"{server.url}/api/v1/services?labelSelector=a%20b")[0] == 400
    assert server.served["create", "Service"] == 2
    http.clear()


@pytest.mark.parametrize(
    ("header", "status"), [({}, 401), ({"Authorization": "Bearer no"}, 401), ({"Authorization": "Bearer yes"}, 200)]
)
def test_only_known_tokens_are_let_in(header: dict[str, str], status: int) -> None:
    with ApiServer(tokens={"yes"}) as server:
        assert urllib3.request("GET", f"{server.url}/api/v1/services", headers=header).status == status


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
