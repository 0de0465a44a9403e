"""An empty network namespace with an IPVS of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from kproxy.kernel.ipvs import KernelIpvs
from kproxy.lab.namespaces import Namespace


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
