"""The benchmarks run, at a tiny size, and measure what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import memory, planning
from benchmarks.cluster import Shape, body, endpoint_slice, items
from benchmarks.figures import Figure
from benchmarks.parts import main
from kproxy.model.objects import Kind
from kproxy.model.plans import Family

DUAL = tuple(Family)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.what: figure for figure in figures}


@pytest.mark.parametrize("families", [(Family.IPV4,), DUAL])
def test_a_cluster_is_planned_with_every_endpoint_of_every_family(families: tuple[Family, ...]) -> None:
    cluster = planning.Cluster()
    cluster.fill(Shape(7, 3, families))
    for family in Family:
        page = cluster.plans.families[family]
        expected = 7 if family in families else 0
        assert len(page.plans) == expected
        assert page.endpoints == 3 * expected
        assert len({endpoint for plan in page.plans.values() for endpoint in plan.reachable}) == 3 * expected


def test_names_and_addresses_are_given_once() -> None:
    shape = Shape(300, 5, DUAL)
    services = list(items(shape, Kind.SERVICE))
    slices = list(items(shape, Kind.ENDPOINT_SLICE))
    assert len({s["metadata"]["name"] for s in services}) == 300
    assert len({ip for s in services for ip in s["spec"]["clusterIPs"]}) == 600
    assert len({e["addresses"][0] for s in slices for e in s["endpoints"]}) == 3000


def test_the_same_shape_gives_the_same_bytes_and_a_larger_one_begins_with_the_same_services() -> None:
    assert body(Shape(5), Kind.SERVICE) == body(Shape(5), Kind.SERVICE)
    assert list(items(Shape(9), Kind.ENDPOINT_SLICE))[:5] == list(items(Shape(5), Kind.ENDPOINT_SLICE))


def test_endpoints_beyond_the_ready_ones_do_not_serve() -> None:
    ready = [e["conditions"]["ready"] for e in endpoint_slice(Shape(1), 0, Family.IPV4, 3)["endpoints"]]
    assert ready == [True, True, True, False, False]


def test_the_bytes_of_a_change_do_not_depend_on_the_size() -> None:
    small, large = (by_name(list(planning.changes(Shape(n), count=1))) for n in (5, 400))
    for what in ("bytes to iptables-restore, an endpoint goes", "bytes to iptables-restore, it comes back"):
        assert small[what].value == large[what].value > 100


def test_a_cold_start_measures_each_step_once() -> None:
    figures = by_name(list(planning.cold_start(Shape(3, 2, DUAL), "both", limit=60_000)))
    assert len(figures) == 6
    assert all(figure.value > 0 and figure.kept for figure in figures.values())
    parts = figures["both: planning"].value + figures["both: rendering"].value
    assert figures["both: planning and rendering"].value == pytest.approx(parts)


def test_memory_is_of_a_process_that_holds_the_whole_cluster(tmp_path: Path) -> None:
    shape = Shape(501, 1, DUAL)  # more than a page
    for kind in memory.KINDS:
        memory.write_pages(shape, kind, tmp_path)
    told = memory.measure(tmp_path)
    assert told["ports"] == 1002
    assert told["highest"] >= told["after"] > 0


def test_the_command_writes_json_for_the_groups_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["start", "change", "--sizes", "2,4", "--endpoints", "1", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"start.json", "change.json"}
    sizes = {figure["services"] for figure in json.loads((tmp_path / "change.json").read_text())["figures"]}
    assert sizes == {2, 4}
    assert "planning and rendering" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nothing"], "no such group: nothing"), (["start", "--sizes", "a"], "not numbers: a")]
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
