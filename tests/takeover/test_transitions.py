"""One proxy after another on a node, and no client notices: 200 new connections a second and 60 lasting ones."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kproxy.lab.clusters import CLUSTER_CIDRS
from kproxy.lab.load import Load, Rates
from kproxy.lab.probes import Answered, Nothing
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenarios import End, Probe, Via
from kproxy.model.plans import Family

if TYPE_CHECKING:
    from tests.takeover.stages import Stage

BOTH_BACKENDS = pytest.mark.parametrize("stage", ["nft", "legacy"], indirect=True)
WAYS_BACK = [("nft", "iptables"), ("legacy", "iptables"), ("nft", "nftables")]
AFTER = 0.7  # seconds that clients go on after the last change
SOON = 60.0


NONE_LASTING = Rates(held=0, flows=0)


@contextmanager
def unnoticed(stage: Stage, pace: Rates = Rates(), after: float = AFTER) -> Iterator[Load]:  # noqa: B008
    """What happens in the block, clients must not notice: no failure, and no first segment sent twice."""
    with stage.clients(pace) as load:
        yield load
        time.sleep(after)
    print(load.summary())
    assert load.failures() == [], load.summary()
    assert load.delays() == []
    assert load.results.made == load.results.answered
    assert load.results.held == pace.held + pace.flows


@BOTH_BACKENDS
def test_kube_proxy_in_iptables_mode_then_kproxy_then_kube_proxy(stage: Stage) -> None:
    stage.kube_proxy("iptables")
    before = stage.rules()
    with unnoticed(stage) as load:
        load.mark("kproxy")
        stage.start("iptables")
        assert [line["transactions"] for line in synced(stage)] == [0, 0]
        stage.stop()
        assert stage.rules() == before
        load.mark("kube-proxy again")
        stage.kube_proxy("iptables")
        assert stage.rules() == before


def test_kube_proxy_in_nftables_mode_then_kproxy(stage: Stage) -> None:
    stage.kube_proxy("nftables")
    assert stage.tables() == {"ip kube-proxy", "ip6 kube-proxy"}
    with unnoticed(stage) as load:
        load.mark("kproxy")
        stage.start("nftables")
        assert stage.tables() == {"ip kproxy", "ip6 kproxy"}


@BOTH_BACKENDS
@pytest.mark.parametrize(("theirs", "ours"), [("nftables", "iptables"), ("iptables", "nftables")])
def test_from_kube_proxy_into_another_mode(stage: Stage, theirs: str, ours: str) -> None:
    stage.kube_proxy(theirs)
    with unnoticed(stage) as load:
        load.mark(f"kproxy in {ours} mode")
        stage.start(ours)
        if theirs == "nftables":
            assert wait_for(lambda: not stage.tables(), SOON)
        else:
            assert wait_for(lambda: not any("KUBE-SVC" in text for text in stage.rules().values()), SOON)


@BOTH_BACKENDS
def test_from_mode_to_mode_and_back(stage: Stage) -> None:
    stage.start("iptables")
    before = stage.rules()
    with unnoticed(stage) as load:
        for mode in ("nftables", "iptables"):
            load.mark(f"{mode} mode")
            stage.stop()
            stage.start(mode)
            assert wait_for(lambda: bool(stage.tables()) is (mode == "nftables"), SOON)  # noqa: B023
        assert wait_for(lambda: stage.rules() == before, SOON)


@pytest.mark.parametrize(
    ("stage", "mode"), [("nft", "iptables"), ("legacy", "iptables"), ("nft", "nftables")], indirect=["stage"]
)
def test_a_restart_after_an_end_a_kill_and_an_upgrade(stage: Stage, mode: str) -> None:
    """An upgrade's new process starts before the old one has ended."""
    stage.start(mode)
    with unnoticed(stage) as load:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            stage.stop(with_signal=ending)
            load.mark(f"restart after {ending.name}")
            stage.start(mode)
            assert [line["transactions"] for line in synced(stage)] == [0, 0]
        load.mark("upgrade")
        old, new = stage.proxy, stage.start(mode)
        stage.stop(old)
        assert new.running()


@pytest.mark.parametrize(("stage", "theirs"), WAYS_BACK, indirect=["stage"])
def test_from_nftables_mode_back_to_kube_proxy_which_decides_from_then_on(stage: Stage, theirs: str) -> None:
    """kube-proxy knows nothing of kproxy's table and leaves it, but what it leads somewhere is led before."""
    stage.plugin()
    stage.start("nftables")
    with unnoticed(stage) as load:
        stage.stop()
        load.mark("kube-proxy")
        stage.kube_proxy(theirs)
    for scenario in stage.served:
        stage.deployed.manifests.put(scenario.name, scenario.objects((End("b"),)))
    stage.kube_proxy(theirs)
    stage.space.run(["conntrack", "-F"])  # kube-proxy removes the flows that lead to former endpoints
    with stage.clients(NONE_LASTING) as load:
        time.sleep(1)
    assert {failure.why for failure in load.results.failures} == {"answered by b"}
    assert sum(load.results.answered.values()) == 0
    assert stage.tables() >= {"ip kproxy", "ip6 kproxy"}, "else this test says nothing"


