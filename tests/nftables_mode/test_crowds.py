"""More clients than a set holds, on the real kernel: all are served, some without affinity."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.modes.nftables.compare import replacement
from kproxy.modes.nftables.delta import transactions
from kproxy.modes.nftables.names import clients
from kproxy.netfilter.kernel import KernelNftables
from tests.nftables.plans import build_plan, layout_of

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(("ip",))), reason=unavailable(("ip",)))]

PLAN = build_plan(affinity_seconds=600, cluster=(1, 2))
FIRST, SECOND = "10.244.9.1", "10.244.9.2"


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """Clients and endpoints are addresses of one host, whose set has room for one client."""
    space = Namespace("crowds")
    try:
        space.run(["ip", "link", "set", "lo", "up"])
        for ip in (FIRST, SECOND, *(e.ip for e in PLAN.cluster)):
            space.run(["ip", "address", "add", f"{ip}/32", "dev", "lo"])
        space.run(["ip", "route", "add", "default", "dev", "lo"])
        yield space
    finally:
        space.close()


def load() -> None:
    layout = layout_of(PLAN)
    name = clients(PLAN.affinity_seconds)
    layout = msgspec.structs.replace(
        layout, sets=layout.sets | {name: msgspec.structs.replace(layout.sets[name], size=1)}
    )
    with KernelNftables() as kernel:
        for operations in transactions(replacement(layout), layout.sets):
            assert kernel.apply(layout.family, operations) == {}


def answered(client: str, times: int) -> list[str]:
    """The endpoints that took connections of a client."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((e.ip, e.port), backlog=64)) for e in PLAN.cluster]
        found = []
        for _ in range(times):
            with socket.create_connection((PLAN.cluster_ip, PLAN.port), 5, (client, 0)) as connection:
                name = connection.getsockname()
                taken = []
                for listener in listeners:
                    listener.setblocking(False)
                    try:
                        other, where = listener.accept()
                    except BlockingIOError:
                        continue
                    other.close()
                    taken.append((listener.getsockname()[0], where))
                assert [where for _, where in taken] == [name]
                found += [ip for ip, _ in taken]
        return found


def test_clients_beyond_what_the_set_holds_are_served_without_affinity(netns: Namespace) -> None:
    netns.call(load)
    assert len(set(netns.call(answered, FIRST, 20))) == 1
    everywhere = netns.call(answered, SECOND, 60)
    assert set(everywhere) == {e.ip for e in PLAN.cluster}
    assert len(set(netns.call(answered, FIRST, 20))) == 1
