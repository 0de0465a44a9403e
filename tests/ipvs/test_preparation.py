"""How a host is prepared for IPVS mode, and the error when it cannot be."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.config import defaults
from kproxy.config.durations import MINUTE, SECOND, Duration
from kproxy.config.fields import IPVS, ProxyMode
from kproxy.errors import KernelError
from kproxy.kernel.commands import Commands
from kproxy.lab.namespaces import Namespace
from kproxy.modes.ipvs.driver import prepare_ipvs

pytestmark = pytest.mark.ipvs_kernel

ARP = ("net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce")
ALWAYS = (
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
    "net.ipv4.ip_forward",
)


def prepare(space: Namespace, ipvs: IPVS) -> None:
    space.call(prepare_ipvs, Commands(), replace(defaults.default(ProxyMode.IPVS), ipvs=ipvs))


def values(space: Namespace, *names: str) -> list[str]:
    return space.run(["sysctl", "-n", *names]).split()


def test_sysctls_and_timeouts_are_set_and_arp_is_left_alone(space: Namespace) -> None:
    space.run(["sysctl", "-w", "net.ipv4.vs.expire_quiescent_template=0"])
    times = IPVS(tcp_timeout=Duration(20 * MINUTE), udp_timeout=Duration(7 * SECOND))
    tcpfin = space.run(["ipvsadm", "-L", "--timeout"]).split()[-2]
    prepare(space, times)
    assert values(space, *ALWAYS) == ["1"] * len(ALWAYS)
    assert values(space, *ARP) == ["0", "0"]
    assert space.run(["ipvsadm", "-L", "--timeout"]).split()[-3:] == ["1200", tcpfin, "7"]


def test_with_strict_arp_the_node_keeps_quiet_about_the_addresses_of_services(space: Namespace) -> None:
    prepare(space, IPVS(strict_arp=True, scheduler="mh"))
    assert values(space, *ARP) == ["1", "2"]


def test_an_unknown_scheduler_is_reported_in_one_line(space: Namespace) -> None:
    with pytest.raises(KernelError) as told:
        prepare(space, IPVS(scheduler="none-such", strict_arp=True))
    assert str(told.value) == "ipvs.scheduler: this kernel has no scheduler none-such, nor a module ip_vs_none-such"
    assert values(space, *ARP) == ["0", "0"], "nothing was touched"
