"""Cases that kube-proxy answered, for the walks through their rules."""

from __future__ import annotations

import pytest

from tests.parity.conftest import Case, cases


@pytest.fixture(scope="session")
def all_cases() -> tuple[Case, ...]:
    return cases()
