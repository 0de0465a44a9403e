"""The kernel's ipsets, by netlink: what they hold, and changes to them in batches.

Entries are the text that ipset(8) prints: "10.96.0.1,tcp:443", "30080", "10.0.0.1,udp:53,10.0.0.1",
"203.0.113.1,tcp:80,10.0.0.0/8". Sources: include/uapi/linux/netfilter/ipset/ip_set.h, ipset(8).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import ipset_codec as codec
from kproxy.kernel import netlink
from kproxy.kernel.ipset_codec import Header, SetSpec, SetType
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Part, Socket
from kproxy.model.plans import Family

NETLINK_NETFILTER = 12
# As kube-proxy creates its sets: it takes none that was made with another limit, and so could not take the node back.
LIMIT = 65536
LARGE = 16  # times as many entries go into a set that is full
LARGER = "kproxy-larger"  # the set that takes over the entries of one that is full


class HeldSet(NamedTuple):
    """A set as the kernel has it. type: any of ipset's names. references: rules and sets that use it. family: None
    for a bitmap."""

    type: str
    family: Family | None
    references: int
    entries: frozenset[str]


class Change(NamedTuple):
    """An entry to put into a set, or to take out of it."""

    set: str
    entry: str
    add: bool

    def __str__(self) -> str:
        return f"{'add to' if self.add else 'delete from'} ipset {self.set}: {self.entry}"


_Coded = tuple[Change, bytes]  # with the entry's bytes


class IpSets(Protocol):
    """The ipsets of one network namespace. Not for two threads at a time: make one for each."""

    def held(self, names: Collection[str]) -> dict[str, HeldSet]:
        """Those of NAMES that exist, with all entries in canonical text. Raises NetlinkError."""

    def create(self, specs: Iterable[SetSpec]) -> None:
        """Create sets; one that exists in that form already stays as it is. Raises NetlinkError, naming the set."""

    def apply(self, changes: Iterable[Change]) -> Mapping[Change, NetlinkError]:
        """Do them all, in order; an entry that is there already, or gone already, is no error.

        Returns what the kernel refused; the others are done. Raises NetlinkError when the kernel cannot be talked to.
        """

    def swap(self, one: str, other: str) -> None:
        """Exchange the contents of two sets of the same type, in one step for every rule that matches on them."""

    def destroy(self, names: Iterable[str]) -> dict[str, NetlinkError]:
        """Remove sets; one that does not exist is no error. Returns those that stay, as a rule still uses them."""


class KernelIpSets:
    """The real ones, of the network namespace of the thread that makes it. Close it after use.

    A request that adds what is there already, or deletes what is not, is done without NLM_F_EXCL: `-exist` of ipset(8).
    """

    def __init__(self) -> None:
        """Raises NetlinkError where the kernel has no netfilter by netlink."""
        self._socket = Socket(NETLINK_NETFILTER, buffer=REFUSALS_BUFFER)
        self._revisions: dict[SetType, int] = {}

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> KernelIpSets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def held(self, names: Collection[str]) -> dict[str, HeldSet]:
        """As IpSets.held. Of a type that is none of SetType, entries have what they have in common with one that is."""
        found: dict[str, HeldSet] = {}
        for name in names:
            if (listed := self._listed(name)) is not None:
                header, entries = listed
                found[name] = HeldSet(header.type, header.family, header.references, entries)
        return found

    def create(self, specs: Iterable[SetSpec]) -> None:
        """As IpSets.create. A set of that type and family is in that form, whatever its options."""
        for spec in specs:
            self._create(spec, LIMIT)

    def apply(self, changes: Iterable[Change]) -> Mapping[Change, NetlinkError]:
        """As IpSets.apply. Of several changes of one entry only the last is done; what is no entry is EINVAL.

        A set that is full is replaced by one that holds LARGE times as many, in one step for the rules that use it.
        """
        refused: dict[Change, NetlinkError] = {}
        lots: dict[tuple[bool, str], list[_Coded]] = {}
        for change in {(change.set, change.entry): change for change in changes}.values():
            try:
                lots.setdefault((change.add, change.set), []).append((change, codec.entry(change.entry)))
            except ValueError as error:
                refused[change] = NetlinkError(str(change), errno.EINVAL, str(error))
        for (add, name), lot in sorted(lots.items()):  # deletions first: they make room
            errors = self._write(add, name, lot)
            full = [coded for coded in lot if coded[0] in errors and errors[coded[0]].errno == codec.HASH_FULL]
            if full and self._enlarge(name):
                errors = {change: error for change, error in errors.items() if error.errno != codec.HASH_FULL}
                errors |= self._write(add, name, full)
            refused |= {change: codec.explained(error) for change, error in errors.items()}
        return refused

    def swap(self, one: str, other: str) -> None:
        """As IpSets.swap. Raises NetlinkError."""
        self._ask(codec.SWAP, codec.pair(one, other), f"swap ipsets {one} and {other}")

    def destroy(self, names: Iterable[str]) -> dict[str, NetlinkError]:
        """As IpSets.destroy."""
        wanted = list(names)
        parts: list[Part] = [(codec.DESTROY, 0, codec.named(name)) for name in wanted]
        errors = self._socket.change(parts, lambda index: f"destroy ipset {wanted[index]}")
        return {wanted[i]: codec.explained(e) for i, e in errors.items() if e.errno != errno.ENOENT}

    def _ask(self, command: int, payload: bytes, request: str, flags: int = 0) -> list[netlink.Message]:
        try:
            return self._socket.ask(command, payload, request, flags)
        except NetlinkError as error:
            raise codec.explained(error) from None

    def _listed(self, name: str) -> tuple[Header, frozenset[str]] | None:
        request = f"list ipset {name}"
        try:
            chunks = self._socket.dump(codec.LIST, codec.named(name), request)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise codec.explained(error) from None
        answers = [a.payload for data in chunks for a in netlink.messages(data) if a.type == codec.LIST]
        header = next((found for found in map(codec.header_of, answers) if found), Header("", None))
        return header, frozenset(text for payload in answers for text in codec.entries_of(payload))

    def _create(self, spec: SetSpec, limit: int) -> None:
        request = f"create ipset {spec.name}"
        try:
            # Not as -exist: that would take a set of the other family for the same.
            self._ask(codec.CREATE, codec.creation(spec, self._revision(spec), limit), request, netlink.NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            found = self._header(spec.name)
            family = None if spec.type is SetType.BITMAP_PORT else spec.family
            if (found.type, found.family) != (spec.type, family):
                there = f"there is one of type {found.type}" + (f" for {found.family}" if found.family else "")
                raise NetlinkError(request, errno.EEXIST, there) from None

    def _revision(self, spec: SetSpec) -> int:
        if spec.type not in self._revisions:
            answers = self._ask(
                codec.TYPE, codec.type_query(spec.type, spec.family), f"look for ipset type {spec.type}"
            )
            self._revisions[spec.type] = codec.revision_of(answers[0].payload, spec.type)
        return self._revisions[spec.type]

    def _header(self, name: str) -> Header:
        answers = self._ask(codec.HEADER, codec.named(name), f"look at ipset {name}")
        return next((found for a in answers if (found := codec.header_of(a.payload))), Header("", None))

    def _write(self, add: bool, name: str, lot: Sequence[_Coded]) -> dict[Change, NetlinkError]:
        """Add or delete all of LOT; what the kernel refused, with ipset's own error numbers."""
        command = codec.ADD if add else codec.DELETE
        errors: dict[Change, NetlinkError] = {}
        for start in range(0, len(lot), codec.ENTRIES_AT_ONCE):
            rest = lot[start : start + codec.ENTRIES_AT_ONCE]
            whole: Part = (command, 0, codec.numbered(name, [data for _, data in rest]))
            for refusal in self._socket.refusals([whole], lambda _: f"change ipset {name}").values():
                done = max(codec.refused_entry(refusal) - 1, 0)  # it stopped there; the others have to be told apart
                errors |= self._write_each(command, name, rest[done:])
        if add:
            return errors
        return {change: error for change, error in errors.items() if error.errno != errno.ENOENT}  # no such set

    def _write_each(self, command: int, name: str, lot: Sequence[_Coded]) -> dict[Change, NetlinkError]:
        parts: list[Part] = [(command, 0, codec.numbered(name, [data])) for _, data in lot]
        errors = self._socket.change(parts, lambda index: str(lot[index][0]))
        return {lot[index][0]: error for index, error in errors.items()}

    def _enlarge(self, name: str) -> bool:
        """Put a set that holds more in the place of one that is full; whether that was possible."""
        try:
            header, entries = self._listed(name) or (Header("", None), frozenset())
            if not header.limit or header.family is None or header.type not in list(SetType):
                return False
            self.destroy([LARGER])
            self._create(SetSpec(LARGER, SetType(header.type), header.family), header.limit * LARGE)
            lot = [(Change(LARGER, text, add=True), codec.entry(text)) for text in entries]
            complete = not self._write(True, LARGER, lot)
            if complete:
                self.swap(name, LARGER)
            self.destroy([LARGER])
        except (NetlinkError, ValueError):
            return False
        return complete
