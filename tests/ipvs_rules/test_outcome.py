"""All objects of a family as JSON, and as texts for the kernel's own tools; ports that no case of kube-proxy has."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.ipvs.native import Outcome, outcome
from tests.ipvs_rules.plans import node_settings, port


def made(settings: Settings, *plans: ServicePlan) -> Outcome:
    return outcome(((plan.key, plan) for plan in plans), settings)


def sections(text: str) -> dict[str, list[str]]:
    """The lines under each tool's header."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            found[line[2:]] = []
        else:
            found[list(found)[-1]].append(line)
    return found


def test_json_has_the_keys_and_forms_that_other_programs_read() -> None:
    values: Any = made(node_settings(), port(cluster=(1, 2), all_local=(1,), affinity_seconds=60)).json()
    assert len(values["ipsets"]) == 17
    assert filled(values) == {
        "KUBE-CLUSTER-IP": ["10.96.0.1,tcp:80"],
        "KUBE-IPVS-IPS": ["10.96.0.1"],
        "KUBE-LOOP-BACK": ["10.244.1.1,tcp:8080,10.244.1.1"],
    }
    assert values["virtualServers"] == [
        {
            "protocol": "TCP",
            "address": "10.96.0.1",
            "port": 80,
            "scheduler": "rr",
            "flags": 1,
            "timeout": 60,
            "realServers": ["10.244.1.1:8080 weight=1", "10.244.1.2:8080 weight=1"],
        }
    ]
    assert values["kubeIpvs0"] == ["10.96.0.1"]
    assert str(values["rules"]).startswith("*filter\n:INPUT ACCEPT [0:0]\n")
    assert list(values) == ["rules", "virtualServers", "ipsets", "kubeIpvs0"]


def test_real_servers_of_ipv6_stand_in_brackets() -> None:
    values: Any = made(node_settings(Family.IPV6), port(family=Family.IPV6, cluster=(1,))).json()
    assert [v["realServers"] for v in values["virtualServers"]] == [["[fd00:244:1::1]:8080 weight=1"]]


def test_native_text_has_a_section_a_tool() -> None:
    found = sections(made(node_settings(scheduler="mh"), port(cluster=(1,), affinity_seconds=60)).native())
    assert list(found) == ["ipvsadm -R", "ipset restore", "ip -force -batch -", "iptables-restore --noflush"]
    assert found["ipvsadm -R"] == [
        "-A -t 10.96.0.1:80 -s mh -p 60 -b mh-port",
        "-a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1",
    ]
    assert "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535" in found["ipset restore"]
    assert "create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536" in found["ipset restore"]
    assert "add KUBE-CLUSTER-IP 10.96.0.1,tcp:80" in found["ipset restore"]
    assert found["ip -force -batch -"] == ["link add kube-ipvs0 type dummy", "address add 10.96.0.1/32 dev kube-ipvs0"]
    assert found["iptables-restore --noflush"][-1] == "COMMIT"


@pytest.mark.parametrize(
    ("protocol", "option"), [(Protocol.TCP, "-t"), (Protocol.UDP, "-u"), (Protocol.SCTP, "--sctp-service")]
)
def test_native_text_of_ipv6(protocol: Protocol, option: str) -> None:
    found = sections(made(node_settings(Family.IPV6), port(protocol, Family.IPV6, cluster=(1,))).native())
    assert found["ipvsadm -R"] == [
        f"-A {option} [fd00:96::1]:80 -s rr",
        f"-a {option} [fd00:96::1]:80 -r [fd00:244:1::1]:8080 -m -w 1",
    ]
    assert "create KUBE-6-IPVS-IPS hash:ip family inet6 hashsize 1024 maxelem 65536" in found["ipset restore"]
    assert "address add fd00:96::1/128 dev kube-ipvs0" in found["ip -force -batch -"]
    assert "ip6tables-restore --noflush" in found


