"""Names and types of ipsets."""

from __future__ import annotations

import pytest

from kproxy.model.plans import Family
from kproxy.modes.ipvs import names

SOME_TYPES = {
    "KUBE-LOOP-BACK": "hash:ip,port,ip",
    "KUBE-CLUSTER-IP": "hash:ip,port",
    "KUBE-NODE-PORT-TCP": "bitmap:port",
    "KUBE-NODE-PORT-SCTP-HASH": "hash:ip,port",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "KUBE-LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "KUBE-HEALTH-CHECK-NODE-PORT": "bitmap:port",
    "KUBE-IPVS-IPS": "hash:ip",
}


def test_types() -> None:
    found = dict(names.sets(Family.IPV4))
    assert {name: found[name] for name in SOME_TYPES} == SOME_TYPES
    assert len(found) == 17


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("CLUSTER-IP", "KUBE-6-CLUSTER-IP"),
        ("LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID"),
        ("NODE-PORT-LOCAL-SCTP-HASH", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"),
    ],
)
def test_ipv6_names_are_cut_to_what_the_kernel_takes(short: str, full: str) -> None:
    assert names.set_name(short, Family.IPV6) == full


def test_no_two_sets_share_a_name() -> None:
    every = [name for family in Family for name, _ in names.sets(family)]
    assert len(set(every)) == len(every)
    assert max(map(len, every)) <= 31
