"""One cluster for all the tests of the lab that only look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.lab.clusters import Cluster, Pod, build
from kproxy.lab.namespaces import unavailable

REASON = unavailable(tools=())
PODS = (Pod("one", 1, 11), Pod("two", 1, 12), Pod("far", 2, 11))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REASON:
        for item in items:
            if item.path.parent.name == "lab":
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with build(PODS, ports=(8080, 8081)) as built:
        yield built
