"""The cases that kube-proxy answered, and nodes in every mode whose rules can be walked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.parity.conftest import Case, cases
from tests.trace.worlds import TRACERS, World


@pytest.fixture(scope="session")
def all_cases() -> tuple[Case, ...]:
    return cases()


@pytest.fixture(params=TRACERS)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(mode: str) -> Callable[..., World]:
    """Makes a node out of objects and configuration, in each mode in turn."""
    return partial(World, mode)
