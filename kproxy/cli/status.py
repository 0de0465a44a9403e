"""`kproxy status`: shows the status of the daemon on this node, or of one elsewhere."""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlencode

import click
import msgspec

from kproxy.cli.exits import DONE, FAILED
from kproxy.cli.options import CONTEXT, read_config
from kproxy.config.defaults import METRICS_PORT
from kproxy.config.parse_errors import of_text
from kproxy.errors import InvalidConfig, SourceError
from kproxy.healthz.listeners import parse_address
from kproxy.model.plans import address_port
from kproxy.status.schema import Status

TIMEOUT = 10.0
"""Seconds without an answer after which the daemon is not reachable."""


@click.command("status", context_settings=CONTEXT)
@click.option("--address", metavar="HOST:PORT", help="Where the daemon serves metrics.  [default: 127.0.0.1:10249]")
@click.option("--config", type=click.Path(path_type=Path), help="Ask at this file's metricsBindAddress.")
@click.option("-q", "--query", default="", help="Only Services that contain these words: names, addresses, chains.")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True, help="Which 50 of the Services.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(address: str | None, config: Path | None, query: str, page: int, as_json: bool) -> int:
    """Show the status of the daemon: its health, what needs attention, syncs, Services and their rules.

    Exit status 0: healthy; 1: unhealthy or not reachable.
    """
    if address and config:
        raise click.UsageError("--address and --config are mutually exclusive")
    host, port = _split(address) if address else _configured(config) if config else ("127.0.0.1", METRICS_PORT)
    body = _ask(host, port, f"/status.json?{urlencode({'q': query, 'page': page})}")
    found = _read(body, address_port(host, port))
    if as_json:
        click.echo(body.decode())
    else:
        from kproxy.status.terminal import show

        show(found, sys.stdout)
    return DONE if found.healthy else FAILED


def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.UsageError(f"--address: must be HOST:PORT, is {text!r}")
    return host, int(port)


def _configured(path: Path) -> tuple[str, int]:
    bind = read_config(path).metrics_bind_address
    if not bind:
        raise InvalidConfig([f"metricsBindAddress: is empty in {path}, so the daemon serves no status"])
    try:
        found = parse_address(bind)
    except ValueError as error:
        raise InvalidConfig([f"metricsBindAddress: {error}"]) from error
    return found.ip or "127.0.0.1", found.port


def _ask(host: str, port: int, path: str) -> bytes:
    where = address_port(host, port)
    connection = HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(f"cannot reach {where}: {why}; is kproxy running, with this metricsBindAddress?") from error
    finally:
        connection.close()
    if answer.status != 200:
        hint = "see the daemon's log" if answer.status == 500 else "is it kproxy, not kube-proxy?"
        raise SourceError(f"{where} answered with HTTP status {answer.status}; {hint}")
    return body


def _read(body: bytes, where: str) -> Status:
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError as error:
        raise SourceError(f"{where} answered with something other than kproxy's status: {of_text(body)}") from error
