"""The API server followed in fair weather: what is asked for, and that every change arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest

from kproxy import __version__
from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, ListPage, full_name
from kproxy.model.objects import EndpointSlice, Kind
from kproxy.sources.api import read_cluster
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from kproxy.sources.watching import Timing
from tests.fakes.apifaults import CutBody, Fault, Forget, Refuse
from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.fakes.sinks import Mirror
from tests.sources.cluster import agrees, cidr, endpoint_slice, eventually, expected, fill, node, service
from tests.sources.conftest import Follow


def test_every_kind_is_listed_once_then_changes_follow(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert [mirror.lists(kind) for kind in Kind] == [1, 1, 1, 1]

    server.apply(service("new"))
    server.apply(endpoint_slice("web", "10.244.0.5", "10.244.0.6"))
    server.delete("Service", "default", "api")
    server.apply(node("node1"))
    server.delete("ServiceCIDR", "", "kubernetes")
    assert mirror.wait(lambda m: agrees(server, m))

    assert [mirror.lists(kind) for kind in Kind] == [1, 1, 1, 1]
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web", "default/new"}
    changed = mirror.objects(Kind.ENDPOINT_SLICE)["default/web-1"]
    assert isinstance(changed, EndpointSlice)
    assert [e.addresses for e in changed.endpoints or ()] == [["10.244.0.5"], ["10.244.0.6"]]
    assert Deleted(Kind.SERVICE, "default", "api") in mirror.events


def test_only_the_own_node_and_what_is_not_others_business_is_asked_for(server: ApiServer, follow: Follow) -> None:
    server.apply(service("other", **{"service.kubernetes.io/service-proxy-name": "cilium"}))
    server.apply(service("labelled", **{"service.kubernetes.io/headless": ""}))
    server.apply(endpoint_slice("headless", "10.244.0.7", **{"service.kubernetes.io/headless": ""}))
    server.apply(endpoint_slice("api", "10.244.0.8", **{"service.kubernetes.io/service-proxy-name": "cilium"}))
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web", "default/api", "default/labelled"}
    assert set(mirror.objects(Kind.ENDPOINT_SLICE)) == {"default/web-1", "default/api-1"}
    assert set(mirror.objects(Kind.NODE)) == {"default/node1"}

    # A label that moves a Service out of the selection, or into it, is a deletion, or an addition.
    server.apply(service("web", **{"service.kubernetes.io/service-proxy-name": "cilium"}))
    server.apply(service("other"))
    server.apply(endpoint_slice("headless", "10.244.0.7"))
    assert mirror.wait(lambda m: agrees(server, m))
    assert set(mirror.objects(Kind.SERVICE)) == {"default/other", "default/api", "default/labelled"}
    assert set(mirror.objects(Kind.ENDPOINT_SLICE)) == {"default/web-1", "default/api-1", "default/headless-1"}


def test_the_server_learns_who_asks_and_that_old_news_will_do(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    lists = [r for r in server.requests if r.verb == "list"]
    assert {r.user_agent for r in lists} == {f"kproxy/{__version__}"}
    assert {r.query["resourceVersion"] for r in lists} == {"0"}
    assert {r.query["limit"] for r in lists} == {"500"}


def test_a_long_list_comes_in_pages(server: ApiServer, follow: Follow) -> None:
    server.rules = Rules(watch_cache=False)
    for number in range(1200):
        server.apply(service(f"s{number}"))
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert mirror.lists(Kind.SERVICE) == 1
    assert server.served["list", "Service"] == 3
    assert len(mirror.objects(Kind.SERVICE)) == 1202
    told = [event for event in mirror.events if isinstance(event, ListPage | Listed) and event.kind is Kind.SERVICE]
    assert [len(event.objects) for event in told] == [500, 500, 202], "each page is told as it comes"
    assert isinstance(told[2], Listed)
    assert told[2].delivered == {
        full_name(o.metadata.namespace, o.metadata.name) for event in told[:2] for o in event.objects
    }


class Meddling(Mirror):
    """Does something to the server when the first page of Services is in."""

    def __init__(self, deed: Callable[[], None]) -> None:
        super().__init__()
        self._deed: Callable[[], None] | None = deed

    def put(self, event: Event) -> None:
        super().put(event)
        if isinstance(event, ListPage) and event.kind is Kind.SERVICE and self._deed is not None:
            deed, self._deed = self._deed, None
            deed()


@pytest.mark.parametrize("fault", [Refuse(500), Refuse(410), CutBody()], ids=repr)
def test_what_goes_while_a_list_breaks_off_is_gone(server: ApiServer, follow: Follow, fault: Fault) -> None:
    server.rules = Rules(watch_cache=False)
    for number in range(600):
        server.apply(service(f"s{number}"))

    def break_off() -> None:
        server.inject(fault, verb="list", kind="Service")
        server.delete("Service", "default", "s0")  # on the first page, which was told already
        server.delete("Service", "default", "s599")

    mirror, _ = follow(server, mirror=Meddling(break_off))
    assert mirror.wait(lambda m: agrees(server, m))
    assert mirror.lists(Kind.SERVICE) == 1
    assert "default/s0" not in mirror.objects(Kind.SERVICE)
    lists = [r for r in server.requests if (r.verb, r.kind) == ("list", "Service") and "continue" not in r.query]
    assert len(lists) == 2
    assert lists[1].query.get("resourceVersion") != "0", "a list must not lead back behind what was told already"


def test_pages_that_expire_are_followed_by_a_list_in_one_piece(server: ApiServer, follow: Follow) -> None:
    server.rules = Rules(watch_cache=False)
    for number in range(600):
        server.apply(service(f"s{number}"))
    server.inject(Forget(), verb="list", kind="Service")
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    last = [r for r in server.requests if (r.verb, r.kind) == ("list", "Service")][2]
    assert "limit" not in last.query
    assert mirror.lists(Kind.SERVICE) == 1


def test_a_watch_that_ends_is_taken_up_where_it_ended(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server, timing=Timing(watch=(1.0, 1.2), backoff=0.01, settled=0.3))
    assert eventually(lambda: server.served["watch", "Service"] >= 3)
    server.apply(service("late"))
    assert mirror.wait(lambda m: agrees(server, m))
    assert server.served["list", "Service"] == 1


def test_a_bookmark_moves_the_place_where_a_watch_is_taken_up(follow: Follow) -> None:
    with ApiServer(bookmark_seconds=3600) as server:
        fill(server)
        mirror, _ = follow(server)
        assert mirror.wait(lambda m: agrees(server, m))
        assert eventually(lambda: server.served["watch", "Service"] == 1)
        server.apply(cidr("unheard", "10.97.0.0/16"))  # the Service watch hears nothing of it
        wanted = server.store.version

        def taken_up_from() -> int:
            """Let the watch break, and see where it goes on."""
            server.bookmark()
            server.break_connections()
            watches = [r for r in server.requests if (r.verb, r.kind) == ("watch", "Service")]
            return int(watches[-1].query["resourceVersion"])

        assert eventually(lambda: taken_up_from() >= wanted)
        assert server.served["list", "Service"] == 1


@pytest.mark.parametrize(("version", "path"), [("v1", "v1"), ("v1beta1", "v1beta1")])
def test_service_cidrs_are_found_in_the_version_that_there_is(
    follow: Follow, version: Literal["v1", "v1beta1"], path: str
) -> None:
    with ApiServer(rules=Rules(service_cidrs=version)) as server:
        fill(server)
        mirror, _ = follow(server)
        assert mirror.wait(lambda m: agrees(server, m))
        assert set(mirror.objects(Kind.SERVICE_CIDR)) == {"default/kubernetes"}
        assert eventually(lambda: server.served["watch", "ServiceCIDR"] > 0)
        watched = [r.path for r in server.requests if (r.verb, r.kind) == ("watch", "ServiceCIDR")]
        assert watched[0] == f"/apis/networking.k8s.io/{path}/servicecidrs"


def test_a_server_without_service_cidrs_holds_nothing_up(follow: Follow) -> None:
    with ApiServer(rules=Rules(service_cidrs="")) as server:
        fill(server)
        mirror, _ = follow(server)
        assert mirror.wait(lambda m: m.complete)
        assert Listed(Kind.SERVICE_CIDR, ()) in mirror.events
        # It is asked again, rarely: an upgraded server may have them.
        asked = len([r for r in server.requests if "servicecidrs" in r.path])
        assert mirror.wait(lambda m: m.lists(Kind.SERVICE_CIDR) >= 2)
        assert len([r for r in server.requests if "servicecidrs" in r.path]) >= asked


def test_one_broken_object_costs_only_itself(server: ApiServer, follow: Follow) -> None:
    broken = service("broken")
    broken["spec"]["ports"][0]["port"] = "http"
    server.apply(broken)
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: m.complete and bool(m.problems))
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web", "default/api"}
    listed = next(e for e in mirror.events if isinstance(e, Listed) and e.kind is Kind.SERVICE)
    assert listed.unreadable == {"default/broken"}
    assert str(mirror.problems[0]) == "Service default/broken: spec.ports[0].port: Expected int, got str"

    # The same while watching, and then it is mended.
    broken["metadata"]["name"] = "web"
    server.apply(broken)
    assert mirror.wait(lambda m: len(m.problems) == 2)
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web", "default/api"}
    server.apply(service("web", ip="10.96.0.99"))
    server.delete("Service", "default", "broken")
    assert mirror.wait(lambda m: agrees(server, m))
    assert len(mirror.problems) == 2
    assert server.served["list", "Service"] == 1


def test_null_lists_and_unknown_fields_are_harmless(server: ApiServer, follow: Follow) -> None:
    odd = endpoint_slice("web")
    odd |= {"endpoints": None, "ports": None, "novelty": {"deep": [1, {"er": None}]}}
    odd["metadata"] |= {"annotations": None, "managedFields": [{"x": 1}]}
    server.apply(odd)
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    assert not [e for e in mirror.events if isinstance(e, Invalid)]


def test_a_hundred_writes_arrive_in_order(server: ApiServer, follow: Follow) -> None:
    mirror, _ = follow(server)
    assert mirror.wait(lambda m: agrees(server, m))
    for number in range(100):
        server.apply(service("web", ip=f"10.96.1.{number}"))
    assert mirror.wait(lambda m: agrees(server, m))
    seen = [e.object.spec.cluster_ip for e in mirror.events if isinstance(e, Changed)]  # type: ignore[union-attr]
    assert seen == [f"10.96.1.{number}" for number in range(100)]


def test_a_cluster_is_read_once(server: ApiServer) -> None:
    broken = service("broken")
    broken["spec"] = 7
    server.apply(broken)
    client = ApiClient(ClientSettings(master=server.url))
    objects, problems = read_cluster(client, "node1")
    client.close()
    assert {kind: len(items) for kind, items in objects.items()} == {
        Kind.SERVICE: 2,
        Kind.ENDPOINT_SLICE: 1,
        Kind.NODE: 1,
        Kind.SERVICE_CIDR: 1,
    }
    assert [str(p) for p in problems] == ["Service default/broken: spec: Expected object, got int"]
    assert expected(server, Kind.SERVICE).keys() == {"default/web", "default/api", "default/broken"}
