"""A run becomes a page that needs nothing else, with every number in it, and plots on logarithmic axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.descriptions import DESCRIPTIONS, LIMITS
from benchmarks.report.pages import write
from benchmarks.report.plots import COSTS, cost, distribution, plots
from benchmarks.report.summaries import Results
from benchmarks.suite.results import Measurement, Problem, Quantity, Run, Subject, encode

HOSTILE = "<script>alert(1)</script> & \"$\\frac{1}{'"
SUBJECTS = (
    Subject("kproxy nftables", "nftables", "kproxy run --proxy-mode nftables"),
    Subject("_kproxy iptables", "iptables", "kproxy run --proxy-mode iptables"),
    Subject(HOSTILE, "nftables", "/bin/other --flag='<b>'", baseline=True),
)
SIZES = ((100, 5), (1_000, 5), (10_000, 5))
SCALES = {"s": 0.01, "B": 5e6, "1/s": 9000.0}


def measurements() -> list[Measurement]:
    """Subject N's samples are N + 1 times the first's and grow with the cluster by a power of N / 2."""
    return [
        Measurement(
            subject.name, services, endpoints, quantity, tuple(value * part for part in (1.0, 1.1, 1.7)), "noted"
        )
        for place, subject in enumerate(SUBJECTS)
        for services, endpoints in SIZES[: 2 if place == 1 else 3]
        for quantity in Quantity
        for value in [SCALES[quantity.unit] * (place + 1) * (services / 100) ** (place / 2)]
    ]


RUN = Run(
    "2025-06-01T10:00:00Z",
    1834.0,
    {"processor": "A <fast> one", "kernel": "6.18.5", "kproxy": "0.1.0"},
    ("--modes", "nftables,iptables"),
    SUBJECTS,
    tuple(measurements()),
    (Problem("_kproxy iptables", 10_000, "it did not start: <i>no</i>"), Problem("ipvs", 0, "no IPVS in this kernel")),
)
ONE_SIZE = replace(RUN, measurements=tuple(each for each in RUN.measurements if each.services == 100))
ZERO = replace(RUN, measurements=(Measurement("kproxy nftables", 100, 5, Quantity.CPU_PER_CHANGE, (0.0, 0.0)),))
NOTHING = replace(RUN, measurements=())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(RUN, tmp_path_factory.mktemp("reports") / "new")


@pytest.fixture(scope="module")
def page(written: list[Path]) -> Element:
    parser = html5lib.HTMLParser(tree=html5lib.getTreeBuilder("etree"), strict=True, namespaceHTMLElements=False)
    parsed = parser.parse(written[0].read_text(encoding="utf-8"))
    assert isinstance(parsed, Element)
    return parsed


def words(element: Element, between: str = "") -> str:
    return " ".join(between.join(element.itertext()).split())


def rows(page: Element, section: str) -> dict[str, list[str]]:
    place = f".//*[@id='{section}']/tbody" if section in ("growth", "ratios") else f".//*[@id='{section}']//tbody"
    body = page.find(place)
    assert body is not None
    return {words(row[0]): [words(cell, " ") for cell in row[1:]] for row in body}


def test_there_is_one_page_and_a_plot_for_each_cost_for_memory_connections_and_distribution(
    written: list[Path],
) -> None:
    expected = {"suite.html", "comparison.png", "memory.png", "connections.png", "distribution.png"} | {
        f"cost-{c}.png" for c in COSTS
    }
    assert {path.name for path in written} == expected
    assert written[0].name == "suite.html"


def test_the_page_refers_to_nothing_outside_and_runs_nothing(page: Element) -> None:
    tags = {element.tag for element in page.iter() if isinstance(element.tag, str)}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for element in page.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert name not in ("href", "srcset", "action")
            if name == "src":
                assert value.startswith("data:image/png;base64,")
    assert "url(" not in words(page)
    assert "@import" not in words(page)


def test_names_are_shown_as_they_are(page: Element) -> None:
    text = words(page)
    for name in (HOSTILE, "/bin/other --flag='<b>'", "A <fast> one", "it did not start: <i>no</i>"):
        assert name in text


def test_the_page_says_where_how_and_what_failed(page: Element) -> None:
    text = words(page)
    for part in ("2025-06-01T10:00:00Z", "31 minutes", "6.18.5", "--modes nftables,iptables", *LIMITS):
        assert part in text
    assert "at 10,000 Services: it did not start" in text
    assert "ipvs: no IPVS in this kernel" in text


@pytest.mark.parametrize("quantity", Quantity)
def test_every_quantity_has_its_meaning_and_a_row_for_each_subject(page: Element, quantity: Quantity) -> None:
    section = page.find(f".//*[@id='{quantity}']")
    assert section is not None
    assert words(section).count(DESCRIPTIONS[quantity]) == 1
    assert list(rows(page, str(quantity))) == [subject.name for subject in SUBJECTS]


def test_a_row_has_p50_p99_ratio_samples_and_growth(page: Element) -> None:
    found = rows(page, "endpoint-change")
    assert found["kproxy nftables"] == [
        "11 ms 3 samples noted", "17 ms worst 17 ms", "0.33",
        "11 ms 3 samples noted", "17 ms worst 17 ms", "0.033",
        "11 ms 3 samples noted", "17 ms worst 17 ms", "0.0033",
        "× 1.00",
    ]  # fmt: skip
    assert found["_kproxy iptables"][6:] == ["", "", "", "× 3.16"]
    assert (found[HOSTILE][2:9:3], found[HOSTILE][-1]) == (["1.00", "1.00", "1.00"], "× 100.00")


def test_each_mode_is_beside_its_own_baseline_in_one_table_and_one_picture(page: Element) -> None:
    """iptables has none in this run. Ratios are of the largest size that both have, not of the reference at any."""
    assert list(rows(page, "ratios")) == [
        f"{quantity.label}{' (more is better)' if quantity.more_is_better else ''}" for quantity in Quantity
    ]
    assert {tuple(row) for row in rows(page, "ratios").values()} == {("0.0033",)}
    figure = next(plot.figure for plot in plots(Results(RUN)) if plot.name == "comparison")
    (axes,) = figure.axes
    marks = axes.lines[0].get_xdata()
    assert list(marks) == pytest.approx([300.0 if q.more_is_better else 1 / 300 for q in Quantity])  # type: ignore[arg-type]
    assert not [plot for plot in plots(Results(replace(RUN, subjects=SUBJECTS[:2]))) if plot.name == "comparison"]


def test_growth_stands_in_a_table_of_its_own(page: Element) -> None:
    found = rows(page, "growth")
    assert list(found) == [quantity.label for quantity in Quantity]
    for row in found.values():
        assert row == ["× 1.00 Services × 100", "× 3.16 Services × 10", "× 100.00 Services × 100"]


@pytest.mark.parametrize("run", [RUN, ONE_SIZE, ZERO], ids=["all", "one size", "zeros"])
def test_costs_memory_and_connections_are_on_logarithmic_axes(run: Run) -> None:
    drawn = [plot for plot in plots(Results(run)) if plot.name not in ("comparison", "distribution")]
    assert drawn
    for plot in drawn:
        (axes,) = plot.figure.axes
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        low, high = axes.get_ylim()
        assert high / low >= 9.99


def test_a_cost_has_a_point_at_each_size_and_ticks_that_name_them() -> None:
    (axes,) = cost(Results(RUN), Quantity.NEW_SERVICE).axes
    assert [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 3] == [  # type: ignore[index,arg-type]
        pytest.approx(0.011),
        pytest.approx(0.033),
    ]
    assert [axes.xaxis.get_major_formatter()(tick, 0) for tick in axes.get_xticks()] == ["100", "1,000", "10,000"]
    assert "5 endpoints" in axes.get_xlabel()


def test_a_distribution_rises_to_all_of_the_samples_on_a_logarithmic_axis() -> None:
    figure = distribution(Results(RUN))
    assert len(figure.axes) == 5
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert len(axes.lines) == 3 if "1,000 Services" in axes.get_xlabel() else 2
        for line in axes.lines:
            heights = list(line.get_ydata())  # type: ignore[arg-type]
            assert (heights[0], heights[-1]) == (0, 1)


@pytest.mark.parametrize("run", [ONE_SIZE, ZERO, NOTHING], ids=["one size", "zeros", "nothing"])
def test_a_run_that_found_little_still_has_a_page(run: Run, tmp_path: Path) -> None:
    measured = {each.quantity for each in run.measurements}
    few = replace(run, measurements=tuple(m for m in run.measurements if m.quantity in list(Quantity)[4:7]))
    text = write(few, tmp_path)[0].read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert "6.18.5" in text
    assert ("Growth with the cluster" in text) is bool(measured)


def test_a_report_is_made_again_from_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.json").write_bytes(encode(ZERO))
    assert main([str(tmp_path / "suite.json"), "--out", str(tmp_path / "out")]) == 0
    assert "processor time per change" in capsys.readouterr().out
    assert (tmp_path / "out" / "suite.html").exists()


@pytest.mark.parametrize(
    ("content", "why"), [(b"{}", "not the results"), (b"\0", "not the results"), (None, "No such file")]
)
def test_a_file_that_holds_no_results_is_one_clear_line(
    content: bytes | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 1
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
