"""The forwarder is measured beside haproxy and a direct connection."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import userspace


def test_each_way_carries_connections_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {figure.what: figure for figure in userspace.measure(rounds=1, seconds=0.2)}
    ways = {"direct", "forwarder"} | ({"haproxy"} if shutil.which("haproxy") else set())
    for what in ("new connections", "bulk"):
        assert {way for way in ways if figures[f"{what}, {way}"].value > 0} == ways
        ratio = figures[f"{what}, direct"].value / figures[f"{what}, forwarder"].value
        assert figures[f"{what}, direct / forwarder"].value == pytest.approx(ratio)
    assert ("haproxy is not installed" in capsys.readouterr().err) == ("haproxy" not in ways)
