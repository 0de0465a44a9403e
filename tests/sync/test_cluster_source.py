"""Another source takes the place of the first; one that cannot begin or end harms nothing and is tried again."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from kproxy.config.defaults import default
from kproxy.config.fields import ProxyMode
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig
from kproxy.events.series import Notice
from kproxy.lab.proxies import wait_for
from kproxy.metrics.registry import Metrics
from kproxy.model.events import Changed
from kproxy.model.plans import Family
from kproxy.rate_limit import FIRST_RETRY
from kproxy.sync.cluster_source import ClusterSource
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.reload import needs_new_client
from tests.fakes.apiserver import ApiServer
from tests.fakes.clocks import ManualClock

NOTICE = Notice("Node", "", "node1", "InvalidConfiguration", "Reload", "a note")


class Faulty(ClusterSource):
    """A ClusterSource with a bug that shows as long as `begin_fails` or `end_fails` is set."""

    begin_fails = end_fails = False

    def _follow_manifests(self, stack: ExitStack) -> None:
        if self.begin_fails:
            raise ZeroDivisionError("begin")
        stack.callback(self._end)
        super()._follow_manifests(stack)

    def _end(self) -> None:
        if self.end_fails:
            raise ZeroDivisionError("end")


class Rig:
    """A source, first of folder `first`, whose events are taken by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.queue = folder, ManualClock(), EventQueue()
        self.containment = Containment(self.clock)
        metrics = Metrics(tuple(Family), ProxyMode.IPTABLES, "1", Containment(self.clock))
        self.source = Faulty(self.manifests("first"), self.queue, self.clock, metrics, self.containment)
        self.source.start()
        self.seen: set[str] = set()

    def manifests(self, name: str) -> Options:
        """A folder with one Service, of the same name."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "service.json").write_text(json.dumps(service(name)))
        return Options(default(ProxyMode.IPTABLES), "node1", manifests=(folder,))

    def server(self, kubeconfig: Path) -> Options:
        config = default(ProxyMode.IPTABLES)
        connection = replace(config.client_connection, kubeconfig=str(kubeconfig))
        return Options(replace(config, client_connection=connection), "node1")

    def sees(self, name: str, seconds: float = 30) -> bool:
        """Whether the source passes on a Service of this name."""

        def look() -> bool:
            for event in self.queue.take(0.01):
                match event:
                    case Changed(_, item):
                        self.seen.add(item.metadata.name)
            return name in self.seen

        return wait_for(look, seconds)


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }


def write_kubeconfig(path: Path, server: ApiServer) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                "clusters": [{"name": "it", "cluster": {"server": server.url}}],
                "users": [{"name": "it", "user": {}}],
            }
        )
    )


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.source.end_fails = False
    rig.source.close()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


def test_another_source_takes_the_place_of_the_first(rig: Rig, server: ApiServer, tmp_path: Path) -> None:
    assert rig.sees("first")
    rig.source.notify(NOTICE)  # nowhere to post it
    server.apply(service("second"))
    write_kubeconfig(tmp_path / "kubeconfig", server)
    rig.source.replace(rig.server(tmp_path / "kubeconfig"))
    assert rig.sees("second")
    rig.manifests("third").manifests[0].joinpath("service.json").rename(tmp_path / "first" / "late.json")
    assert not rig.sees("third", 0.5), "nobody follows the folder any more"
    rig.source.notify(NOTICE)
    assert wait_for(lambda: [event["reason"] for event in server.events] == ["InvalidConfiguration"], 30)


def test_the_gate_of_client_go_decides_whether_lists_are_streamed(rig: Rig, server: ApiServer, tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", server)
    options = rig.server(tmp_path / "kubeconfig")
    gated = replace(options.config, feature_gates={"WatchListClient": False})
    assert needs_new_client(options.config, gated)
    for config, verb, name in ((options.config, "stream", "second"), (gated, "list", "third")):
        server.apply(service(name))
        before = Counter(server.served)
        rig.source.replace(dataclasses.replace(options, config=config))
        assert rig.sees(name)  # perhaps by the watch that is just being replaced
        asked = partial(lists_since, server, before)
        assert wait_for(lambda: bool(asked()), 15.0)  # noqa: B023
        assert asked() == {verb}


def lists_since(server: ApiServer, before: Counter[tuple[str, str]]) -> set[str]:
    """How Services were listed since then."""
    return {verb for verb, kind in server.served - before if kind == "Service" and verb != "watch"}


def test_credentials_that_cannot_be_read_are_tried_again(
    rig: Rig, server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.apply(service("second"))
    options = rig.server(tmp_path / "kubeconfig")
    rig.source.replace(options)
    assert not rig.source.retry_due
    for wait in (FIRST_RETRY, 2 * FIRST_RETRY):
        rig.clock.advance(wait - 0.01)
        assert not rig.source.retry_due
        rig.clock.advance(0.02)
        assert rig.source.retry_due
        rig.source.retry()
    assert len([record for record in caplog.records if "cannot be watched" in record.message]) == 1
    write_kubeconfig(tmp_path / "kubeconfig", server)
    rig.source.retry()
    assert not rig.sees("second", 0.3), "its wait is not over"
    rig.clock.advance(10)
    rig.source.retry()
    assert rig.sees("second")
    assert not rig.source.retry_due
    assert rig.containment.failing() == []


def test_a_start_that_fails_unexpectedly_is_tried_again(rig: Rig) -> None:
    rig.source.begin_fails = True
    rig.source.replace(rig.manifests("second"))
    rig.clock.advance(FIRST_RETRY)
    assert rig.source.retry_due
    rig.source.begin_fails = False
    rig.source.retry()
    assert rig.sees("second")
    assert not rig.source.retry_due
    assert rig.containment.counts() == {"source": 1}
    assert rig.containment.failing() == []


def test_the_first_start_reports_credentials_that_cannot_be_read(rig: Rig, tmp_path: Path) -> None:
    metrics = Metrics(tuple(Family), ProxyMode.IPTABLES, "1", Containment(rig.clock))
    options = rig.server(tmp_path / "kubeconfig")
    with pytest.raises(InvalidConfig):
        ClusterSource(options, rig.queue, rig.clock, metrics, rig.containment).start()


def test_an_end_that_fails_unexpectedly_keeps_no_other_source_from_beginning(rig: Rig) -> None:
    assert rig.sees("first")
    rig.source.end_fails = True
    rig.source.replace(rig.manifests("second"))
    assert rig.sees("second")
    assert rig.containment.counts() == {"source": 1}
    rig.source.close()
    rig.source.close()  # nothing is left to close
    assert rig.containment.counts() == {"source": 2}
