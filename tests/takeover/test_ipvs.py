"""IPVS mode comes, ends, dies and goes, and no client notices. Slower than elsewhere: the processor is emulated."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.loads import Pace
from tests.takeover.test_transitions import synced, unnoticed

if TYPE_CHECKING:
    from tests.takeover.stages import Stage

pytestmark = pytest.mark.ipvs_kernel

SLOW = Pace(rate=10, held=10, flows=4, beat=2, patience=15)


def test_from_kube_proxys_rules_a_kill_and_back(stage: Stage) -> None:
    stage.kube_proxy("iptables")
    with unnoticed(stage, SLOW, after=2) as load:
        load.mark("ipvs mode")
        stage.start("ipvs")
        stage.stop(with_signal=signal.SIGKILL)
        load.mark("the start after a kill")
        stage.start("ipvs")
        assert [line["transactions"] for line in synced(stage)] == [0, 0]
        stage.stop()
        load.mark("iptables mode")
        stage.start("iptables")
