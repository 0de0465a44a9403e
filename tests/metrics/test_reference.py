"""docs/metrics.md is up to date and has every metric."""

from __future__ import annotations

import re
from pathlib import Path

from kproxy.containment import Containment
from kproxy.metrics.reference import ALERTS, text
from kproxy.metrics.registry import Metrics
from kproxy.model.plans import Family
from kproxy.modes.userspace.listeners import Statistics
from tests.fakes.clocks import ManualClock

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == text(), "write it again: python -m kproxy.metrics.reference > docs/metrics.md"


def test_it_has_every_metric_that_a_scrape_shows_with_its_type() -> None:
    metrics = Metrics(list(Family), "iptables", "1", Containment(ManualClock()))
    metrics.read_forwarder_with(lambda: Statistics(refused={"descriptors": 1}))
    metrics.read_nfacct_with(lambda: {"ct_state_invalid_dropped_pkts": 7, "localhost_nps_accepted_pkts": 9})
    pages = (metrics.exposition() + metrics.slis.exposition()).decode()
    scraped = dict(re.findall(r"^# TYPE ((?:k|rest_)\S+) (\S+)$", pages, re.M))
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text(), re.M))
    assert scraped
    assert {name: kind for name, kind in scraped.items() if name in listed} == scraped
    assert listed.keys() == {metric.name for metric in metrics.described()}


def test_alerts_are_about_metrics_that_exist() -> None:
    names = {metric.name for metric in Metrics(list(Family), "iptables", "1", Containment(ManualClock())).described()}
    for about, (expression, duration, _) in ALERTS.items():
        used = {re.sub("_bucket$", "", name) for name in re.findall(r"\bk(?:ube)?proxy_\w+", expression)}
        assert about in used
        assert used <= names
        assert re.fullmatch(r"\d+m", duration)
        assert f"`{expression}`" in text()
