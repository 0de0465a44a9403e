"""userspace mode's forwarder dies: another takes its place, and every Service is served again."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy.lab.deployment import Deployment
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.model.plans import Family

SOON = 60


def children(of: int) -> list[int]:
    """The processes that a process has started. Each thread lists its own; one may end while we look."""
    found: list[int] = []
    for task in Path(f"/proc/{of}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


@pytest.mark.parametrize("healing", ["userspace"], indirect=True)
def test_all_is_served_by_its_successor(healing: Deployment) -> None:
    before = children(healing.proxy.pid)
    assert before
    os.kill(before[0], signal.SIGKILL)
    assert wait_for(lambda: not set(before) & set(children(healing.proxy.pid)), SOON), "all of its processes go"
    alive = [path.stem for path in healing.manifests.folder.glob("*.yaml") if path.stem != "nodes"]
    assert wait_for(lambda: bool(children(healing.proxy.pid)), SOON), healing.proxy.tail()
    served = [scenario for scenario in SCENARIOS if scenario.name in alive and scenario.name != "no-endpoints"]
    assert served
    assert wait_for(lambda: all(healing.serves(scenario) for scenario in served), SOON), healing.proxy.tail()
    assert [faults for family in Family for s in served if (faults := healing.faults(s, family))] == []