@pytest.mark.parametrize(
    ("stage", "way"), [("nft", "end"), ("legacy", "end"), ("nft", "mode in place")], indirect=["stage"]
)
def test_the_ways_back_from_nftables_mode_that_leave_nothing(stage: Stage, way: str, tmp_path: Path) -> None:
    """Afterwards kube-proxy alone decides: what it rejects or deletes leads to no pod that may be gone by then."""
    config = tmp_path / "config.yaml"
    text = f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: {CLUSTER_CIDRS}\n"
    config.write_text(f"{text}mode: nftables\n")
    stage.plugin()
    stage.start("nftables", f"--config={config}", *(["--hand-over-at-end"] if way == "end" else []))
    assert stage.tables() == {"ip kproxy", "ip6 kproxy"}
    with unnoticed(stage) as load:
        if way == "mode in place":
            load.mark("iptables mode")
            config.write_text(f"{text}mode: iptables\n")
            assert wait_for(lambda: not stage.tables(), SOON), stage.proxy.tail()
        stage.stop()
        assert stage.tables() == set(), stage.proxy.tail()
        load.mark("kube-proxy")
        stage.kube_proxy("iptables")
    scaled, deleted = stage.served
    stage.deployed.manifests.put(scaled.name, scaled.objects(()))
    stage.deployed.manifests.remove(deleted.name)
    stage.kube_proxy("iptables")
    stage.space.run(["conntrack", "-F"])
    inside, outside = Probe("caller", Via.CLUSTER_IP, ()), Probe("client", Via.BALANCER, ())
    with ThreadPoolExecutor() as pool:
        ask = stage.deployed.ask
        asks = [(probe, family, port) for probe in (inside, outside) for family in Family for port in scaled.ports]
        refused = [pool.submit(ask, probe, scaled, family, port) for probe, family, port in asks]
        unanswered = [pool.submit(ask, probe, deleted, family, port, 0.5) for probe, family, port in asks]
    assert {found.result() for found in refused} == {Nothing.REFUSED}
    assert not any(isinstance(found.result(), Answered) for found in unanswered)


@pytest.mark.parametrize("stage", ["nft"], indirect=True)
def test_into_userspace_mode_and_out_of_it(stage: Stage) -> None:
    """On the way out lasting connections end, as they go through the process: docs/modes.md."""
    stage.kube_proxy("iptables")
    with unnoticed(stage) as load:
        load.mark("userspace mode")
        stage.start("userspace")
    with unnoticed(stage, NONE_LASTING) as load:
        for mode in ("userspace", "nftables"):
            stage.stop()
            load.mark(f"{mode} mode")
            stage.start(mode)
        assert wait_for(lambda: "KUBE-PORTALS" not in str(stage.rules()), SOON)


def test_killed_in_userspace_mode_it_serves_again_from_the_next_start(stage: Stage) -> None:
    stage.start("userspace")
    with stage.clients(NONE_LASTING) as load:
        stage.stop(with_signal=signal.SIGKILL)
        load.mark("the kill")
        stage.start("userspace")
        load.mark("the next start")
        time.sleep(AFTER)
    assert [line for line in load.failures() if "the next start" in line] == []
    assert "Connection refused" in {failure.why for failure in load.results.failures}


def test_rules_that_cannot_be_taken_away_are_told_of(stage: Stage, tmp_path: Path) -> None:
    """kube-proxy's in iptables mode, where kproxy has no iptables command: they come before its own."""
    (tmp_path / "setpriv").symlink_to(shutil.which("setpriv") or "")  # the lab's own need
    stage.kube_proxy("iptables")
    stage.start("nftables", path=str(tmp_path))
    assert wait_for(lambda: "iptables is not installed" in stage.proxy.tail(), SOON)
    assert "will retry" not in stage.proxy.tail()


def test_a_node_without_iptables_cannot_promise_to_hand_over(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "setpriv").symlink_to(shutil.which("setpriv") or "")
    proxy = stage.start("nftables", "--hand-over-at-end", ready=False, path=str(tmp_path))
    assert wait_for(lambda: not proxy.running(), SOON)
    assert "iptables-save and iptables-restore (and their ip6tables forms) are not installed" in proxy.tail()
    assert stage.tables() == set()


def synced(stage: Stage) -> list[dict[str, int]]:
    """The last proxy's lines about its first sync of each family."""
    lines = [json.loads(line) for line in stage.proxy.log.read_text().splitlines()]
    return [line for line in lines if line.get("msg") == "Synced"][:2]
