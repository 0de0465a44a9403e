"""What one Service port puts into the maps and sets, frontend by frontend."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.plans import Family, PortKey, Protocol
from kproxy.modes.nftables.render import render_port
from kproxy.netfilter.objects import Element
from tests.nftables.plans import address, build_plan, elements, layout_of, settings, written

WEB = build_plan().cluster_ip
LB, EXT = "203.0.113.5", "198.51.100.7"
LOCAL: dict[str, Any] = {"external_local": True, "cluster": (1, 2), "local": (2,)}

# fields of the plan; services; node-ports
VERDICTS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "a cluster IP uses the chain for as many endpoints": ({}, [f"{WEB} . tcp . 80 : goto cluster-2"], []),
    "one endpoint": ({"cluster": (4,)}, [f"{WEB} . tcp . 80 : goto cluster-1"], []),
    "no endpoints: refused at every frontend": (
        {"cluster": (), "node_port": 30000, "external_ips": (EXT,), "load_balancer_ips": (LB,)},
        [f"{ip} . tcp . 80 : goto refuse" for ip in (WEB, EXT, LB)],
        ["tcp . 30000 : goto refuse"],
    ),
    "outside addresses and node ports": (
        {"node_port": 30000, "external_ips": (EXT,), "load_balancer_ips": (LB,)},
        [f"{WEB} . tcp . 80 : goto cluster-2", *(f"{ip} . tcp . 80 : goto external-2" for ip in (EXT, LB))],
        ["tcp . 30000 : goto node-2"],
    ),
    "external policy Local": (
        {**LOCAL, "node_port": 30000, "load_balancer_ips": (LB,)},
        [f"{WEB} . tcp . 80 : goto cluster-2", f"{LB} . tcp . 80 : goto local-2-1"],
        ["tcp . 30000 : goto node-local-2-1"],
    ),
    "external policy Local, all elsewhere": (
        {"external_local": True, "external_ips": (EXT,)},
        [f"{WEB} . tcp . 80 : goto cluster-2", f"{EXT} . tcp . 80 : goto local-2-0"],
        [],
    ),
    "internal policy Local": (
        {"internal_local": True, "cluster": (1, 2, 3), "local": (3,), "node_port": 30000},
        [f"{WEB} . tcp . 80 : goto cluster-1"],
        ["tcp . 30000 : goto node-3"],
    ),
    "internal policy Local, all elsewhere": (
        {"internal_local": True, "cluster": (1,), "node_port": 30000},
        [f"{WEB} . tcp . 80 : drop"],
        ["tcp . 30000 : goto node-1"],
    ),
    "source ranges: the load balancer's addresses alone": (
        {"load_balancer_ips": (LB,), "external_ips": (EXT,), "node_port": 30000, "source_ranges": ("10.0.0.0/8",)},
        [
            f"{WEB} . tcp . 80 : goto cluster-2",
            f"{EXT} . tcp . 80 : goto external-2",
            f"{LB} . tcp . 80 : goto external-2-firewall",
        ],
        ["tcp . 30000 : goto node-2"],
    ),
    "source ranges that hold everything": (
        {"load_balancer_ips": (LB,), "source_ranges": ("10.0.0.0/8", "0.0.0.0/0")},
        [f"{WEB} . tcp . 80 : goto cluster-2", f"{LB} . tcp . 80 : goto external-2"],
        [],
    ),
    "an address given twice counts as the first it is": (
        {"external_ips": (WEB, LB), "load_balancer_ips": (LB,), "source_ranges": ("10.0.0.0/8",)},
        [f"{WEB} . tcp . 80 : goto cluster-2", f"{LB} . tcp . 80 : goto external-2"],
        [],
    ),
    "UDP": ({"protocol": Protocol.UDP, "port": 53}, [f"{WEB} . udp . 53 : goto cluster-2"], []),
    "SCTP": (
        {"protocol": Protocol.SCTP, "node_port": 30000},
        [f"{WEB} . sctp . 80 : goto cluster-2"],
        ["sctp . 30000 : goto node-2"],
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_each_frontend_uses_the_chain_of_its_kind_and_size(case: str) -> None:
    fields, services, node_ports = VERDICTS[case]
    layout = layout_of(build_plan(**fields))
    assert elements(layout, "services") == services
    assert elements(layout, "node-ports") == node_ports


def test_slots_hold_all_endpoints_and_behind_them_the_local_ones() -> None:
    layout = layout_of(build_plan(**LOCAL, node_port=30000, external_ips=(EXT,)))
    ends = ["10.244.0.1 . 8080", "10.244.0.2 . 8080", "10.244.0.2 . 8080"]
    assert elements(layout, "endpoints") == [
        *(f"{WEB} . tcp . 80 . {slot} : {end}" for slot, end in enumerate(ends[:2])),
        *(f"{EXT} . tcp . 80 . {slot} : {end}" for slot, end in enumerate(ends)),
    ]
    assert elements(layout, "node-port-endpoints") == [f"tcp . 30000 . {slot} : {end}" for slot, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("ranges", "node_within", "expected"),
    [
        (("10.0.0.0/8", "172.30.0.0/24"), False, ["10.0.0.0/8", "172.30.0.0/24"]),
        (("10.1.0.0/16", "10.0.0.0/8"), False, ["10.0.0.0/8"]),  # the kernel refuses ranges that overlap
        (("10.0.0.0/9", "10.128.0.0/9"), False, ["10.0.0.0/8"]),
        (("10.0.0.0/8",), True, ["10.0.0.0/8", f"{LB}/32"]),  # the node may have the address itself
    ],
)
def test_sources_that_may_use_a_load_balancer(ranges: tuple[str, ...], node_within: bool, expected: list[str]) -> None:
    plan = build_plan(load_balancer_ips=(LB,), source_ranges=ranges, node_in_source_ranges=node_within)
    assert elements(layout_of(plan), "sources") == [f"{LB} . tcp . 80 . {cidr}" for cidr in expected]


def test_cluster_ips_and_pods_have_one_element_however_many_ports_need_them() -> None:
    web, dns = build_plan(), build_plan("dns")
    layout = layout_of(web, build_plan(protocol=Protocol.UDP), dns)
    assert sorted(elements(layout, "cluster-ips")) == sorted([web.cluster_ip, dns.cluster_ip])
    assert elements(layout, "hairpins") == ["10.244.0.1 . 10.244.0.1", "10.244.0.2 . 10.244.0.2"]


def test_a_frontend_that_two_ports_claim_belongs_to_the_first_entirely() -> None:
    first = build_plan("a", external_ips=(EXT,), cluster=(1,))
    second = build_plan("b", external_ips=(EXT,), cluster=(2, 3))
    layout = layout_of(second, first)
    assert f"{EXT} . tcp . 80 : goto external-1" in elements(layout, "services")
    assert [e for e in elements(layout, "endpoints") if e.startswith(EXT)] == [
        f"{EXT} . tcp . 80 . 0 : 10.244.0.1 . 8080"
    ]
    assert "external-2" not in layout.chains


def test_ipv6() -> None:
    layout = layout_of(build_plan(family=Family.IPV6, cluster=(1,)))
    ip = address(Family.IPV6, 96, 1 + sum(b"web") % 200)
    assert elements(layout, "services") == [f"{ip} . tcp . 80 : goto cluster-1"]
    assert elements(layout, "endpoints") == [f"{ip} . tcp . 80 . 0 : fd00:244::1 . 8080"]


def test_a_verdict_is_commented_with_its_port() -> None:
    layout = layout_of(build_plan())
    assert [e.comment for e in layout.elements["services"]] == ["default/web:http"]


def test_the_longest_names_are_cut_to_what_nft_takes() -> None:
    plan = build_plan(key=PortKey("n" * 63, "s" * 63, "p" * 63, Protocol.TCP))
    (element,) = layout_of(plan).elements["services"]
    assert len(element.comment) == 128
    assert str(plan.key).startswith(element.comment)


def changed(before: tuple[Element, ...], after: tuple[Element, ...]) -> set[str]:
    return {written(e) for e in {*before} ^ {*after}}


def test_an_endpoint_that_takes_the_place_of_another_changes_elements_only() -> None:
    old, new = (render_port(build_plan(cluster=ends), settings()) for ends in ((1, 2), (1, 3)))
    assert changed(old.claims[0].elements, new.claims[0].elements) == {
        f"{WEB} . tcp . 80 . 1 : 10.244.0.2 . 8080",
        f"{WEB} . tcp . 80 . 1 : 10.244.0.3 . 8080",
    }
    assert changed(old.shared, new.shared) == {"10.244.0.2 . 10.244.0.2", "10.244.0.3 . 10.244.0.3"}
    assert old.claims[0].needs == new.claims[0].needs
