"""The kernel's notifications of changes to nf_tables, where iptables-nft keeps its rules too.

The kernel sends one message for every change, and ends each transaction with a message that names the process.
Decides: which changes matter, and whose they were. Leaves out: repairing them, and the legacy tables
(kproxy.kernel.legacy_tables).
Sources: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from kproxy.kernel import host_checks, netlink
from kproxy.kernel.constants import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES
from kproxy.kernel.netlink_sockets import Overrun, Socket

NFNLGRP_NFTABLES = 7
SUBSYSTEM = NFNL_SUBSYS_NFTABLES
NEWGEN = 15
NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 2, 3
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
# By message: the kind of object, and the attribute with the name of the chain or set; attribute 1 is the table in all.
KINDS = {0: ("table", 0), 3: ("chain", 3), 6: ("rule", 2), 9: ("set", 2), 12: ("element", 2), 18: ("object", 2)} | {
    22: ("flowtable", 2)
}
DELETIONS = {2: 0, 5: 3, 8: 6, 11: 9, 14: 12, 20: 18, 24: 22}
BUFFER = 8 << 20
REPORTED = 8  # events of one transaction; a flush makes thousands of events that all say the same
DETAILED = 20_000  # events of one transaction where each of them counts; more are reported as unknown
ELEMENTS = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
READ_AT_ONCE = 4096  # datagrams; then the caller gets its thread back

IPTABLES_TABLES = frozenset((family, table) for family in ("ip", "ip6") for table in ("nat", "filter", "mangle"))
BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
KUBELETS_OWN = frozenset({"KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"})


class Event(NamedTuple):
    """One table, chain, rule, set, element, object or flowtable was added (or updated) or deleted.

    family: as nft writes it. name: of the chain or set, "" for a table. elements: of a set, as the kernel lists them;
    empty unless the Monitor is detailed.
    """

    deleted: bool
    kind: str
    family: str
    table: str
    name: str
    elements: bytes = b""


class Change(NamedTuple):
    """What another program did. event None: anything may have happened, as notifications were lost or are malformed."""

    event: Event | None = None
    pid: int = 0
    process: str = ""

    def __str__(self) -> str:
        if self.event is None:
            return "changes that are not known"
        verb = "deleted" if self.event.deleted else "changed"
        what = " ".join(part for part in self.event[1:5] if part)
        return f"{self.process or 'a process'} ({self.pid}) {verb} {what}"


def touches_kube_chains(event: Event) -> bool:
    """Whether `event` may have damaged iptables rules of a kube-proxy: its chains, or the jumps to them."""
    if event.kind == "table" or event.name in BUILT_IN:
        return event.deleted
    return event.name.startswith("KUBE-") and event.name not in KUBELETS_OWN


class Transactions:
    """Decodes notifications into Changes by others: bytes in, values out."""

    def __init__(
        self,
        is_ours: Callable[[int], bool],
        tables: Collection[tuple[str, str]],
        relevant: Callable[[Event], bool],
        by_portid: bool,
        detailed: bool = False,
    ) -> None:
        """is_ours: whether a process id (by_portid: a netlink port id) is our own.
        tables: the (family, table) pairs to follow; relevant: which events in those matter. detailed: reports every
        event, with its elements, and a transaction with too many events as unknown; else a few different events."""
        self._is_ours, self._relevant, self._by_portid = is_ours, relevant, by_portid
        self._tables, self._detailed = frozenset(tables), detailed
        self._pending: list[Event] = []

    def feed(self, data: bytes) -> Iterator[Change]:
        """The changes by others whose transactions end in this datagram.

        Raises ValueError, IndexError or struct.error for malformed bytes.
        """
        if self._by_portid and self._is_ours(netlink.first_header(data).portid):
            return  # most changes are our own; a datagram belongs to one transaction
        for note in netlink.messages(data):
            subsystem, number = note.type >> 8, note.type & 0xFF
            if subsystem != SUBSYSTEM:
                continue
            if number == NEWGEN:
                yield from self._finish(note)
            elif len(self._pending) < (DETAILED if self._detailed else REPORTED):
                self._collect(number, note.payload)

    def reset(self) -> None:
        """Drops a transaction of which the end has not come."""
        self._pending.clear()

    def _collect(self, number: int, payload: bytes) -> None:
        kind, name_attribute = KINDS.get(DELETIONS.get(number, number), ("", 0))
        if not kind:
            return
        family = FAMILIES.get(payload[0], str(payload[0]))
        table = name = ""
        elements = b""
        for type_, value in netlink.each_attribute(payload, start=4):
            if type_ == 1:
                table = netlink.to_text(value)
                if (family, table) not in self._tables:
                    return
            elif type_ == name_attribute:
                name = netlink.to_text(value)
            elif type_ == ELEMENTS and kind == "element" and self._detailed:
                elements = value
            if table and (name or not name_attribute) and not self._detailed:
                break
        event = Event(number in DELETIONS, kind, family, table, name, elements)
        if table and self._relevant(event) and (self._detailed or event not in self._pending):
            self._pending.append(event)

    def _finish(self, note: netlink.Message) -> Iterator[Change]:
        events: list[Event | None]
        events, self._pending = [*self._pending], []
        if not events:
            return
        parts = netlink.attributes(note.payload, start=4)
        pid = netlink.to_int(parts.get(NFTA_GEN_PROC_PID, b""))
        if not self._is_ours(note.portid if self._by_portid else pid):
            process = netlink.to_text(parts.get(NFTA_GEN_PROC_NAME, b""))
            if len(events) >= DETAILED:
                events = [None]
            yield from (Change(event, pid, process) for event in events)


class Monitor:
    """Listens to nf_tables in the network namespace of the thread that makes it. For one thread; close it after use."""

    def __init__(
        self,
        is_ours: Callable[[int], bool],
        tables: Collection[tuple[str, str]] = IPTABLES_TABLES,
        relevant: Callable[[Event], bool] = touches_kube_chains,
        by_portid: bool = False,
        detailed: bool = False,
    ) -> None:
        """is_ours: whether a process id is ours, see Commands.recent_pids; with by_portid, the port id of a netlink
        socket. tables: (family, table) pairs as nft writes them; relevant: which events in them matter. detailed: see
        Transactions. Raises NetlinkError."""
        # In a container the kernel's process ids are not ours. The port id serves instead: every command that we start
        # uses its process id, as we see it, for its first netlink socket.
        by_portid = by_portid or not host_checks.in_initial_pid_namespace()
        self._transactions = Transactions(is_ours, tables, relevant, by_portid, detailed)
        self._socket = Socket(NETLINK_NETFILTER, groups=(NFNLGRP_NFTABLES,), buffer=BUFFER)

    def fd(self) -> int:
        """A descriptor that is readable when `poll` may have something to report; most often it will have nothing."""
        return self._socket.fileno()

    def poll(self, timeout: float = 0.0) -> list[Change]:
        """What others changed since the last poll; unless detailed, a few of each transaction's events.

        Waits at most `timeout` seconds for a first notification, whoever caused it, and continues while there are more.
        Raises NetlinkError.
        """
        found: list[Change] = []
        for _ in range(READ_AT_ONCE):
            try:
                data = self._socket.receive(timeout)
            except Overrun:
                self.forget()
                return [*found, Change()]
            if data is None:
                break
            timeout = 0.0
            try:
                found.extend(self._transactions.feed(data))
            except (ValueError, IndexError, struct.error):
                self._transactions.reset()
                found.append(Change())
        return found

    def forget(self) -> None:
        """Drops what was not read yet, as the caller is about to compare everything."""
        self._transactions.reset()
        for _ in range(READ_AT_ONCE):
            try:
                if self._socket.receive() is None:
                    return
            except Overrun:
                continue

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
