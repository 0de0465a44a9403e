"""A network namespace with an IPVS of its own: an empty one for each test, and one node for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.kernel.ipvs import KernelIpvs
from kproxy.lab.namespaces import Namespace
from tests.ipvs.nodes import Node, build


@pytest.fixture
def space() -> Iterator[Namespace]:
    with closing(Namespace("ipvs")) as made:
        made.run(["ip", "link", "set", "lo", "up"])
        yield made


@pytest.fixture
def ipvs(space: Namespace) -> Iterator[KernelIpvs]:
    """Its sockets are in the namespace, whatever thread calls it."""
    with space.call(KernelIpvs) as kernel:
        yield kernel


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """Whoever uses it says what it serves, and whoever spoils more than that repairs it."""
    with build() as made:
        yield made
