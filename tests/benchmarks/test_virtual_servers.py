"""IPVS by netlink is measured beside ipvsadm, at a tiny size, where the kernel has IPVS."""

from __future__ import annotations

import pytest

from benchmarks import ipvs

pytestmark = pytest.mark.ipvs_kernel


def test_both_ways_load_the_same_and_every_size_is_measured() -> None:
    figures = list(ipvs.measure(endpoints=2, sizes=(2, 3), rounds=1))
    rows = {figure.what for figure in figures}
    assert {(figure.what, figure.services) for figure in figures} == {(what, size) for what in rows for size in (2, 3)}
    assert all(figure.value > 0 for figure in figures)
    value = {figure.what: figure.value for figure in figures if figure.services == 3}
    assert value["KernelIpvs : ipvsadm -R"] == pytest.approx(value["load by KernelIpvs"] / value["load by ipvsadm -R"])
