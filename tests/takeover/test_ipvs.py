"""IPVS mode comes, dies and comes again, and no client notices. Slower than elsewhere: the processor is emulated."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.lab.deployment import deployment
from kproxy.lab.load import Rates
from tests.ipvs.readers import shown
from tests.takeover.stages import SERVED, Stage
from tests.takeover.test_transitions import synced, unnoticed

pytestmark = pytest.mark.ipvs_kernel

SLOW = Rates(rate=10, held=10, flows=4, beat=2, patience=15)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A node of its own, which goes with all that is on it."""
    with deployment(tmp_path, "nft", scenarios=SERVED[:1], start=False) as under_way:
        found = Stage(under_way, tmp_path, served=SERVED[:1])
        try:
            yield found
            assert found.problems() == ""
        finally:
            found.end()


def test_from_kube_proxys_rules_and_after_a_kill(stage: Stage) -> None:
    stage.kube_proxy("iptables")
    with unnoticed(stage, SLOW, after=2) as load:
        load.mark("ipvs mode")
        stage.start("ipvs")
        stage.stop(with_signal=signal.SIGKILL)
        load.mark("the start after a kill")
        stage.start("ipvs")
        assert [line["transactions"] for line in synced(stage)] == [0, 0]


def test_from_kube_proxys_own_ipvs_mode(stage: Stage) -> None:
    """Its virtual servers with their real servers, sets, addresses and rules are kept as they are."""
    stage.kube_proxy("ipvs")
    before = (shown(stage.space), stage.rules())
    assert len(before[0].servers) > len(before[0].addresses) > 0, "else this test says nothing"
    with unnoticed(stage, SLOW, after=2) as load:
        load.mark("kproxy")
        stage.start("ipvs")
        assert [line["transactions"] for line in synced(stage)] == [0, 0]
        assert (shown(stage.space), stage.rules()) == before
