"""The health of the proxy, and the answers of /healthz and /livez."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.clocks import rfc3339
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.model.node_info import AUTOSCALER_TAINT, NodeInfo, parse
from kproxy.model.objects import Metadata, Node, NodeSpec, Taint
from kproxy.model.plans import Family
from tests.fakes.clocks import ManualClock

PERIOD = 30.0
START = "2026-01-02T03:04:05Z"
V4, V6 = Family.IPV4, Family.IPV6


def after(*steps: tuple[str, Any]) -> ProxierHealth:
    """The state after ("queued", family), ("updated", family), ("wait", seconds) or ("node", node)."""
    clock = ManualClock()
    health = ProxierHealth(PERIOD, clock)
    verbs: dict[str, Callable[[Any], None]] = {
        "queued": health.queued_update,
        "updated": health.updated,
        "wait": clock.advance,
        "node": health.node_changed,
    }
    for verb, argument in steps:
        verbs[verb](argument)
    return health


@pytest.mark.parametrize(
    ("steps", "healthy"),
    [
        ([], True),
        ([("wait", 1e6)], True),
        ([("updated", V4), ("wait", 1e6)], True),
        ([("updated", V4), ("queued", V4), ("wait", 59.9)], True),
        ([("updated", V4), ("queued", V4), ("wait", 60)], False),
        ([("queued", V4), ("wait", 60)], False),
        ([("queued", V4), ("wait", 60), ("updated", V4)], True),
        ([("queued", V4), ("wait", 59), ("updated", V4), ("queued", V4), ("wait", 59)], True),
        ([("queued", V4), ("wait", 40), ("queued", V4), ("wait", 20)], False),
        ([("queued", V4), ("queued", V6), ("wait", 60), ("updated", V4)], False),
        ([("queued", V6), ("wait", 60), ("updated", V6), ("updated", V4)], True),
        ([("node", None)], True),
    ],
)
def test_healthy_unless_a_change_waits_too_long(steps: list[tuple[str, Any]], healthy: bool) -> None:
    assert after(*steps).healthy() is healthy


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["queued", "updated"]), st.sampled_from([V4, V6])),
            st.tuples(st.just("wait"), st.integers(0, 70)),
        ),
        max_size=30,
    )
)
def test_healthy_means_that_no_family_has_waited_for_two_periods(steps: list[tuple[str, Any]]) -> None:
    now = 0
    oldest: dict[Family, int] = {}
    for verb, argument in steps:
        if verb == "wait":
            now += argument
        elif verb == "updated":
            oldest.pop(argument, None)
        else:
            oldest.setdefault(argument, now)
    assert after(*steps).healthy() is all(now - since < 2 * PERIOD for since in oldest.values())


def node(*taints: str, deleted: str | None = None) -> NodeInfo:
    spec = NodeSpec(taints=[Taint(key) for key in taints] or None)
    return parse(Node(Metadata("node1", deletion_timestamp=deleted), spec))


@pytest.mark.parametrize(
    ("seen", "eligible"),
    [
        ([], True),
        ([node()], True),
        ([parse(Node(Metadata("node1")))], True),
        ([node("node.kubernetes.io/unschedulable")], True),
        ([node("other", AUTOSCALER_TAINT)], False),
        ([node(deleted="2026-01-01T00:00:00Z")], False),
        ([None], False),
        ([node(AUTOSCALER_TAINT), node()], True),
    ],
)
def test_a_node_that_is_being_removed_fails_healthz_but_not_livez(seen: list[NodeInfo | None], eligible: bool) -> None:
    health = after(("updated", V4), *(("node", n) for n in seen)).health()
    status, body = health.healthz()
    assert status == (200 if eligible else 503)
    assert json.loads(body)["nodeEligible"] is eligible
    assert json.loads(body)["healthy"] is True
    status, body = health.livez()
    assert status == 200
    assert "nodeEligible" not in json.loads(body)


def test_healthy_page_calls_itself_up_to_date() -> None:
    health = after(("updated", V4), ("wait", 1.5), ("updated", V6), ("wait", 1)).health()
    assert health.healthz() == (
        200,
        b'{"lastUpdated":"2026-01-02T03:04:07.5Z","currentTime":"2026-01-02T03:04:07.5Z","nodeEligible":true,"healthy":true,'
        b'"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05Z","healthy":true},'
        b'"IPv6":{"lastUpdated":"2026-01-02T03:04:06.5Z","healthy":true}}}',
    )


def test_unhealthy_page_has_the_time_and_the_family() -> None:
    health = after(("updated", V4), ("queued", V4), ("wait", 60), ("queued", V6)).health()
    assert health.livez() == (
        503,
        b'{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:05:05Z","healthy":false,'
        b'"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05Z","healthy":false},'
        b'"IPv6":{"lastUpdated":"0001-01-01T00:00:00Z","healthy":true}}}',
    )


def test_page_before_anything_happened_has_no_status() -> None:
    body = json.loads(after().health().livez()[1])
    assert body == {"lastUpdated": START, "currentTime": START, "healthy": True}


@pytest.mark.parametrize("period", [0, -1])
def test_a_period_that_is_not_positive_is_refused(period: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        ProxierHealth(period, ManualClock())


@pytest.mark.parametrize(
    ("microsecond", "text"),
    [(0, "05Z"), (500000, "05.5Z"), (1, "05.000001Z"), (123450, "05.12345Z")],
)
def test_times_are_written_as_go_does(microsecond: int, text: str) -> None:
    assert rfc3339(datetime(2026, 1, 2, 3, 4, 5, microsecond, tzinfo=UTC)) == f"2026-01-02T03:04:{text}"
