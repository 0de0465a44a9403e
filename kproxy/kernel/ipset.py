"""The kernel's ipsets over netlink: reading them, and changing them in batches.

Decides: how entries are batched, which refusals are harmless, and what happens when a set is full. Leaves out: the
bytes (`kproxy.kernel.ipset_codec`). Entries are the text that ipset(8) prints: "10.96.0.1,tcp:443", "30080",
"10.0.0.1,udp:53,10.0.0.1", "203.0.113.1,tcp:80,10.0.0.0/8". Sources: include/uapi/linux/netfilter/ipset/ip_set.h,
ipset(8).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from kproxy.errors import NetlinkError
from kproxy.kernel import ipset_codec as codec
from kproxy.kernel import netlink
from kproxy.kernel.constants import NETLINK_NETFILTER
from kproxy.kernel.ipset_codec import Header, SetSpec, SetType
from kproxy.kernel.netlink_sockets import REFUSALS_BUFFER, Part, Socket
from kproxy.model.plans import Family

LIMIT = 65536
"""How many entries a set may hold, as kube-proxy creates it: it accepts no set with another limit, and could not take
the node back."""
GROWTH = 16
"""The factor by which the limit of a set that is full is raised."""
LARGER = {Family.IPV4: "kproxy-larger", Family.IPV6: "kproxy-larger-6"}
"""The temporary set that replaces one that is full. One a family, as both may do that at the same time."""


class HeldSet(NamedTuple):
    """A set as the kernel has it. type: any of ipset's names. family: None for a bitmap. references: the number of
    rules and sets that use it."""

    type: str
    family: Family | None
    references: int
    entries: frozenset[str]


class Change(NamedTuple):
    """An entry to add to a set, or to delete from it."""

    set: str
    entry: str
    add: bool

    def __str__(self) -> str:
        return f"{'add to' if self.add else 'delete from'} ipset {self.set}: {self.entry}"


_Encoded = tuple[Change, bytes]  # with the entry's bytes


class IpSets(Protocol):
    """The ipsets of one network namespace. Not safe for two threads at once: each family has an object of its own."""

    def held(self, names: Collection[str]) -> dict[str, HeldSet]:
        """The existing sets among `names`, with all their entries in canonical text. Raises NetlinkError."""

    def create(self, specs: Iterable[SetSpec]) -> None:
        """Create sets; one that exists with the same type and family stays as it is. Raises NetlinkError."""

    def apply(self, changes: Iterable[Change]) -> Mapping[Change, NetlinkError]:
        """Apply all changes in order; adding an entry that exists or deleting one that does not is not an error.

        Returns what the kernel refused; the others are done. Raises NetlinkError when the kernel cannot be reached.
        """

    def destroy(self, names: Iterable[str]) -> dict[str, NetlinkError]:
        """Destroy sets; one that does not exist is not an error. Returns those that stay, as a rule still uses them."""


class KernelIpSets:
    """The real ipsets, of the network namespace of the thread that makes this object. Close it after use.

    Entries are added and deleted without NLM_F_EXCL, like `-exist` of ipset(8).
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
        """See IpSets.held. Entries of types other than SetType's are decoded as far as kproxy knows their parts."""
        found: dict[str, HeldSet] = {}
        for name in names:
            if (listed := self._listed(name)) is not None:
                header, entries = listed
                found[name] = HeldSet(header.type, header.family, header.references, entries)
        return found

    def header(self, name: str) -> Header:
        """What the kernel reports of a set besides its entries. Raises NetlinkError."""
        return self._header(name)

    def has(self, name: str, entry: str) -> bool:
        """Whether a set matches an entry of single addresses, as a rule would ask. Raises NetlinkError, ValueError."""
        payload = codec.named(name) + netlink.nested(codec.ATTR_DATA, codec.entry(entry))
        try:
            self._socket.ask(codec.TEST, payload, f"look for {entry} in ipset {name}")
        except NetlinkError as error:
            if error.errno == codec.NOT_IN_SET:
                return False
            raise codec.explained(error) from None
        return True

    def create(self, specs: Iterable[SetSpec]) -> None:
        for spec in specs:
            self._create(spec, LIMIT)

    def apply(self, changes: Iterable[Change]) -> Mapping[Change, NetlinkError]:
        """See IpSets.apply. Of several changes to one entry only the last is applied. An invalid entry gets EINVAL.

        A set that is full is replaced by one that holds GROWTH times as many, atomically for the rules that use it.
        """
        refused: dict[Change, NetlinkError] = {}
        lots: dict[tuple[bool, str], list[_Encoded]] = {}
        for change in {(change.set, change.entry): change for change in changes}.values():
            try:
                lots.setdefault((change.add, change.set), []).append((change, codec.entry(change.entry)))
            except ValueError as error:
                refused[change] = NetlinkError(str(change), errno.EINVAL, str(error))
        for (add, name), lot in sorted(lots.items()):  # deletions first: they make room
            errors = self._write(add, name, lot)
            full = [encoded for encoded in lot if encoded[0] in errors and errors[encoded[0]].errno == codec.HASH_FULL]
            if full and self._enlarge(name):
                errors = {change: error for change, error in errors.items() if error.errno != codec.HASH_FULL}
                errors |= self._write(add, name, full)
            refused |= {change: codec.explained(error) for change, error in errors.items()}
        return refused

    def destroy(self, names: Iterable[str]) -> dict[str, NetlinkError]:
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
        with self._socket.decoding(request):
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
            request = f"look for ipset type {spec.type}"
            answers = self._ask(codec.TYPE, codec.type_query(spec.type, spec.family), request)
            with self._socket.decoding(request):
                self._revisions[spec.type] = codec.revision_of(answers[0].payload, spec.type)
        return self._revisions[spec.type]

    def _header(self, name: str) -> Header:
        request = f"look at ipset {name}"
        answers = self._ask(codec.HEADER, codec.named(name), request)
        with self._socket.decoding(request):
            return next((found for a in answers if (found := codec.header_of(a.payload))), Header("", None))

    def _write(self, add: bool, name: str, lot: Sequence[_Encoded]) -> dict[Change, NetlinkError]:
        """Add or delete all of `lot`; returns what the kernel refused, with ipset's own error numbers."""
        command = codec.ADD if add else codec.DELETE
        errors: dict[Change, NetlinkError] = {}
        for start in range(0, len(lot), codec.ENTRIES_AT_ONCE):
            rest = lot[start : start + codec.ENTRIES_AT_ONCE]
            whole: Part = (command, 0, codec.numbered(name, [data for _, data in rest]))
            request = f"change ipset {name}"
            for refusal in self._socket.refusals([whole], lambda _, request=request: request).values():  # type: ignore[misc]
                with self._socket.decoding(request):
                    done = max(codec.refused_entry(refusal) - 1, 0)  # the kernel stopped there
                errors |= self._write_each(command, name, rest[done:])
        if add:
            return errors
        return {change: error for change, error in errors.items() if error.errno != errno.ENOENT}  # no such set

    def _write_each(self, command: int, name: str, lot: Sequence[_Encoded]) -> dict[Change, NetlinkError]:
        parts: list[Part] = [(command, 0, codec.numbered(name, [data])) for _, data in lot]
        errors = self._socket.change(parts, lambda index: str(lot[index][0]))
        return {lot[index][0]: error for index, error in errors.items()}

    def _enlarge(self, name: str) -> bool:
        """Replace a set that is full by one with a higher limit; returns whether that was possible."""
        try:
            header, entries = self._listed(name) or (Header("", None), frozenset())
            if not header.limit or header.family is None or header.type not in list(SetType):
                return False
            larger = LARGER[header.family]
            self.destroy([larger])
            self._create(SetSpec(larger, SetType(header.type), header.family), header.limit * GROWTH)
            lot = [(Change(larger, text, add=True), codec.entry(text)) for text in entries]
            complete = not self._write(True, larger, lot)
            if complete:
                self._ask(codec.SWAP, codec.pair(name, larger), f"swap ipsets {name} and {larger}")
            self.destroy([larger])
        except (NetlinkError, ValueError):
            return False
        return complete
