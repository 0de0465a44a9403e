"""SIGKILL at any moment: in a cold start, in a takeover, in a sync; and two proxies at work at once. Nobody notices."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.proxies import wait_for
from tests.takeover.test_transitions import synced, unnoticed

if TYPE_CHECKING:
    from tests.takeover.stages import Stage

KILLS = 3
LONGEST = 0.4  # seconds from the log's "Started" to a kill: about what a cold start of the crowd takes
SOON = 60.0
OTHER = {"iptables": "nftables", "nftables": "iptables"}


@pytest.mark.parametrize(
    ("stage", "mode"), [("nft", "iptables"), ("legacy", "iptables"), ("nft", "nftables")], indirect=["stage"]
)
def test_killed_again_and_again_while_it_takes_over(stage: Stage, mode: str, random_moments: random.Random) -> None:
    """From kube-proxy in the other mode, so that all has to be written and something to be taken away."""
    stage.crowd(0)
    stage.kube_proxy(OTHER[mode])
    with unnoticed(stage) as load:
        for _ in range(KILLS):
            proxy = stage.start(mode, ready=False)
            proxy.await_ready(lambda: '"msg":"Started"' in proxy.tail(1_000_000))  # noqa: B023
            time.sleep(random_moments.uniform(0, LONGEST))
            load.mark("a kill")
            stage.stop(proxy, signal.SIGKILL)
        load.mark("the last start")
        stage.start(mode)
        assert wait_for(lambda: stage.holds_only(mode), SOON)
    assert_complete(stage, mode)


@pytest.mark.parametrize(("stage", "mode"), [("nft", "iptables"), ("nft", "nftables")], indirect=["stage"])
def test_kills_and_an_upgrade_while_services_change(stage: Stage, mode: str, random_moments: random.Random) -> None:
    """The upgrade does not wait for the old process to end: for a while both write."""
    stage.crowd(0)
    stage.start(mode)
    with unnoticed(stage) as load, churn(stage) as turns:
        for _ in range(KILLS):
            time.sleep(random_moments.uniform(0.05, 0.3))
            load.mark("a kill")
            stage.stop(with_signal=signal.SIGKILL)
            stage.start(mode)
        load.mark("a second process")
        old, new = stage.proxy, stage.start(mode)
        time.sleep(0.5)
        stage.stop(old)
        load.mark("the first one's end")
        time.sleep(0.3)
        assert new.running()
    assert wait_for(lambda: stage.has_programmed(turns[-1]), SOON)
    assert_complete(stage, mode)


def assert_complete(stage: Stage, mode: str) -> None:
    """What is there in the end is what a proxy writes that was never disturbed: one that starts now writes nothing."""
    stage.stop()
    stage.start(mode)
    assert [line["transactions"] for line in synced(stage)] == [0, 0]


@contextmanager
def churn(stage: Stage) -> Iterator[list[int]]:
    """A tenth of the Services changes, eight times a second; the turns so far."""
    stop, turns = threading.Event(), [0]

    def work() -> None:
        for turn in itertools.count(1):
            if stop.wait(0.12):
                return
            stage.crowd(turn)
            turns.append(turn)

    thread = threading.Thread(target=work, name="churn")
    thread.start()
    try:
        yield turns
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def random_moments(request: pytest.FixtureRequest) -> random.Random:
    """The same moments in every run of a test."""
    return random.Random(request.node.name)
