"""The status page and its JSON, over HTTP from a node with the real controller, reporter and servers."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

import html5lib
import pytest

from kproxy import logs
from kproxy.cli.main import main
from kproxy.containment import RECENT
from kproxy.errors import InvalidObject
from kproxy.model.events import Deleted, Invalid, Resolved
from kproxy.model.objects import Kind
from kproxy.model.plans import Family
from tests.model.builders import changed, deleted, endpoint, listed, service, slice_
from tests.status.nodes import OperatedNode, shop


@pytest.fixture
def node() -> Iterator[OperatedNode]:
    with OperatedNode() as found:
        yield found


def status(node: OperatedNode, query: str = "") -> dict[str, Any]:
    code, kind, body = node.get(f"/status.json{query}")
    assert (code, kind) == (200, "application/json")
    found: dict[str, Any] = json.loads(body)
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [f"{item['namespace']}/{item['name']}" for item in found["services"]["items"]]


def page_text(node: OperatedNode, path: str = "/") -> str:
    """Return all text of the page, which must be valid HTML."""
    code, kind, body = node.get(path)
    assert (code, kind) == (200, "text/html; charset=utf-8")
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return " ".join(" ".join(parser.parse(body).find("body").itertext()).split())


def test_before_the_first_sync_there_is_a_page(node: OperatedNode) -> None:
    found = status(node)
    assert (found["node"], found["mode"], found["version"], found["emulates"]) == ("node1", "iptables", "1.2.3", "1.36")
    assert [f["family"] for f in found["families"]] == ["IPv4", "IPv6"]
    assert all(f["lastUpdated"] == "" and f["syncs"] == [] for f in found["families"])
    text = page_text(node)
    assert "No Service is known." in text
    assert "waiting for the cluster" in text
    assert "up to date" not in text


def test_a_service_is_shown_with_its_addresses_and_endpoints(node: OperatedNode) -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIP": "10.96.9.9",
        "externalIPs": ["203.0.113.5"],
        "ingress": [{"ip": "198.51.100.7"}],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31999,
        "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    }
    ends = [endpoint("10.244.1.1"), endpoint("10.244.2.1", node="node2"), endpoint("10.244.2.2", "node2", "dead")]
    node.start(service("front", "shop", **spec), slice_("front-1", ends, "front", namespace="shop"))
    found = status(node)
    assert names(found) == ["shop/front"]
    (port,) = found["services"]["items"][0]["ports"]
    chains = [line.split()[0][1:] for line in node.tables[Family.IPV4].save().splitlines() if line.startswith(":KUBE-")]
    assert {name.split("-")[1] for name in port["names"]} == {"SVC", "SVL", "EXT", "FW"}
    assert set(port.pop("names")) <= set(chains)
    assert port == {
        "family": "IPv4",
        "port": "http",
        "protocol": "TCP",
        "addresses": [
            "10.96.9.9:80",
            "node port 30080",
            "203.0.113.5:80 (external)",
            "198.51.100.7:80 (load balancer)",
        ],
        "endpoints": ["10.244.1.1:8080 (here)", "10.244.2.1:8080"],
        "serving": 2,
        "known": 3,
        "notes": [
            "external traffic stays on the node",
            "client IP affinity for 10800 s",
            "load balancer: only from 10.0.0.0/8",
            "health checks on node port 31999",
        ],
        "refused": "",
    }
    text = page_text(node)
    for part in (*port["addresses"], *port["endpoints"], *port["notes"], "shop/front", "2 of 3"):
        assert part in text


def test_the_last_fifty_syncs_of_each_family_are_kept(node: OperatedNode) -> None:
    node.start(*shop(1))
    for i in range(60):
        node.step(changed(service("web-0", "shop", clusterIP="10.96.0.0", externalIPs=[f"192.0.2.{i + 1}"])))
    four, six = status(node)["families"]
    assert len(four["syncs"]) == 50
    latest = four["syncs"][0]
    assert (latest["full"], latest["changed"], latest["transactions"], latest["error"]) == (False, 1, 1, "")
    assert latest["bytes"] > 0
    assert six["ports"] == 0
    assert four["ports"] == 1
    assert four["endpoints"] == 2


def test_a_failed_sync_shows_with_its_reason_and_makes_the_node_unhealthy_in_time(node: OperatedNode) -> None:
    node.start(*shop(1))
    node.tables[Family.IPV4].fail_at = set(range(1000))
    node.step(changed(service("web-0", "shop", clusterIP="10.96.0.0", externalIPs=["192.0.2.1"])))
    found = status(node)
    assert found["healthy"]
    assert "holding the xtables lock" in found["families"][0]["syncs"][0]["error"]
    assert "failing, tried again" in page_text(node)
    (line,) = found["log"]
    assert (line["level"], line["part"], line["times"]) == ("error", "sync", 1)
    assert "Sync failed, will be retried" in line["text"]
    assert "retry_in=0.2" in line["text"]
    node.clock.advance(61)
    found = status(node)
    assert not found["healthy"]
    assert [f["healthy"] for f in found["families"]] == [False, True]
    text = page_text(node)
    assert "node1 unhealthy" in text
    assert "a change is overdue" in text


OVER = (
    Deleted(Kind.SERVICE, "shop", "odd"),
    changed(service("odd", "shop")),
    listed(Kind.SERVICE),
    Resolved("Service", "shop/odd"),
)


def test_what_needs_attention_is_listed_until_it_is_over(node: OperatedNode) -> None:
    node.tables[Family.IPV4].refuse = lambda table, chain, rule: "bad/refused" in rule
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    rivals = [service(n, "shop", clusterIP=f"10.96.0.{i}", ports=ports) for i, n in enumerate(("a", "b"))]
    refused = service("refused", "bad", clusterIP="10.96.9.11")
    node.start(*rivals, refused, slice_("refused-1", [endpoint("10.244.1.1")], "refused", namespace="bad"))
    node.step(Invalid(InvalidObject("Service", "shop/odd", "spec.ports[0].port", "must be 1 to 65535, is 0")))
    found = status(node)
    assert [(r["family"], r["service"]) for r in found["refused"]] == [("IPv4", "bad/refused:http")]
    assert found["conflicts"] == [{"where": "node port 30080/TCP", "services": ["shop/a:http", "shop/b:http"]}]
    assert [(u["kind"], u["object"]) for u in found["unusable"]] == [("Service", "shop/odd")]
    text = page_text(node)
    assert "3 things need attention" in text
    assert "spec.ports[0].port: must be 1 to 65535, is 0" in text
    by_name = {(item["namespace"], item["name"]): item["ports"][0] for item in found["services"]["items"]}
    assert "RULE_APPEND failed" in by_name["bad", "refused"]["refused"]
    family = found["families"][0]
    assert (family["refusedChanges"] > 0, family["syncs"][-1]["refusedChanges"] > 0) == (True, True)
    assert "RULE_APPEND failed" in family["lastRefused"]
    assert family["refusedAt"] == found["now"]
    node.step(deleted(refused), deleted(rivals[0]))
    found = status(node)
    assert (found["refused"], found["conflicts"]) == ([], [])
    assert "1 thing needs attention" in page_text(node)
    for over in OVER:
        node.step(Invalid(InvalidObject("Service", "shop/odd", "spec.ports[0].port", "must be 1 to 65535, is 0")))
        assert len(status(node)["unusable"]) == 1
        node.step(over)
        assert status(node)["unusable"] == [], over


def test_a_part_that_fails_unexpectedly_is_shown_until_it_works(
    node: OperatedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(node)["internalErrors"] == []
    stage = node.containment.stage("conntrack", "stale flows stay")
    stage.failed(ZeroDivisionError("by zero"))
    node.clock.advance(10)
    stage.failed(ZeroDivisionError("again"))
    shown = {"stage": "conntrack", "failures": 2, "error": "ZeroDivisionError: again", "since": "2026-01-02T03:04:05Z"}
    assert status(node)["internalErrors"] == [shown]
    assert main(["status", "--address", f"127.0.0.1:{node.port}"]) == 0
    for text in (page_text(node), " ".join(capsys.readouterr().out.split())):
        assert "Parts of kproxy that fail unexpectedly" in text
        assert "conntrack 2026-01-02 03:04:05 UTC 2 ZeroDivisionError: again" in text
    stage.succeeded()
    assert status(node)["internalErrors"] == []
    assert "Parts of kproxy" not in page_text(node)


@pytest.mark.parametrize(
    ("path", "broken"),
    [("/", "store.StatusStore.status"), ("/statusz", "zpages.statusz"), ("/configz", "pages.json_response")],
)
@pytest.mark.parametrize("asked_again", [True, False])
def test_a_page_that_failed_once_is_shown_until_it_works_or_for_a_while(
    node: OperatedNode, monkeypatch: pytest.MonkeyPatch, path: str, broken: str, asked_again: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"kproxy.status.{broken}", lambda *args, **fields: 1 / 0)
        assert node.get(path)[0] == 500
    assert [error["stage"] for error in status(node)["internalErrors"]] == ["status-page"]
    if asked_again:
        assert node.get(path)[0] == 200
    else:
        node.clock.advance(RECENT)
    assert status(node)["internalErrors"] == []


def test_pages_of_many_services(node: OperatedNode) -> None:
    node.start(*shop(120))
    seen = []
    for number in (1, 2, 3):
        found = status(node, f"?page={number}")
        assert (found["services"]["page"], found["services"]["pages"]) == (number, 3)
        seen += names(found)
    assert seen == sorted(f"shop/web-{i}" for i in range(120))
    assert status(node, "?page=99")["services"]["page"] == 3
    for nonsense in ("0", "-1", "x", "", "9" * 400):
        assert status(node, f"?page={nonsense}")["services"]["page"] == 1
    assert "page 2 of 3" in page_text(node, "/?page=2")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("web-1", ["web-1", "web-10", "web-11"]),
        ("SHOP/WEB-10", ["web-10"]),
        ("10.96.0.3:80", ["web-3"]),
        ("10.245.0.7:8080", ["web-7"]),
        ("web-1 10.96.0.11", ["web-11"]),
        ("nothing", []),
        ("udp", []),
    ],
)
def test_a_search_finds_names_addresses_and_endpoints(node: OperatedNode, query: str, found: list[str]) -> None:
    node.start(*shop(12))
    answer = status(node, "?q=" + query.replace(" ", "+"))
    assert names(answer) == [f"shop/{name}" for name in found]
    assert (answer["services"]["matching"], answer["services"]["total"]) == (len(found), 12)


def test_a_search_finds_the_chain_that_a_dump_of_rules_shows(node: OperatedNode) -> None:
    node.start(*shop(12))
    saved = node.tables[Family.IPV4].save()
    chain = re.search(r"-d 10\.96\.0\.5/32 .* -j (KUBE-SVC-\w+)", saved)
    assert chain
    assert names(status(node, f"?q={chain[1].lower()}")) == ["shop/web-5"]


def test_values_from_the_cluster_are_escaped(node: OperatedNode) -> None:
    evil = '<script>alert("x")</script>'
    node.start(*shop(1))
    node.step(Invalid(InvalidObject("Service", f"shop/{evil}", "", evil)))
    for path in ("/", f"/?q={evil.replace(' ', '+')}"):
        _, _, body = node.get(path)
        assert "<script" not in body
    assert evil in page_text(node)


def test_the_page_loads_and_runs_nothing(node: OperatedNode) -> None:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", node.port, timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script|<img|<link|https?://|@import|url\(", body)


def test_the_same_warning_again_is_counted_and_secrets_are_not_kept(node: OperatedNode) -> None:
    for attempt in range(3):
        logs.get("source").warning("Cannot list", token="abc", url="https://user:pass@host/", attempt=attempt)
    logging.getLogger("kproxy.sources").info("never mind")
    (line,) = status(node)["log"]
    assert (line["times"], line["level"], line["part"]) == (3, "warning", "source")
    assert line["text"] == 'Cannot list token="(hidden)" url="https://(hidden)@host/" attempt=2'
    for i in range(60):
        logs.get("source").error("Failed", which=f"n{i}")
    found = [entry["text"] for entry in status(node)["log"]]
    assert found == [f'Failed which="n{i}"' for i in range(59, 9, -1)]


def test_the_page_is_available_while_services_come_and_go(node: OperatedNode) -> None:
    node.start(*shop(50))
    over, problems = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            code, _, body = node.get("/status.json?q=shop")
            if code != 200:
                problems.append(body)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        items = list(shop(300))
        for count in (300, 10, 200, 50, 300):
            node.step(
                *(
                    listed(kind, *(i for i in items[: 2 * count] if type(i).__name__ == kind))
                    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE)
                )
            )
    finally:
        over.set()
        thread.join(20)
    assert not problems
    assert status(node)["services"]["total"] == 300
