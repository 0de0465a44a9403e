"""A node of its own for every test, on each backend, with a record of all that is handed to iptables-restore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kproxy.lab.deployment import Deployment, deployment
from kproxy.lab.namespaces import unavailable
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.model.plans import Family

ALIVE = [s for s in SCENARIOS if s.name in ("cluster-ip", "node-port-local", "affinity", "several-ports")]

# In the place of iptables-restore: keeps what it was given, and then is iptables-restore, with the same process id.
RECORDER = """#!/bin/sh
given=$(mktemp "$RECORDS/XXXXXX")
cat > "$given"
exec {real} "$@" < "$given"
"""


@dataclass(slots=True)
class Watched:
    """A deployed, and the folder with one file for each restore."""

    deployed: Deployment
    records: Path

    def restart(self) -> None:
        """Start the proxy again, and wait until it has compared everything."""
        start(self.deployed)

    def written(self) -> list[str]:
        """The restores since the last call."""
        files = sorted(self.records.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        texts = [path.read_text() for path in files]
        for path in files:
            path.unlink()
        return [text for text in texts if text.strip()]


@pytest.fixture(params=["nft", "legacy"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    backend = request.param
    tools = (f"iptables-{backend}-restore", f"ip6tables-{backend}-restore")
    reason = unavailable(tools)
    if reason:
        pytest.skip(reason)
    for name in ("deployed", "records", "commands"):
        (tmp_path / name).mkdir()
    for tool in tools:
        path = tmp_path / "commands" / tool
        path.write_text(RECORDER.format(real=shutil.which(tool)))
        path.chmod(0o755)
    with deployment(tmp_path / "deployed", backend, scenarios=ALIVE, start=False) as under_way:
        under_way.proxy.environment |= {
            "PATH": f"{tmp_path / 'commands'}:{os.environ['PATH']}",
            "RECORDS": str(tmp_path / "records"),
        }
        start(under_way)
        yield Watched(under_way, tmp_path / "records")


def start(under_way: Deployment) -> None:
    """Start the proxy and wait until it has synced both families, whatever was in the kernel before."""
    under_way.proxy.start()
    under_way.proxy.await_ready(lambda: under_way.proxy.synced() == len(Family))
