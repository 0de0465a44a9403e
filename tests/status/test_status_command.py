"""`kproxy status`: the terminal view, the JSON, and the exit status."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest

from kproxy.cli.main import main
from kproxy.model.plans import Family
from kproxy.status.schema import Status
from kproxy.status.terminal import show
from kproxy.status.view import duration, size, span, time
from tests.model.builders import changed, endpoint, service, slice_
from tests.status.nodes import OperatedNode, shop


@pytest.fixture
def node() -> Iterator[OperatedNode]:
    with OperatedNode() as found:
        found.tables[Family.IPV4].refuse = lambda table, chain, rule: "bad/refused" in rule
        ports = [{"name": "http", "port": 80, "nodePort": 30080}]
        found.start(
            *shop(60),
            service("a", "rivals", clusterIP="10.96.9.1", ports=ports),
            service("b", "rivals", clusterIP="10.96.9.2", ports=ports),
            service("refused", "bad", clusterIP="10.96.9.3"),
            slice_("refused-1", [endpoint("10.250.1.1")], "refused", namespace="bad"),
        )
        yield found


def run(node: OperatedNode, *more: str) -> int:
    return main(["status", "--address", f"127.0.0.1:{node.port}", *more])


def test_a_healthy_node(node: OperatedNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(node) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert "\x1b" not in printed
    assert printed.startswith("node1: healthy\n")
    for part in (
        *("mode iptables, IPv4, IPv6, 63 Services", "Not programmed: 1", "bad/refused:http", "RULE_APPEND failed"),
        *("node port 30080/TCP", "rivals/a:http", "up to date", "1 refused", "Services: 63, page 1 of 2"),
        *("shop/web-0:http", "10.96.0.0:80", "10.244.0.0:8080 (here)", "KUBE-SVC-", "The kernel refused"),
    ):
        assert part in printed, part


def test_before_the_first_sync(capsys: pytest.CaptureFixture[str]) -> None:
    with OperatedNode() as node:
        assert run(node) == 0
    printed = capsys.readouterr().out
    assert "IPv4: waiting for the cluster, nothing written yet, 0 Service ports" in printed
    assert "up to date" not in printed


def test_a_page_and_a_search(node: OperatedNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(node, "--page", "2") == 0
    assert "page 2 of 2" in capsys.readouterr().out
    assert run(node, "-q", "web-1 10.96.0.11") == 0
    printed = capsys.readouterr().out
    assert "Services: 1 of 63" in printed
    assert "shop/web-11:http" in printed


def test_json_is_the_daemons_answer(node: OperatedNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(node, "--json", "--query", "web-7") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(node.get("/status.json?q=web-7")[2])
    assert [item["name"] for item in found["services"]["items"]] == ["web-7"]


def test_an_unhealthy_node_is_exit_status_1(node: OperatedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.tables[Family.IPV4].fail_at = set(range(1000))
    node.step(changed(service("web-0", "shop", clusterIP="10.96.0.0", externalIPs=["192.0.2.1"])))
    node.clock.advance(61)
    assert run(node) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("node1: unhealthy\n")
    assert "a change is overdue" in printed
    assert "failed: iptables-nft-restore: exit status 4" in printed
    assert run(node, "--json") == 1


def test_colours_only_in_a_terminal(node: OperatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    found = msgspec.json.decode(node.get("/status.json")[2], type=Status)
    terminal, pipe = Terminal(), io.StringIO()
    show(found, terminal)
    show(found, pipe)
    assert "\x1b[1;32mhealthy" in terminal.getvalue()
    assert "\x1b" not in pipe.getvalue()


def test_a_daemon_that_is_not_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert main(["status", "--address", f"127.0.0.1:{port}"]) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(f"kproxy: error: cannot reach 127.0.0.1:{port}: Connection refused; ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "body", "why"),
    [
        (404, b"404 page not found\n", "HTTP status 404; is it kproxy, not kube-proxy?"),
        (200, b"<html>", "something other than kproxy's status"),
        (200, b'{"program": "kproxy"}', "something other than kproxy's status"),
    ],
)
def test_an_answer_of_another_program(capsys: pytest.CaptureFixture[str], code: int, body: bytes, why: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert main(["status", "--address", f"127.0.0.1:{server.server_port}"]) == 1
        thread.join()
    errors = capsys.readouterr().err
    assert why in errors
    assert errors.count("\n") == 1


def test_the_address_may_come_from_the_configuration(
    node: OperatedNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    file = tmp_path / "config.conf"
    for bind in (f"127.0.0.1:{node.port}", f"0.0.0.0:{node.port}"):
        file.write_text(f"{head}metricsBindAddress: {bind}\n")
        assert main(["status", "--config", str(file), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["node"] == "node1"
    assert main(["status", "--config", str(tmp_path / "missing")]) == 2
    assert "missing" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["10249", "127.0.0.1:", ":10249", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:0"])
def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert main(["status", "--address", address]) == 2
    assert "--address: must be HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (time("2026-01-02T03:04:05Z"), "2026-01-02 03:04:05 UTC"),
        (span(0), "0 s"),
        (span(59), "59 s"),
        (span(306), "5 min 6 s"),
        (span(3600 * 4 + 301), "4 h 5 min"),
        (span(86400 * 3 + 3600 * 4), "3 d 4 h"),
        (duration(0.0004), "0.4 ms"),
        (duration(0.0456), "45.6 ms"),
        (duration(12.34), "12.3 s"),
        (size(512), "512 B"),
        (size(3500), "3.4 KiB"),
        (size(12 << 20), "12 MiB"),
        (size(12 << 30), "12288 MiB"),
    ],
)
def test_formats(found: str, text: str) -> None:
    assert found == text
