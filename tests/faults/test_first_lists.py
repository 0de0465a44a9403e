"""Until Services and EndpointSlices have been listed once, nothing is programmed and what is there stays."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from tests.fakes.apifaults import Hang

if TYPE_CHECKING:
    from tests.faults.conftest import Site

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
COMING, GOING = BY_NAME["node-port-local"], BY_NAME["source-ranges"]
OTHER = {"Service": "EndpointSlice", "EndpointSlice": "Service"}
SOON = 60.0
A_WHILE = 0.7  # seconds in which a proxy that does not wait would long have programmed


@pytest.fixture
def stopped(following: Site) -> Site:
    """The proxy ended and left its rules."""
    assert following.proxy.stop() == 0
    return following


def start_with_a_hanging_list(site: Site, kind: str) -> None:
    """Returns when the list of KIND hangs and all the others are in."""
    before = {each: site.server.served["stream", each] for each in (OTHER[kind], "Node")}
    site.server.inject(Hang(), verb="stream", kind=kind)
    site.start()
    assert wait_for(lambda: site.server.faults_left == 0, SOON), site.proxy.tail()
    assert wait_for(lambda: all(site.server.served["stream", each] > n for each, n in before.items()), SOON)


def rules(site: Site) -> list[str]:
    return [line for text in site.saved().values() for line in text.splitlines() if line.startswith(("-A", ":KUBE"))]


@pytest.mark.parametrize("kind", OTHER)
def test_the_old_rules_stand_until_both_lists_are_in(stopped: Site, kind: str) -> None:
    before = rules(stopped)
    stopped.put(COMING)
    stopped.remove(GOING)
    streams = stopped.streams()
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream)
        start_with_a_hanging_list(stopped, kind)
        time.sleep(A_WHILE)
        assert rules(stopped) == before
        stopped.server.break_connections()
        assert stopped.comes_right() == [], stopped.proxy.tail()
    assert [failure for stream in streams for failure in stream.failed] == []
    assert all(stream.made > 1 for stream in streams)


@pytest.mark.parametrize("kind", OTHER)
def test_an_empty_node_stays_empty_until_both_lists_are_in(stopped: Site, kind: str) -> None:
    stopped.node.run(["nft", "flush", "ruleset"])
    start_with_a_hanging_list(stopped, kind)
    time.sleep(A_WHILE)
    assert rules(stopped) == []
    stopped.server.break_connections()
    assert stopped.comes_right() == [], stopped.proxy.tail()
