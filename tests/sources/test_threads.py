"""The threads of the sources: nothing is delivered after stop, and an exception that nobody foresaw ends none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.clocks import SystemClock
from kproxy.containment import Containment
from kproxy.model.events import Event, Listed, ListPage
from kproxy.model.objects import Kind
from kproxy.sources.api import ApiSource
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from kproxy.sources.decode import Decoder
from kproxy.sources.documents import parse
from kproxy.sources.manifests import ManifestSource
from kproxy.sources.source_thread import STAGE
from tests.fakes.apiserver import ApiServer
from tests.fakes.sinks import Mirror
from tests.sources.cluster import agrees, eventually, service
from tests.sources.conftest import FAST

WEB = "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"


@pytest.fixture
def containment() -> Containment:
    return Containment(SystemClock())


@pytest.fixture(params=["server", "manifests"])
def source(
    request: pytest.FixtureRequest, server: ApiServer, containment: Containment, tmp_path: Path
) -> Iterator[ApiSource | ManifestSource]:
    """A source of either kind, over more Services than one page of a list has."""
    if request.param == "manifests":
        (tmp_path / "web.yaml").write_text(WEB)
        found: ApiSource | ManifestSource = ManifestSource([tmp_path], containment)
    else:
        for number in range(600):
            server.apply(service(f"s{number}"))
        found = ApiSource(ApiClient(ClientSettings(master=server.url)), "node1", containment, FAST)
    yield found
    found.stop()
    assert found.join(10)


class SlowSink(Mirror):
    """Takes each event of Services only when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.allowed = threading.Event(), threading.Event()

    def put(self, event: Event) -> None:
        if isinstance(event, ListPage | Listed) and event.kind is Kind.SERVICE:
            self.entered.set()
            assert self.allowed.wait(20)
        super().put(event)


def test_nothing_is_delivered_once_stop_has_returned(source: ApiSource | ManifestSource) -> None:
    """Stopped while an event is on its way: `stop` waits for that one, and no other follows."""
    sink = SlowSink()
    source.start(sink)
    assert sink.entered.wait(20)
    stopped = threading.Event()
    count: list[int] = []

    def stop() -> None:
        source.stop()
        count.append(len(sink.events))
        stopped.set()

    threading.Thread(target=stop, daemon=True).start()
    assert not stopped.wait(0.2), "an event is still on its way"
    sink.allowed.set()
    assert stopped.wait(20)
    assert source.join(10)
    assert count == [len(sink.events)]
    assert sum(getattr(event, "kind", None) is Kind.SERVICE for event in sink.events) == 1


def test_a_sink_may_stop_its_source(source: ApiSource | ManifestSource) -> None:
    class Impatient(Mirror):
        def put(self, event: Event) -> None:
            super().put(event)
            source.stop()

    source.start(Impatient())
    assert source.join(20)


class BrokenSink(Mirror):
    """Raises what nobody foresaw, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def put(self, event: Event) -> None:
        if self.left:
            self.left -= 1
            raise ZeroDivisionError("nobody foresaw this")
        super().put(event)


def test_an_unforeseen_exception_costs_a_wait_and_a_new_list(
    source: ApiSource | ManifestSource, containment: Containment
) -> None:
    sink = BrokenSink(times=2)
    source.start(sink)
    assert sink.wait(lambda m: m.complete)
    assert containment.counts() == {STAGE: 2}
    assert eventually(lambda: not containment.failing())


def test_an_exception_while_decoding_is_contained_while_the_other_kinds_are_followed(
    server: ApiServer, containment: Containment, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, broken = Decoder.line, threading.Event()

    def line(self: Decoder, text: bytes) -> object:
        if self.kind is Kind.SERVICE and broken.is_set():
            raise KeyError("nobody foresaw this")
        return decode(self, text)

    monkeypatch.setattr(Decoder, "line", line)
    mirror = Mirror()
    source = ApiSource(ApiClient(ClientSettings(master=server.url)), "node1", containment, FAST)
    source.start(mirror)
    assert mirror.wait(lambda m: agrees(server, m))
    broken.set()
    server.apply(service("new"))
    server.delete("ServiceCIDR", "", "kubernetes")
    assert mirror.wait(lambda m: not m.objects(Kind.SERVICE_CIDR))
    assert mirror.wait(lambda m: agrees(server, m)), "the list that follows has what the watch could not deliver"
    assert [stage.stage for stage in containment.failing()] == []
    broken.clear()
    server.apply(service("newer"))
    assert mirror.wait(lambda m: agrees(server, m))
    source.stop()
    assert source.join(10)


def test_a_manifest_that_meets_a_bug_costs_itself(
    tmp_path: Path, containment: Containment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, text: bytes) -> object:
        if name.endswith("bad.yaml"):
            raise KeyError("nobody foresaw this")
        return parse(name, text)

    monkeypatch.setattr("kproxy.sources.manifests.parse", broken)
    (tmp_path / "bad.yaml").write_text(WEB)
    (tmp_path / "web.yaml").write_text(WEB)
    source, mirror = ManifestSource([tmp_path], containment), Mirror()
    source.start(mirror)
    assert mirror.wait(lambda m: m.complete)
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web"}
    assert [problem.name for problem in mirror.problems] == [str(tmp_path / "bad.yaml")]
    assert containment.counts() == {STAGE: 1}
    source.stop()
    assert source.join(10)


def test_threads_end_soon_after_stop_wherever_they_are(source: ApiSource | ManifestSource) -> None:
    for _ in range(2):  # once at work, once before anything happened
        source.start(Mirror())
        source.stop()
        assert source.join(10)
