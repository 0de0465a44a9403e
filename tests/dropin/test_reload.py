"""The configuration file changes while the proxy works: it takes effect in place, and no client notices."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kproxy.config.defaults import METRICS_PORT
from kproxy.lab import probes
from kproxy.lab.background_clients import Ask, Record, asking
from kproxy.lab.probes import Answered
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenarios import Probe, Via
from kproxy.model.plans import Family
from kproxy.sync.reload import POLL_SECONDS
from tests.dropin.conftest import ALIVE, SOON

if TYPE_CHECKING:
    from tests.dropin.conftest import Node

HOME = "127.0.0.1"
CLIENTS = (Probe("caller", Via.CLUSTER_IP, ()), Probe("client", Via.NODE_PORT, ()))
ASKS = [Ask(probe, port, family) for probe in CLIENTS for port in ALIVE[0].ports for family in Family]
NFT_TABLE = re.compile(r"table ip6? kproxy")


@contextmanager
def scraping(node: Node, pause: float) -> Iterator[list[int]]:
    """The HTTP statuses of a scraper that hardly rests."""
    statuses: list[int] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(pause):
            statuses.append(node.space.call(probes.http_status, HOME, METRICS_PORT, "/proxyMode", 10.0)[0])

    thread = threading.Thread(target=scrape, name="scraping")
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def has_table(node: Node) -> bool:
    return bool(NFT_TABLE.search(node.space.run(["nft", "list", "tables"])))


def chains(node: Node) -> int:
    return len(re.findall(r"^:KUBE-(?:SVC|SEP)-", node.rules(), re.MULTILINE))


def stands_alone(node: Node, mode: str) -> bool:
    """MODE is at work, and what another mode left is gone."""
    if node.page("/proxyMode") != mode or has_table(node) != (mode == "nftables"):
        return False
    if ("kube-ipvs0" in node.space.run(["ip", "-br", "link", "show"])) != (mode == "ipvs"):
        return False
    return (chains(node) > 0) == (mode == "iptables")


def answered_more(record: Record, before: Counter[str]) -> bool:
    return all(record.answered[who] > before[who] + 5 for who in before)


SEQUENCES = [
    pytest.param(("nftables", "iptables", "userspace", "nftables", "iptables"), ASKS, 0.01, id="all but ipvs"),
    # Where the processor is emulated, eager clients would leave the proxy no time.
    pytest.param(("ipvs", "iptables"), ASKS[:1], 0.2, id="ipvs", marks=pytest.mark.ipvs_kernel),
]


@pytest.mark.parametrize(("modes", "asks", "pause"), SEQUENCES)
def test_the_mode_changes_in_place(node: Node, modes: tuple[str, ...], asks: list[Ask], pause: float) -> None:
    pid, syncs = node.proxy.pid, node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count")
    with asking(node.deployed, ALIVE[0], asks, pause) as record, scraping(node, 5 * pause) as statuses:
        assert wait_for(lambda: len(record.answered) == len(asks), SOON)
        for count, mode in enumerate(modes, 1):
            node.write(mode=mode)
            node.await_reload(count=count)
            assert wait_for(partial(stands_alone, node, mode), SOON, pause=0.2)
            assert wait_for(partial(answered_more, record, record.answered.copy()), SOON)
    assert record.failures == []
    assert set(statuses) == {200}, "the metrics address was gone for a moment"
    assert node.proxy.running()
    assert node.proxy.pid == pid
    assert node.metric("kubeproxy_sync_proxy_rules_duration_seconds_count") > syncs, "counters go on"
    assert node.page("/metrics").count("kproxy_build_info{") == 1
    assert 'mode="iptables"' in node.page("/metrics")
    assert node.configz()["mode"] == "iptables"


def masquerades_all(rules: str) -> bool:
    """The new mark is all there is of marks, and no rule tells pods from others."""
    everywhere = re.search(r"-A KUBE-SVC-\w+ -d 10\.96\.\S+ .*-j KUBE-MARK-MASQ", rules)
    return "0x400/0x400" in rules and "0x4000" not in rules and bool(everywhere) and "! -s 10." not in rules


def test_settings_change_in_place(node: Node) -> None:
    assert "-m comment" in node.rules()
    with asking(node.deployed, ALIVE[0], [ask for ask in ASKS if ask.probe.source == "caller"], 0.01) as record:
        node.write(
            iptables={"masqueradeAll": True, "masqueradeBit": 10, "syncPeriod": "20m", "minSyncPeriod": "50ms"},
            nodePortAddresses=["127.0.0.0/8"],
            clusterCIDR="10.0.0.0/8,fd00::/8",
        )
        node.await_reload()
        assert wait_for(lambda: masquerades_all(node.rules()), SOON, pause=0.1), node.rules()
    assert record.failures == []
    rules = node.rules()
    assert re.findall(r"-A KUBE-SERVICES .*-j KUBE-NODEPORTS", rules) == re.findall(
        r"-A KUBE-SERVICES -d 127\.\S+ .*-j KUBE-NODEPORTS", rules
    ), "node ports are for loopback only"
    outside = Probe("client", Via.NODE_PORT, ())
    refused = node.deployed.ask(outside, ALIVE[0], Family.IPV4, ALIVE[0].ports[0], 1.0)
    assert not isinstance(refused, Answered)
    configz = node.configz()
    assert (configz["iptables"]["syncPeriod"], configz["nodePortAddresses"]) == ("20m0s", ["127.0.0.0/8"])
    said = node.said("Applied the changed configuration file")
    assert len(said) == 1
    assert "iptables.masqueradeAll" in said[0]
    assert "nodePortAddresses" in said[0]


def test_addresses_change_in_place(node: Node) -> None:
    node.write(metricsBindAddress="127.0.0.1:11249", healthzBindAddress="127.0.0.1:10256")
    assert wait_for(lambda: node.page("/proxyMode", 11249) == "iptables", SOON)
    assert wait_for(lambda: node.page("/proxyMode", METRICS_PORT) == "", SOON)
    assert wait_for(lambda: '"healthy":true' in node.page("/healthz", 10256), SOON)
    node.write(metricsBindAddress="127.0.0.1")
    assert wait_for(lambda: node.page("/proxyMode") == "iptables", SOON)
    assert wait_for(lambda: node.page("/proxyMode", 11249) == "", SOON)


BAD = {
    "mode": "ebpf",
    "nodePortAddresses": ["10.0.0.1"],
    "oomScoreAdj": 5000,
    "featureGates": {"NoSuchGate": True},
}


def test_a_wrong_file_is_refused_and_all_that_is_wrong_is_said(node: Node) -> None:
    before = node.rules()
    node.write(**BAD)
    node.await_reload("refused")
    refused = "\n".join(node.said("The changed configuration file is refused"))
    assert all(field in refused for field in ("mode:", "nodePortAddresses[0]:", "oomScoreAdj:", "NoSuchGate"))
    assert "config.conf" in refused
    assert node.configz()["mode"] == "iptables"
    assert without_counters(node.rules()) == without_counters(before)
    # The file as it was is no change; another good one takes effect.
    node.write(**dict.fromkeys(BAD))
    time.sleep(4 * POLL_SECONDS)
    assert node.reloads("applied") == 0
    node.write(clusterCIDR="10.0.0.0/8,fd00::/8")
    node.await_reload("applied")
    assert node.reloads("refused") == 1


def test_a_mode_that_this_host_cannot_have_is_refused(node: Node) -> None:
    node.write(mode="ipvs", ipvs={"scheduler": "mh", "syncPeriod": "0s"})
    assert wait_for(lambda: node.reloads("applied") + node.reloads("refused") == 1, SOON, pause=0.1)
    has_ipvs = node.reloads("applied") == 1
    assert node.page("/proxyMode") == ("ipvs" if has_ipvs else "iptables")
    node.write(mode="iptables", iptables={"syncPeriod": "1h", "masqueradeAll": True})
    node.await_reload("applied", count=1 + has_ipvs)
    assert node.page("/proxyMode") == "iptables"


def test_a_comment_is_no_change(node: Node) -> None:
    text = (node.volume.folder / "config.conf").read_text()
    node.volume.put({"config.conf": text + "# nothing\n"})
    node.write(iptables={"syncPeriod": "1h", "masqueradeAll": True})
    node.await_reload()
    assert node.reloads("applied") == 1


def without_counters(rules: str) -> str:
    return re.sub(r" \[\d+:\d+\]$|^#.*$", "", rules, flags=re.MULTILINE)
