"""What `kproxy render --mode userspace` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.model.node_info import DetectLocal, DetectLocalBy, NodeInfo, NodePortAddresses
from kproxy.model.plans import Family, Protocol
from kproxy.modes.settings import userspace_settings
from kproxy.modes.userspace.native import FIRST_PORT, outcome
from kproxy.modes.userspace.render import Settings
from tests.cli.test_render import HEADER, Files, render
from tests.plans import build_plan
from tests.userspace.portal_plans import BY_CIDR

V4, V6 = Family.IPV4, Family.IPV6
WEB = build_plan("web", node_port=30080, external_local=True, local=(1,), affinity_seconds=60)
DNS, SCTP = build_plan("dns", Protocol.UDP, cluster=(3,)), build_plan("assoc", Protocol.SCTP)


def test_ports_are_counted_in_the_order_of_names() -> None:
    shown = outcome([(plan.key, plan) for plan in (WEB, SCTP, DNS)], BY_CIDR, FIRST_PORT)
    assert shown == outcome([(plan.key, plan) for plan in (DNS, WEB, SCTP)], BY_CIDR, FIRST_PORT)
    assert [str(listener) for listener in shown.listeners] == [
        "default/dns:http UDP cluster: port 40000 -> 10.244.1.3:8080",
        "default/web:http TCP cluster: port 40001 -> 10.244.1.1:8080, 10.244.1.2:8080 (affinity 60 s)",
        "default/web:http TCP local: port 40002 -> 10.244.1.1:8080 (affinity 60 s)",
    ]
    rules = [line for line in shown.rules.splitlines() if line.startswith("-A KUBE-PORTALS-CONTAINER ")]
    assert [line.rpartition(" ")[2] for line in rules] == ["40000", "40001"]


def test_native_text_ends_with_the_listeners_as_comments() -> None:
    shown = outcome([(plan.key, plan) for plan in (SCTP, DNS)], BY_CIDR, FIRST_PORT)
    rules, note, *listening = shown.native().partition("# ")
    assert rules == shown.rules
    assert note == "# "
    assert "".join(listening).splitlines() == [
        "Listeners; their proxy ports are chosen at run time",
        "# default/dns:http UDP cluster: port 40000 -> 10.244.1.3:8080",
        "# default/assoc:http: SCTP is not forwarded in userspace mode; its clients are refused",
    ]


def test_json_has_the_listeners_as_values() -> None:
    shown = outcome([(WEB.key, WEB)], BY_CIDR, 31000)
    values = json.loads(json.dumps(shown.json()))
    assert values["rules"] == shown.rules
    assert values["listeners"][1] == {
        "service": "default/web:http",
        "protocol": "TCP",
        "reach": "local",
        "port": 31001,
        "endpoints": ["10.244.1.1:8080"],
        "affinity": 60,
    }


# ---------------------------------------------------------------- by the command


@pytest.fixture
def inputs(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize(("port_range", "first"), [("", FIRST_PORT), ("31000-31999", 31000)])
def test_the_command_counts_from_the_configured_port(
    inputs: Files, capsys: pytest.CaptureFixture[str], port_range: str, first: int
) -> None:
    inputs.write("config.json", {**HEADER, "mode": "userspace", "portRange": port_range})
    values = json.loads(render(inputs.args("--format=json"), capsys))
    assert [values[family]["listeners"][0]["port"] for family in ("ipv4", "ipv6")] == [first, first]
    assert f"-j DNAT --to-destination [fd00:18::2]:{first}" in values["ipv6"]["rules"]
    listed = render(inputs.args("--family=ipv4"), capsys)
    assert f"default/web:http TCP cluster: port {first} -> 10.244.0.5:8080" in listed


# ---------------------------------------------------------------- settings

DUAL = NodeInfo(ips=("172.18.0.2", "fd00:18::2"), addresses=("127.0.0.1", "172.18.0.2", "fd00:18::2"))


@pytest.mark.parametrize(
    ("family", "host", "ip"),
    [
        (V4, DUAL, "172.18.0.2"),
        (V6, DUAL, "fd00:18::2"),
        (V4, NodeInfo(ips=("203.0.113.9",), addresses=("127.0.0.1", "172.18.0.2")), "127.0.0.1"),
        (V6, NodeInfo(ips=("172.18.0.2",), addresses=("127.0.0.1", "172.18.0.2")), "::1"),
    ],
)
def test_the_nodes_own_traffic_is_led_to_an_address_that_it_has(family: Family, host: NodeInfo, ip: str) -> None:
    assert userspace_settings(KubeProxyConfiguration(), family, host).node_ip == ip


def test_settings_come_from_the_configuration() -> None:
    config = KubeProxyConfiguration(cluster_cidr="10.244.0.0/16", node_port_addresses=("172.18.0.0/16",))
    host = NodeInfo(ips=("172.18.0.2",), addresses=("127.0.0.1", "172.18.0.2"))
    assert userspace_settings(config, V4, host) == Settings(
        V4,
        "172.18.0.2",
        detect_local=DetectLocal(DetectLocalBy.CIDR, "10.244.0.0/16"),
        node_port_addresses=NodePortAddresses(False, ("172.18.0.2",), False),
    )
