"""The layout of the status page in Chromium without scripts, on a wide screen and on a phone's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.errors import InvalidObject
from kproxy.model.events import Invalid
from kproxy.model.plans import Family
from tests.model.builders import endpoint, service, slice_
from tests.status.browser import Browser, program
from tests.status.nodes import OperatedNode, shop

LONG = "a" * 63
WIDTHS = (400, 1200)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if program() is None:
        pytest.skip("chromium is not installed")
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def node() -> Iterator[OperatedNode]:
    """Yield a node with the longest possible names, many endpoints, and one trouble of each kind."""
    with OperatedNode() as found:
        found.tables[Family.IPV4].refuse = lambda table, chain, rule: "bad/refused" in rule
        ports = [{"name": "http", "port": 80, "nodePort": 30080}]
        found.start(
            *shop(60),
            service(LONG, LONG, clusterIP="10.96.9.1", ports=ports),
            slice_(LONG, [endpoint(f"10.250.0.{i}") for i in range(60)], LONG, namespace=LONG),
            service("rival", "shop", clusterIP="10.96.9.2", ports=ports),
            service("refused", "bad", clusterIP="10.96.9.3"),
            slice_("refused-1", [endpoint("10.250.1.1")], "refused", namespace="bad"),
        )
        found.step(Invalid(InvalidObject("Service", f"{LONG}/odd", "spec", "x" * 300)))
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_part_is_visible_and_within_the_window(
    browser: Browser, node: OperatedNode, width: int, dark: bool
) -> None:
    sight = browser.look(node.url, width, dark)
    assert sight.content_width <= width
    assert sight.outside == ()
    shown = sight.text.replace("\n", " ")
    for part in (
        *("node1", "healthy", "3 things need attention", "iptables", "IPv4, IPv6", "63"),
        *("bad/refused:http", "RULE_APPEND failed", "node port 30080/TCP", "shop/rival:http", "x" * 300),
        *("up to date", "Service ports", "10.250.0.0:8080 (here)", "and 44 more", "KUBE-SVC-"),
        *(f"{LONG}/{LONG}", "page 1 of 2", "The kernel refused a Service port"),
    ):
        assert part.replace(" ", "") in shown.replace(" ", ""), part


def test_its_links_lead_to_what_they_say(browser: Browser, node: OperatedNode) -> None:
    links = browser.look(f"{node.url}/?q=shop", 1200).links
    assert links["next →"] == "/?q=shop&page=2#services"
    for path in (*(href for href in links.values() if href.startswith("/")), links["next →"]):
        assert node.get(path.partition("#")[0])[0] == 200
    assert "page 2 of 2" in browser.look(node.url + links["next →"], 400).text.replace("\n", " ")
