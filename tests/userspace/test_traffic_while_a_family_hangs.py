"""While every IPv6 command hangs, userspace mode forwards both families' traffic and programs IPv4's changes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from kproxy.lab.background_clients import Ask, asking
from kproxy.lab.deployment import deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import Probe, Via
from kproxy.model.plans import Family

pytestmark = [pytest.mark.root, pytest.mark.slow]

SERVED = tuple(scenario for scenario in SCENARIOS if scenario.name in ("cluster-ip", "node-port"))
NEW = next(scenario for scenario in SCENARIOS if scenario.name == "several-ports")
COMMANDS = [f"ip6tables{backend}{use}" for backend in ("", "-nft", "-legacy") for use in ("", "-save", "-restore")]
CALLER = Probe("caller", Via.CLUSTER_IP, ())
HANGS_FOR = 4.0


def hanging_commands(folder: Path, flag: Path) -> Path:
    """A folder of commands that wait while `flag` exists."""
    folder.mkdir()
    for name in COMMANDS:
        if real := shutil.which(name):
            script = folder / name
            script.write_text(f'#!/bin/sh\nwhile [ -e {flag} ]; do sleep 0.1; done\nexec {real} "$@"\n')
            script.chmod(0o755)
    return folder


def test_traffic_goes_on_and_the_other_family_is_programmed(tmp_path: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    flag, folder = tmp_path / "hang", tmp_path / "lab"
    folder.mkdir()
    commands = hanging_commands(tmp_path / "bin", flag)
    with deployment(folder, "nft", scenarios=SERVED, start=False, mode="userspace") as running:
        running.proxy.environment["PATH"] = f"{commands}:{os.environ['PATH']}"
        running.proxy.start()
        running.proxy.await_ready(lambda: all(running.serves(scenario) for scenario in SERVED))

        def answered(family: Family) -> bool:
            return isinstance(running.ask(CALLER, NEW, family, NEW.ports[0], 0.5), Answered)

        for scenario in SERVED:
            asks = [Ask(CALLER, port, family) for family in Family for port in scenario.ports]
            with asking(running, scenario, asks, 0.05) as record:
                flag.touch()
                try:
                    running.manifests.put(NEW.name, NEW.objects())
                    began = time.monotonic()
                    assert wait_for(lambda: answered(Family.IPV4), 30), running.proxy.tail()
                    time.sleep(max(0.0, began + HANGS_FOR - time.monotonic()))
                    assert not answered(Family.IPV6), "its commands hang"
                finally:
                    flag.unlink()
                assert wait_for(lambda: answered(Family.IPV6), 60), running.proxy.tail()
            assert record.failures == []
            assert len(record.answered) == len(asks)
            running.manifests.remove(NEW.name)
            for family in Family:
                assert wait_for(lambda family=family: not answered(family), 60)  # type: ignore[misc]
