"""Waiting for a proxy."""

from __future__ import annotations

import time

import pytest

from kproxy.lab.proxies import LONGEST_PAUSE, wait_for


@pytest.mark.parametrize(("look", "most"), [(0.05, 8), (2 * LONGEST_PAUSE, 3)])
def test_slow_looks_leave_time_for_what_is_waited_for(look: float, most: int) -> None:
    looks: list[float] = []

    def condition() -> bool:
        looks.append(time.monotonic())
        time.sleep(look)
        return False

    assert not wait_for(condition, 1.0)
    assert 2 <= len(looks) <= most


def test_it_ends_with_the_look_at_which_it_holds() -> None:
    answers = iter([False, False, True])
    assert wait_for(lambda: next(answers), 60, pause=0)
    assert next(answers, None) is None
