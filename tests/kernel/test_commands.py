"""Commands run to their end in the C locale; every failure is a CommandError with the reason."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy.errors import CommandError
from kproxy.kernel.commands import MISSING, REMEMBERED, TIMED_OUT, TOO_LONG, Commands, checked
from tests.fakes.clocks import ManualClock


@pytest.fixture
def commands() -> Commands:
    return Commands({"KPROXY_EXTRA": "yes", "LC_ALL": "de_DE"})


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_input_is_passed_and_both_streams_come_back(commands: Commands) -> None:
    code = "from sys import *; stdout.buffer.write(stdin.buffer.read()[::-1]); stderr.write('oops'); exit(3)"
    done = commands.run(python(code), b"\xff\x00abc")
    assert (done.status, done.stdout, done.stderr, done.ok) == (3, b"cba\x00\xff", "oops", False)


def test_without_input_the_command_reads_an_empty_one(commands: Commands) -> None:
    assert commands.run(["cat"]).stdout == b""


def test_a_command_that_ignores_a_large_input_does_no_harm(commands: Commands) -> None:
    assert commands.run(["true"], b"x" * 1_000_000).ok


def test_messages_are_in_the_c_locale_and_the_extra_environment_is_there(commands: Commands) -> None:
    done = commands.run(["sh", "-c", "echo $LC_ALL $LANG $KPROXY_EXTRA"])
    assert done.stdout == b"C C yes\n"


def test_descriptors_are_not_inherited(commands: Commands) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        assert not commands.run(["test", "-e", f"/proc/self/fd/{writer}"]).ok
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("argv", "status", "reason"),
    [
        (["kproxy-no-such-command"], MISSING, "No such file"),
        (["/"], 126, "Permission denied"),
        (["true", "a\0b"], 126, "null byte"),
    ],
)
def test_a_command_that_cannot_start(commands: Commands, argv: list[str], status: int, reason: str) -> None:
    with pytest.raises(CommandError, match=reason) as failure:
        commands.run(argv)
    assert failure.value.status == status
    assert "\n" not in str(failure.value)


STUCK = {
    "sleeping": "echo stuck >&2; exec sleep 60",
    "ignoring SIGTERM": "trap '' TERM; echo stuck >&2; while :; do sleep 0.05; done",
    "waiting for its child": "echo stuck >&2; sleep 60; exit 0",
    "with closed streams": "echo stuck >&2; exec >&- 2>&-; exec sleep 60",
    "writing errors for ever": "echo stuck >&2; exec yes >&2",
}


@pytest.mark.parametrize("script", STUCK.values(), ids=STUCK)
def test_a_command_that_takes_too_long_is_killed_with_its_children(commands: Commands, script: str) -> None:
    start = time.monotonic()
    with pytest.raises(CommandError, match=r"longer than 0\.3 s: stuck") as failure:
        commands.run(["sh", "-c", script], timeout=0.3)
    assert failure.value.status == TIMED_OUT
    assert time.monotonic() - start < 5
    (child,) = commands.recent_pids() - Commands().recent_pids()
    assert not os.path.exists(f"/proc/{child}")
    assert not _members(child)


def _members(group: int) -> list[str]:
    """The processes of a process group that live, each with its state."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = path.read_text().rpartition(") ")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append(f"{path}: {state}")
    return found


@pytest.mark.parametrize(
    "script", ["echo fine; sleep 5 &", "echo fine; (for i in $(seq 500); do echo more; sleep 0.01; done) &"]
)
def test_what_a_command_leaves_running_is_not_waited_for(commands: Commands, script: str) -> None:
    start = time.monotonic()
    done = commands.run(["sh", "-c", script], timeout=30)
    assert (done.status, done.stdout[:5]) == (0, b"fine\n")
    assert time.monotonic() - start < 4


def test_output_without_end_is_cut_off(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy.kernel.commands.OUTPUT_LIMIT", 1_000_000)
    assert len(commands.run(["head", "-c", "1000000", "/dev/zero"]).stdout) == 1_000_000
    with pytest.raises(CommandError, match="printed more than 1000000 bytes") as failure:
        commands.run(["yes"], timeout=30)
    assert failure.value.status == TOO_LONG


def test_only_the_beginning_of_long_errors_is_kept(commands: Commands) -> None:
    done = commands.run(["sh", "-c", "echo begin >&2; head -c 5000000 /dev/zero >&2; echo out"])
    assert (done.stdout, done.stderr[:6], len(done.stderr) < 200_000) == (b"out\n", "begin\n", True)


def test_commands_of_two_threads_do_not_wait_for_each_other() -> None:
    commands = Commands()
    with ThreadPoolExecutor(8) as pool:
        slow = pool.submit(commands.run, ["sleep", "3"])
        results = [pool.submit(commands.run, ["cat"], bytes([n]) * 200_000) for n in range(24)]
        asked = [pool.submit(commands.recent_pids) for _ in range(24)]
        assert [r.result().stdout for r in results] == [bytes([n]) * 200_000 for n in range(24)]
        assert all(os.getpid() in a.result() for a in asked)
        assert not slow.done()
        assert {r.result().pid for r in results} <= commands.recent_pids()


def test_checked_raises_with_what_the_command_said(commands: Commands) -> None:
    assert checked(commands, ["echo", "fine"]).stdout == b"fine\n"
    with pytest.raises(CommandError, match="exit status 4: bad line 7"):
        checked(commands, ["sh", "-c", "echo bad line 7 >&2; exit 4"])


def test_which_finds_commands_of_the_path_only(commands: Commands) -> None:
    assert commands.which("sh") is not None
    assert commands.which("kproxy-no-such-command") is None


def test_children_are_remembered_while_they_run_and_a_little_longer() -> None:
    clock = ManualClock()
    commands = Commands(clock=clock.monotonic)
    ourselves = commands.recent_pids()
    assert {os.getpid(), threading.get_native_id()} <= ourselves
    first = commands.run(["true"]).pid
    clock.advance(REMEMBERED - 1)
    second = commands.run(["true"]).pid
    assert commands.recent_pids() == {*ourselves, first, second}
    clock.advance(1)
    assert commands.recent_pids() == {*ourselves, second}
    clock.advance(REMEMBERED)
    assert commands.recent_pids() == ourselves


def test_a_child_that_runs_for_long_is_ours_all_the_time() -> None:
    clock = ManualClock()
    commands = Commands(clock=clock.monotonic)
    before = commands.recent_pids()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        started, pipe = Path(folder, "started"), Path(folder, "pipe")
        os.mkfifo(pipe)
        script = 'touch "$1"; read line < "$2"'
        done = pool.submit(commands.run, ["sh", "-c", script, "sh", str(started), str(pipe)])
        while not started.exists():
            time.sleep(0.01)
        clock.advance(10 * REMEMBERED)
        meanwhile = commands.recent_pids()
        pipe.write_text("\n")
        assert done.result().pid in meanwhile - before
