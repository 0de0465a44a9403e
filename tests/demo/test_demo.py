"""`kproxy demo` as a newcomer runs it: with all it needs, without, and interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kproxy.lab.namespaces import unavailable

NEEDS_NAMESPACES = pytest.mark.skipif(bool(reason := unavailable()), reason=reason)
KPROXY = (sys.executable, "-m", "kproxy", "demo")


def demo(before: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """The demo with standard output to a file, started by the command `before`."""
    env = {**os.environ, **environment}
    return subprocess.run([*before, *KPROXY], capture_output=True, text=True, timeout=60, env=env, check=False)


@NEEDS_NAMESPACES
def test_it_shows_rules_traffic_and_edits_and_leaves_nothing(tmp_path: Path) -> None:
    done = demo(TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "-A KUBE-SERVICES -d 10.96.0.80/32" in done.stdout
    for pods in (r"web-1 \d+  web-2 \d+  web-3 \d+", r"dns-1 60", r"web-1 60 +172\.30\.0\.100 \(client\)"):
        assert re.search(pods, done.stdout)
    assert re.search(r"leave no pod .* refused \d+ .* refusal, \d+ ms", done.stdout)
    assert re.search(r"first packet that proves it: \d+ ms at most", done.stdout)
    assert list(tmp_path.iterdir()) == []


@NEEDS_NAMESPACES
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(KPROXY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "What one Service has" in line:
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert errors.strip() == "kproxy: interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "environment", "reason"),
    [
        ((), {"PATH": ""}, "iptables-save, iptables-restore not found"),
        (("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"), {}, "cannot make a network namespace"),
    ],
    ids=["no iptables", "no privilege"],
)
def test_without_namespaces_it_shows_the_rules_instead(
    before: Sequence[str], environment: dict[str, str], reason: str
) -> None:
    done = demo(before, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    first, rest = done.stdout.split("\n", 1)
    assert first.startswith("No cluster can be built here: ")
    assert reason in first
    assert "-A KUBE-SERVICES -d 10.96.0.80/32" in rest
    assert "-A KUBE-SERVICES -d fd00:96::80/128" in rest