def test_an_address_that_two_services_ask_for_is_the_firsts_by_name() -> None:
    """Whatever the order in which they became known."""
    both = [port(name=name, cluster=(n,), external_ips=("198.51.100.7",)) for n, name in enumerate("ab")]
    one, other = made(node_settings(), *both), made(node_settings(), *reversed(both))
    assert one == other
    found = {str(s.server.key): [str(r.key) for r in s.reals] for s in one.served}
    assert found["TCP 198.51.100.7:80"] == ["10.244.1.0:8080"]


def test_a_ports_own_rules_stand_in_their_chain() -> None:
    rules = made(node_settings(), port(load_balancer_ips=("203.0.113.5",), source_ranges=("10.0.0.0/8",))).rules
    assert "-A KUBE-IPVS-OUT-FILTER -s 203.0.113.5/32 -m ipvs --vproto tcp --vaddr 203.0.113.5" in rules
    assert "-A KUBE-PROXY-FIREWALL -m comment" in rules


def filled(values: Any) -> dict[str, list[str]]:
    return {name: entries for name, entries in values["ipsets"].items() if entries}


def test_a_node_port_that_no_address_of_the_node_takes_is_served_nowhere() -> None:
    plan = port(cluster=(1,), node_port=30080, health_check_node_port=32000)
    values: Any = made(node_settings(node_port_ips=()), plan).json()
    assert [server["port"] for server in values["virtualServers"]] == [80]
    assert filled(values) == {
        "KUBE-CLUSTER-IP": ["10.96.0.1,tcp:80"],
        "KUBE-IPVS-IPS": ["10.96.0.1"],
        "KUBE-HEALTH-CHECK-NODE-PORT": ["32000"],
    }


def test_an_address_that_is_external_and_a_load_balancers_is_served_and_bound_once() -> None:
    plan = port(cluster=(1,), external_ips=("203.0.113.5",), load_balancer_ips=("203.0.113.5", "203.0.113.6"))
    values: Any = made(node_settings(), plan).json()
    ips = ["10.96.0.1", "203.0.113.5", "203.0.113.6"]
    assert [server["address"] for server in values["virtualServers"]] == values["kubeIpvs0"] == ips
    assert filled(values) == {
        "KUBE-CLUSTER-IP": ["10.96.0.1,tcp:80"],
        "KUBE-EXTERNAL-IP": ["203.0.113.5,tcp:80"],
        "KUBE-LOAD-BALANCER": ["203.0.113.5,tcp:80", "203.0.113.6,tcp:80"],
        "KUBE-IPVS-IPS": ips,
    }


@pytest.mark.parametrize(
    ("family", "name", "balancer", "host", "length"),
    [
        (Family.IPV4, "KUBE-LOAD-BALANCER-SOURCE-CIDR", "203.0.113.5", "10.1.2.3", 32),
        (Family.IPV6, "KUBE-6-LOAD-BALANCER-SOURCE-CID", "2001:db8::5", "fd00::3", 128),
    ],
)
def test_a_source_range_of_one_host_is_an_entry_without_a_length(
    family: Family, name: str, balancer: str, host: str, length: int
) -> None:
    plan = port(family=family, load_balancer_ips=(balancer,), source_ranges=(f"{host}/{length}",))
    assert filled(made(node_settings(family), plan).json())[name] == [f"{balancer},tcp:80,{host}"]


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("CLUSTER-IP", "KUBE-6-CLUSTER-IP"),
        ("LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID"),
        ("NODE-PORT-LOCAL-SCTP-HASH", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"),
    ],
)
def test_ipv6_names_of_sets_are_cut_to_the_kernels_limit(short: str, full: str) -> None:
    assert names.set_name(short, Family.IPV6) == full


def test_no_two_sets_share_a_name() -> None:
    every = [name for family in Family for name, _ in names.sets(family)]
    assert len(set(every)) == len(every) == 34


def test_a_cluster_without_services() -> None:
    empty = made(node_settings())
    assert (empty.served, empty.addresses) == ((), ())
    assert not any(empty.sets.values())
    assert ":KUBE-IPVS-OUT-FILTER - [0:0]" in empty.rules
