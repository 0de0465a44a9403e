"""Ipsets in memory: strict where the kernel is, so that wrong changes fail in tests too. Errors are the system's own.

Leaves out: timeouts, counters and types that nobody here uses. Sources: net/netfilter/ipset/, ipset(8).
"""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from kproxy.errors import NetlinkError
from kproxy.kernel.ipset import Change, HeldSet
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.model.node_info import family_of
from kproxy.model.plans import Family

MOST_ENTRIES = 65536  # of a hash, unless it is made for more
NO_FAMILY = Family.IPV4  # a bitmap's family has no meaning

_MATCHED = re.compile(r"--match-set (\S+) ")
_PORT = re.compile(r"(?:tcp|udp|sctp):(\d{1,5})")


class SavedTables:
    """The one thing that sets must know of xtables: which of them rules match on."""

    def __init__(self, save: Callable[[], str]) -> None:
        self._save = save

    def references(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in _MATCHED.findall(self._save()):
            found[name] = found.get(name, 0) + 1
        return found


def accept(change: Change) -> int:
    """Refuses nothing; for `FakeIpSets.refuse`."""
    return 0


@dataclass(slots=True)
class _Set:
    spec: SetSpec
    entries: dict[str, None] = field(default_factory=dict)


class FakeIpSets:
    """An IpSets of both families, in memory; dataplanes of both may share one.

    Faults to inject: `most`, the entries that a hash may have; `refuse`, which gives the errno for a change or 0;
    `fail_at`, the numbers of the applies (from 1) of which only the first half is done before the kernel cannot be
    talked to; `unreadable`, whether reading fails; `garbled`, the sets that cannot be decoded until they are destroyed;
    `absent`, whether the kernel has no ipset. users: the tables whose rules match on sets; a set that one matches on
    stays.

    applied: every change that was asked for, in order. lists: how often `held` was asked.
    """

    def __init__(self) -> None:
        self.most = MOST_ENTRIES
        self.refuse: Callable[[Change], int] = accept
        self.fail_at: set[int] = set()
        self.unreadable = False
        self.garbled: set[str] = set()
        self.absent = False
        self.users: list[SavedTables] = []
        self.applied: list[Change] = []
        self.applies = 0
        self.lists = 0
        self._sets: dict[str, _Set] = {}

    # ---- what a test does to it

    def flush(self, *names: str) -> None:
        """Do what `ipset flush` does; to all sets when none is named."""
        for name in names or tuple(self._sets):
            self._sets[name].entries.clear()

    def edit(self, change: Change) -> None:
        """What other programs do: a change that is counted nowhere. Raises NetlinkError when it is refused."""
        if number := self._do(change):
            raise NetlinkError(str(change), number)

    def unknown(self, rule: str) -> bool:
        """Whether a rule matches on a set that does not exist, for which the kernel refuses it."""
        return any(name not in self._sets for name in _MATCHED.findall(rule))

    def names(self) -> frozenset[str]:
        """All sets that exist."""
        return frozenset(self._sets)

    # ---- IpSets

    def held(self, names: Collection[str]) -> dict[str, HeldSet]:
        self._present("list sets")
        if self.unreadable:
            raise NetlinkError("list sets", errno.ENOBUFS)
        if not self.garbled.isdisjoint(names):
            raise NetlinkError("list sets", errno.EBADMSG)
        self.lists += 1
        references = self._references()
        return {
            name: HeldSet(
                held.spec.type.value,
                None if held.spec.type is SetType.BITMAP_PORT else held.spec.family,
                references.get(name, 0),
                frozenset(held.entries),
            )
            for name, held in self._sets.items()
            if name in names
        }

    def create(self, specs: Iterable[SetSpec]) -> None:
        self._present("create sets")
        for spec in specs:
            if not 0 < len(spec.name) < 32:
                raise NetlinkError(f"create ipset {spec.name}", errno.EINVAL)
            kind = spec._replace(family=NO_FAMILY) if spec.type is SetType.BITMAP_PORT else spec
            if self._sets.setdefault(spec.name, _Set(kind)).spec != kind:
                raise NetlinkError(f"create ipset {spec.name}", errno.EEXIST)

    def apply(self, changes: Iterable[Change]) -> Mapping[Change, NetlinkError]:
        self._present("change sets")
        asked = list(changes)
        self.applies += 1
        self.applied += asked
        failing = self.applies in self.fail_at
        errors: dict[Change, NetlinkError] = {}
        for change in asked[: len(asked) // 2] if failing else asked:
            if number := self.refuse(change) or self._do(change):
                errors[change] = NetlinkError(str(change), number)
        if failing:
            raise NetlinkError("change sets", errno.ENOBUFS)
        return errors

    def destroy(self, names: Iterable[str]) -> dict[str, NetlinkError]:
        self._present("destroy sets")
        references, stay = self._references(), dict[str, NetlinkError]()
        for name in names:
            if references.get(name):
                stay[name] = NetlinkError(f"destroy ipset {name}", errno.EBUSY)
            else:
                self._sets.pop(name, None)
                self.garbled.discard(name)
        return stay

    # ---- inside

    def _present(self, request: str) -> None:
        if self.absent:
            raise NetlinkError(request, errno.EPROTONOSUPPORT, "the kernel has no ipset")

    def _references(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for user in self.users:
            for name, count in user.references().items():
                found[name] = found.get(name, 0) + count
        return found

    def _do(self, change: Change) -> int:
        """The errno, 0 when it is done."""
        if (held := self._sets.get(change.set)) is None:
            return errno.ENOENT
        if not _fits(change.entry, held.spec):
            return errno.EINVAL
        if not change.add:
            held.entries.pop(change.entry, None)
        elif held.spec.type is not SetType.BITMAP_PORT and len(held.entries) >= self.most:
            return 0 if change.entry in held.entries else errno.ENOSPC
        else:
            held.entries[change.entry] = None
        return 0


def _fits(entry: str, spec: SetSpec) -> bool:
    """Whether ENTRY is of the set's type and family, in the text that ipset(8) prints."""
    if spec.type is SetType.BITMAP_PORT:
        return entry.isdigit() and entry == str(int(entry)) and int(entry) < 65536
    shape = spec.type.value.partition(":")[2].split(",")
    parts = entry.split(",")
    return len(parts) == len(shape) and all(_is(kind, p, spec.family) for kind, p in zip(shape, parts, strict=True))


def _is(kind: str, text: str, family: Family) -> bool:
    if kind == "port":
        match = _PORT.fullmatch(text)
        return match is not None and int(match[1]) < 65536
    try:
        if kind == "ip" or "/" not in text:
            return str(ipaddress.ip_address(text)) == text and family_of(text) is family
        network = ipaddress.ip_network(text)
    except ValueError:
        return False
    # A network of one address is printed without its length; one of length 0 is not taken.
    return str(network) == text and 0 < network.prefixlen < network.max_prefixlen and family_of(text) is family
