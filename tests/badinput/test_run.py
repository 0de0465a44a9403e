"""Bad input of `kproxy run`: each problem is logged and counted, and everything else is programmed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kproxy.lab import links, probes
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import Manifests, Proxy, wait_for
from tests.fakes.apiserver import ApiServer

if TYPE_CHECKING:
    from tests.badinput.conftest import Bad

pytestmark = pytest.mark.root

SOON = 60
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}
QUICKLY = ("--logging-format=json", "--iptables-min-sync-period=50ms")


@dataclass(slots=True)
class Running:
    """A running proxy. node: its namespace. server: the API server, if that is its source."""

    node: Namespace
    proxy: Proxy
    server: ApiServer | None = None
    manifests: Manifests | None = None

    def rules(self) -> str:
        return self.node.run(["iptables-nft-save"])

    def logged(self) -> list[dict[str, Any]]:
        """Return the log's lines about unusable objects."""
        lines = [json.loads(line) for line in self.proxy.log.read_text().splitlines()]
        return [line for line in lines if line.get("msg") == "Object cannot be used"]

    def counted(self) -> dict[str, float]:
        """Return kproxy_invalid_objects_total by kind."""
        _, _, text = self.node.call(probes.http_status, "127.0.0.1", 10249, "/metrics")
        samples = [line for line in text.splitlines() if line.startswith("kproxy_invalid_objects_total{")]
        return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in samples}


@pytest.fixture(scope="module", params=["manifests", "server"])
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    bad: tuple[Bad, ...],
    good: list[dict[str, Any]],
) -> Iterator[Running]:
    """Yield a proxy that got all the bad objects and the good one at once."""
    if reason := unavailable(("iptables-nft-save", "iptables-nft-restore")):
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        node = stack.enter_context(closing(Namespace("node1")))
        links.up(node)
        if request.param == "server":
            server = node.call(ApiServer().start)
            stack.callback(server.stop)
            for item in (NODE, *(each.item for each in bad), *good):
                server.apply(item)
            found = Running(node, Proxy(node, None, folder / "log", [f"--master={server.url}", *QUICKLY]), server)
        else:
            manifests = Manifests(folder)
            for name, items in (("bad", [each.item for each in bad]), ("good", [NODE, *good])):
                manifests.put(name, items)
            found = Running(node, Proxy(node, manifests.folder, folder / "log", QUICKLY), manifests=manifests)
        found.proxy.start()
        found.proxy.await_ready(lambda: "10.244.9.200:8080" in found.rules())
        yield found
        assert found.proxy.stop() == 0
        assert "Traceback" not in found.proxy.log.read_text()


def test_each_problem_is_one_line_of_the_log(running: Running, each: Bad) -> None:
    found = [line for line in running.logged() if line["err"] in each.lines]
    assert sorted(line["err"] for line in found) == sorted(each.lines)
    assert {(line["level"], line["kind"]) for line in found} == {("warning", each.kind)}
    assert {line["object"] for line in found} == {f"bad/{each.item['metadata']['name']}"}


def test_nothing_else_is_reported_as_unusable(running: Running, bad: tuple[Bad, ...]) -> None:
    assert sorted(line["err"] for line in running.logged()) == sorted(line for each in bad for line in each.lines)


def test_every_problem_is_counted(running: Running, bad: tuple[Bad, ...]) -> None:
    assert running.counted() == Counter(each.kind for each in bad for _ in each.lines)


def test_their_usable_parts_are_programmed_and_nothing_more(running: Running, bad: tuple[Bad, ...]) -> None:
    programmed = set(re.findall(r"(?<= -[ds] )(10\.(?!244\.0\.0/)\S+)", running.rules()))
    expected = {address for each in bad for address in each.programmed}
    assert programmed == expected | {"10.96.9.200/32", "10.244.9.200/32"}


def test_operators_get_events(running: Running, bad: tuple[Bad, ...]) -> None:
    if running.server is None:
        assert running.manifests is not None
        return
    server = running.server
    expected = {line for each in bad for line in each.lines if each.name not in ("quote", "newline")}
    assert wait_for(lambda: expected <= {event.get("note") for event in server.events}, SOON), server.events


def test_an_object_that_becomes_invalid_keeps_its_last_usable_state(
    running: Running, good: list[dict[str, Any]]
) -> None:
    """It stays programmed until the object can be read again."""
    broken = json.loads(json.dumps(good))
    broken[1]["endpoints"] = "none"
    apply(running, broken)
    assert wait_for(lambda: any("bad/good: endpoints" in line["err"] for line in running.logged()), SOON)
    assert "10.244.9.200:8080" in running.rules()
    changed = json.loads(json.dumps(good))
    changed[1]["endpoints"] = [{"addresses": ["10.244.9.201"]}]
    apply(running, changed)
    assert wait_for(lambda: "10.244.9.201:8080" in running.rules(), SOON), running.proxy.tail()
    apply(running, good)
    assert wait_for(lambda: "10.244.9.200:8080" in running.rules(), SOON)


def apply(running: Running, items: list[dict[str, Any]]) -> None:
    if running.server:
        for item in items:
            running.server.apply(item)
    elif running.manifests:
        running.manifests.put("good", [NODE, *items])


def test_a_file_that_is_no_yaml_spoils_no_other(running: Running) -> None:
    if running.manifests is None:
        assert running.server is not None
        return
    (running.manifests.folder / "spoilt.yaml").write_text("kind: [Service\n")
    assert wait_for(lambda: any("spoilt.yaml" in line["err"] for line in running.logged()), SOON), running.proxy.tail()
    assert running.counted()["manifest"] == 1
    assert "10.244.9.200:8080" in running.rules()
