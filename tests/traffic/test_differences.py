"""What a mode cannot have is written down, and is about something that the table really asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.lab.differences import DIFFERENCES, Difference
from kproxy.lab.scenario_table import SCENARIOS

MODES = Path(__file__).parents[2] / "docs" / "modes.md"
ALL = [(mode, difference) for mode, differences in DIFFERENCES.items() for difference in differences]


@pytest.mark.parametrize(("mode", "difference"), ALL, ids=lambda v: v.reason if isinstance(v, Difference) else v)
def test_each_difference_is_explained_and_real(mode: str, difference: Difference) -> None:
    section = MODES.read_text().partition(f"\n## {mode}\n")[2].partition("\n## ")[0]
    assert f"**{difference.reason}" in section
    concerned = [(s, p) for s in SCENARIOS for p in s.probes if difference.concerns(s, p)]
    assert concerned
    assert all(difference.instead(scenario, probe) != probe for scenario, probe in concerned)
