"""Counters are created once, keep their counts, and count what a rule counts into them."""

from __future__ import annotations

import socket
import subprocess

import pytest

from kproxy.kernel import nfacct
from kproxy.kernel.constants import INVALID_DROPPED, LOCALHOST_ACCEPTED


@pytest.fixture
def kernel(netns: None) -> None:
    if not nfacct.available():
        pytest.skip("this kernel has no nfacct counters")


def test_a_counter_is_there_after_it_was_made(kernel: None) -> None:
    assert nfacct.counters() == {}
    nfacct.ensure(INVALID_DROPPED)
    nfacct.ensure(LOCALHOST_ACCEPTED)
    assert nfacct.counters() == {
        "ct_state_invalid_dropped_pkts": nfacct.Counter(0, 0),
        "localhost_nps_accepted_pkts": nfacct.Counter(0, 0),
    }


def test_packets_are_counted_and_making_it_again_keeps_the_count(kernel: None) -> None:
    nfacct.ensure("packets")
    rule = "iptables-nft -A OUTPUT -p udp --dport 9 -m nfacct --nfacct-name packets"
    if subprocess.run(rule.split(), capture_output=True).returncode:
        pytest.skip("iptables here has no nfacct match")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(bytes(100), ("127.0.0.1", 9))
    nfacct.ensure("packets")
    assert nfacct.counters()["packets"] == nfacct.Counter(packets=3, bytes=3 * 128)


@pytest.mark.parametrize("name", ["", "x" * 32])
def test_a_name_that_the_kernel_cannot_hold(name: str) -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        nfacct.ensure(name)


def test_many_counters(kernel: None) -> None:
    names = {f"counter-{i}" for i in range(400)}
    for name in names:
        nfacct.ensure(name)
    assert set(nfacct.counters()) == names
