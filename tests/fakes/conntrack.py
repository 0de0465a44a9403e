"""A connection tracking table in memory, as strict as the kernel's: one entry a client's tuple and zone."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec.structs import replace

from kproxy.conntrack.stale_flows import TRACKED, Flow
from kproxy.model.plans import Family, Protocol

Key = tuple[Protocol, str, int, str, int, int]


class FakeConntrack:
    """Holds what is added to it. While `failure` is set, every call raises it and changes nothing."""

    def __init__(self, flows: Iterable[Flow] = ()) -> None:
        self.failure: Exception | None = None
        self.dumps = 0
        self._entries: dict[Key, Flow] = {}
        self._next_id = 1
        for flow in flows:
            self.add(flow)

    def add(self, flow: Flow) -> Flow:
        """Track `flow`; returns it with the id that it got. Raises ValueError where the kernel says EEXIST or
        EINVAL."""
        addresses = (flow.source, flow.destination, flow.reply_source)
        if flow.protocol not in TRACKED or len({":" in a for a in addresses}) != 1:
            raise ValueError(f"no UDP or SCTP flow within one family: {flow}")
        if _key(flow) in self._entries:
            raise ValueError(f"already tracked: {flow}")
        added = replace(flow, id=self._next_id)
        self._next_id += 1
        self._entries[_key(flow)] = added
        return added

    def flows(self, family: Family, protocols: Collection[Protocol] = TRACKED) -> list[Flow]:
        """As kproxy.conntrack.table.Conntrack.flows; every call counts in `dumps`."""
        self._check()
        self.dumps += 1
        v6 = family is Family.IPV6
        return [f for f in self._entries.values() if (":" in f.source) == v6 and f.protocol in protocols]

    def delete(self, flows: Iterable[Flow]) -> int:
        """As kproxy.conntrack.table.Conntrack.delete: an entry with another id is another entry."""
        self._check()
        before = len(self._entries)
        for flow in flows:
            held = self._entries.get(_key(flow))
            if held and flow.id in (0, held.id):
                del self._entries[_key(flow)]
        return before - len(self._entries)

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


def _key(flow: Flow) -> Key:
    return (flow.protocol, flow.source, flow.source_port, flow.destination, flow.destination_port, flow.zone)
