"""Kernel parameters are written only where they differ; each that cannot be written is reported in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxy.errors import KernelError
from kproxy.kernel import sysctl
from kproxy.kernel.sysctl import HASHSIZE, ROUTE_LOCALNET, ConntrackSettings, SystemSysctls
from tests.fakes.sysctl import FakeSysctls

MAX = "net.netfilter.nf_conntrack_max"
KERNEL = {
    MAX: "65536",
    "net.netfilter.nf_conntrack_tcp_timeout_established": "432000",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "60",
    "net.netfilter.nf_conntrack_tcp_be_liberal": "0",
    "net.netfilter.nf_conntrack_udp_timeout": "30",
    "net.netfilter.nf_conntrack_udp_timeout_stream": "120",
    HASHSIZE: "65536",
}
SHORT = "net.netfilter.nf_conntrack_"


@pytest.mark.parametrize(
    ("settings", "cores", "written"),
    [
        pytest.param(ConntrackSettings(), 4, {}, id="nothing asked for"),
        pytest.param(ConntrackSettings(min=131072), 4, {}, id="a minimum alone is nothing"),
        pytest.param(ConntrackSettings(32768, 131072), 8, {MAX: "262144"}, id="so many for each core"),
        pytest.param(ConntrackSettings(32768, 131072), 1, {MAX: "131072"}, id="but not less than the minimum"),
        pytest.param(ConntrackSettings(32768, 65536), 2, {}, id="it is so already"),
        pytest.param(ConntrackSettings(4096, 0), 4, {MAX: "16384"}, id="fewer than the kernel has"),
        pytest.param(
            ConntrackSettings(131072), 4, {MAX: "524288", HASHSIZE: "131072"}, id="a larger table needs more buckets"
        ),
        pytest.param(
            ConntrackSettings(tcp_established=86400, tcp_close_wait=3600),
            4,
            {SHORT + "tcp_timeout_established": "86400", SHORT + "tcp_timeout_close_wait": "3600"},
            id="TCP timeouts",
        ),
        pytest.param(ConntrackSettings(tcp_be_liberal=True), 4, {SHORT + "tcp_be_liberal": "1"}, id="be liberal"),
        pytest.param(
            ConntrackSettings(udp=30, udp_stream=300), 4, {SHORT + "udp_timeout_stream": "300"}, id="one UDP timeout"
        ),
    ],
)
def test_the_conntrack_section(settings: ConntrackSettings, cores: int, written: dict[str, str]) -> None:
    fake = FakeSysctls(KERNEL)
    assert sysctl.apply_conntrack(fake, settings, cores) == []
    assert dict(fake.written) == written
    assert sysctl.apply_conntrack(fake, settings, cores) == []
    assert len(fake.written) == len(written)


def test_the_cores_of_this_process_count_when_none_are_given() -> None:
    fake = FakeSysctls(KERNEL)
    sysctl.apply_conntrack(fake, ConntrackSettings(max_per_core=100_000))
    assert fake.get(MAX) == str(100_000 * len(os.sched_getaffinity(0)))


def test_what_cannot_be_written_is_one_line_each_and_the_rest_is_done() -> None:
    fake = FakeSysctls({k: v for k, v in KERNEL.items() if k != SHORT + "udp_timeout"}, read_only={MAX, HASHSIZE})
    problems = sysctl.apply_conntrack(fake, ConntrackSettings(131072, udp=60, udp_stream=60), cores=4)
    assert problems == [
        f"{MAX} cannot be set to 524288: Read-only file system",
        f"{SHORT}udp_timeout cannot be set to 60: No such file or directory",
        f"{HASHSIZE} cannot be set to 131072: Read-only file system",
    ]
    assert fake.written == [(SHORT + "udp_timeout_stream", "60")]


def test_without_the_conntrack_module_the_hash_table_is_no_problem_of_its_own() -> None:
    problems = sysctl.apply_conntrack(FakeSysctls({}), ConntrackSettings(32768), cores=1)
    assert problems == [f"{MAX} cannot be set to 32768: No such file or directory"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (ROUTE_LOCALNET, "/proc/sys/net/ipv4/conf/all/route_localnet"),
        ("net/ipv4/conf/eth0.5/route_localnet", "/proc/sys/net/ipv4/conf/eth0.5/route_localnet"),
        (HASHSIZE, HASHSIZE),
    ],
)
def test_names_and_files(name: str, path: str) -> None:
    assert sysctl.path_of(name) == path


def test_the_running_kernel_is_written_only_when_it_differs(netns: None) -> None:
    kernel = SystemSysctls()
    before = kernel.get(ROUTE_LOCALNET)
    assert before == "0"
    assert sysctl.ensure(kernel, ROUTE_LOCALNET, 1)
    assert Path("/proc/sys/net/ipv4/conf/all/route_localnet").read_text() == "1\n"
    assert not sysctl.ensure(kernel, ROUTE_LOCALNET, 1)


def test_a_parameter_that_the_running_kernel_lacks() -> None:
    kernel = SystemSysctls()
    assert kernel.get("net.ipv4.no_such_thing") is None
    with pytest.raises(KernelError, match=r"net\.ipv4\.no_such_thing cannot be set to 1: No such file"):
        kernel.set("net.ipv4.no_such_thing", "1")


def test_a_value_that_the_running_kernel_refuses(netns: None) -> None:
    with pytest.raises(KernelError, match=r"route_localnet cannot be set to lots: Invalid argument"):
        SystemSysctls().set(ROUTE_LOCALNET, "lots")


ALWAYS = {
    "net.ipv4.vs.conntrack": 1,
    "net.ipv4.vs.expire_nodest_conn": 1,
    "net.ipv4.vs.expire_quiescent_template": 1,
    "net.ipv4.ip_forward": 1,
}
STRICT = {"net.ipv4.conf.all.arp_ignore": 1, "net.ipv4.conf.all.arp_announce": 2}
REUSE = {"net.ipv4.vs.conn_reuse_mode": 0}


@pytest.mark.parametrize(
    ("strict_arp", "kernel", "wanted"),
    [
        pytest.param(False, (6, 1), ALWAYS, id="a kernel of today"),
        pytest.param(True, (5, 9), ALWAYS | STRICT, id="strict ARP"),
        pytest.param(False, (5, 8), ALWAYS | REUSE, id="a kernel that delays reused ports"),
        pytest.param(True, (4, 19), ALWAYS | STRICT | REUSE, id="both"),
    ],
)
def test_what_ipvs_mode_needs(strict_arp: bool, kernel: tuple[int, int], wanted: dict[str, int]) -> None:
    assert dict(sysctl.ipvs_sysctls(strict_arp, kernel)) == wanted
