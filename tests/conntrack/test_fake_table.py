"""The table in memory is as strict as the kernel's."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from kproxy.conntrack.stale_flows import Flow
from kproxy.model.plans import Family, Protocol
from tests.fakes.conntrack import FakeConntrack

ONE = Flow(Protocol.UDP, "10.0.0.1", 1000, "10.96.0.10", 53, "10.244.0.1", 53)
SIX = Flow(Protocol.UDP, "fd00::1", 1000, "fd00::10", 53, "fd00::2", 53)
SCTP = replace(ONE, protocol=Protocol.SCTP)


def test_an_entry_exists_once_in_a_zone() -> None:
    table = FakeConntrack([ONE, replace(ONE, zone=7)])
    with pytest.raises(ValueError, match="already tracked"):
        table.add(replace(ONE, reply_source="10.244.0.9"))


@pytest.mark.parametrize("flow", [replace(ONE, protocol=Protocol.TCP), replace(ONE, reply_source="fd00::2")])
def test_what_is_no_flow_is_refused(flow: Flow) -> None:
    with pytest.raises(ValueError, match="no UDP or SCTP flow"):
        FakeConntrack([flow])


def test_exactly_the_named_entries_are_deleted_and_counted_once() -> None:
    table = FakeConntrack([replace(ONE, zone=7), SIX])
    added = table.add(ONE)
    assert table.delete([added, added]) == 1
    successor = table.add(ONE)
    assert table.delete([added]) == 0
    assert successor in table.flows(Family.IPV4)
    assert table.delete([successor, *table.flows(Family.IPV6)]) == 2
    assert [f.zone for f in table.flows(Family.IPV4)] == [7]
