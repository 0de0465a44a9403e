"""What the suite reads: processes, traces, kubeconfigs, the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes
from benchmarks.processes import Stat, family, parse_stat, parse_status
from benchmarks.suite.machines import describe, processor
from benchmarks.suite.servers import redirected
from benchmarks.suite.tracing import written

CHILD = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\ntime.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"

NETLINK = "7<NETLINK:[NETFILTER:4711]>"
RAW = "4<RAW:[0.0.0.0:255]>"


@pytest.mark.parametrize("name", ["kproxy", "a b", "x) R 1 (y"])
def test_a_process_is_read_whatever_its_name(name: str) -> None:
    times = "20 5 300 40"
    text = f"42 ({name}) S 7 42 42 0 -1 4194304 100 200 0 0 {times} 20 0 3 0 12345 1000000 500"
    assert parse_stat(text) == Stat(42, 7, 365)


def test_a_family_is_a_process_with_all_its_descendants() -> None:
    stats = [Stat(9, 5, 0), Stat(5, 2, 0), Stat(2, 1, 0), Stat(3, 1, 0), Stat(4, 2, 0), Stat(1, 0, 0)]
    assert [stat.pid for stat in family(2, stats)] == [2, 5, 4, 9]
    assert family(6, stats) == []


def test_a_process_that_has_ended_holds_no_memory() -> None:
    assert parse_status("Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\n") == (200 * 1024, 300 * 1024)
    assert parse_status("Name:\tx\nState:\tZ (zombie)\n") == (0, 0)


def test_what_children_use_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
        try:
            end = time.monotonic() + 30
            while processes.usage(parent.pid).cpu < 0.2 and time.monotonic() < end:
                time.sleep(0.05)
            usage = processes.usage(parent.pid)
        finally:
            for pid in reversed(processes.members(parent.pid)):
                os.kill(pid, 9)
    assert 0.2 <= usage.cpu < 10
    assert len(usage.resident) == 2
    assert all(size > 1_000_000 for size in usage.resident.values())
    assert processes.usage(parent.pid).cpu == 0


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([f"10 sendto({NETLINK}, 0x55, 532, 0, 0x7f, 12) = 532"], 532),
        ([f"10 sendmsg({NETLINK}, 0x7ffc, 0) = 100", f"11 sendto({NETLINK}, 0x1, 20, 0, NULL, 0) = 20"], 120),
        ([f"10 sendmsg({NETLINK}, 0x7ffc, 0) = -1 ENOBUFS (No buffer space available)"], 0),
        (["10 sendto(5<TCP:[10.255.1.6:1->10.255.1.1:2]>, 0x1, 90, 0, NULL, 0) = 90"], 0),
        (["10 write(2</tmp/proxy.log>, 0x1, 80) = 80", "10 write(8<UNIX-STREAM:[1->2]>, 0x1, 9) = 9"], 0),
        ([f"10 setsockopt({RAW}, SOL_IP, IPT_SO_SET_REPLACE, 0x55, 70000) = 0"], 70000),
        ([f"10 setsockopt({RAW}, SOL_IP, 0x40 /* IP_??? */, 0x55, 70000) = 0"], 70000),
        ([f"10 setsockopt({RAW}, SOL_IPV6, IP6T_SO_SET_ADD_COUNTERS, 0x55, 300) = 0"], 300),
        ([f"10 setsockopt({RAW}, SOL_IP, IP_TTL, 0x55, 4) = 0"], 0),
        ([f"10 setsockopt({RAW}, SOL_SOCKET, SO_SNDBUF, 0x55, 4) = 0"], 0),
        (
            [
                f"10 sendmsg({NETLINK}, 0x7ffc, 0 <unfinished ...>",
                f"11 sendto({NETLINK}, 0x1, 20, 0, NULL, 0) = 20",
                "10 <... sendmsg resumed>)            = 100",
            ],
            120,
        ),
        (["10 <... sendmsg resumed>) = 100", "10 +++ exited with 0 +++", ""], 0),
    ],
)
def test_bytes_that_reach_the_kernels_tables_are_counted(lines: list[str], count: int) -> None:
    assert written(lines) == count


def kubeconfig(server: str, **more: Any) -> dict[str, Any]:
    return {"clusters": [{"name": "c", "cluster": {"server": server, **more}}], "users": [{"name": "u", "user": {}}]}


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("http://127.0.0.1:8080", {"server": "http://10.0.0.1:99"}),
        (
            "https://api.example:6443/k8s/c-1",
            {"server": "https://10.0.0.1:99/k8s/c-1", "tls-server-name": "api.example"},
        ),
    ],
)
def test_a_kubeconfig_is_led_through_the_relay_under_the_servers_own_name(
    server: str, expected: dict[str, str]
) -> None:
    given = kubeconfig(server)
    assert redirected(given, "10.0.0.1", 99, Path("/etc"))["clusters"][0]["cluster"] == expected
    assert given == kubeconfig(server)


def test_a_kubeconfig_keeps_a_name_that_it_gives_and_its_files_are_found_from_anywhere() -> None:
    given = kubeconfig("https://1.2.3.4", **{"tls-server-name": "real", "certificate-authority": "ca.crt"})
    given["users"][0]["user"] = {"client-certificate": "/abs/tls.crt", "tokenFile": "token"}
    made = redirected(given, "10.0.0.1", 99, Path("/etc/kube"))
    assert made["clusters"][0]["cluster"]["tls-server-name"] == "real"
    assert made["clusters"][0]["cluster"]["certificate-authority"] == "/etc/kube/ca.crt"
    assert made["users"][0]["user"] == {"client-certificate": "/abs/tls.crt", "tokenFile": "/etc/kube/token"}


@pytest.mark.parametrize(
    ("text", "name"),
    [("processor\t: 0\nmodel name\t: Some CPU @ 3GHz\n", "Some CPU @ 3GHz"), ("Model\t\t: Board\n", "Board")],
)
def test_the_processor_is_named(text: str, name: str) -> None:
    assert processor(text) == name


def test_the_machine_is_described_in_full() -> None:
    assert {"processor", "cores", "memory", "kernel", "system", "Python", "kproxy"} <= set(describe())
    assert all(describe().values())
