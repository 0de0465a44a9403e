"""The host's iptables tables of one family: reads them whole, changes them by iptables-restore.

Decides: which of the two backends (nf_tables, legacy) the node uses, how its commands are called, which tables their
output leaves out, and which line of a refused restore was at fault. Leaves out: what the rules mean, and what to do
about a refusal.

A table that holds something that iptables cannot read (a rule of nft's own, a match whose library is not installed) can
still be changed by iptables-restore, and most of its chains can be read one by one. So such a table is not an error of
`save`, which leaves it out.

The legacy commands of both families, and those of other programs, share one lock (/run/xtables.lock). A command that
hangs while it holds the lock makes the restores of the other family fail after LOCK_WAIT seconds, with a message that
names the lock; they are retried, and succeed when the command has ended or was killed (TIMEOUT at the latest). Nothing
better can be had: without the lock, two restores at the same time could undo each other's changes. A command that hangs
without the lock costs the other family nothing. Saving takes no lock, nor does the nf_tables backend.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kproxy.errors import CommandError, KernelError, RestoreError
from kproxy.kernel.commands import MISSING, NOT_EXECUTABLE, TIMED_OUT, Completed, Runner, checked
from kproxy.kernel.legacy_tables import loaded
from kproxy.model.plans import Family

LOCK_WAIT = 5
"""Seconds that the legacy commands may wait for /run/xtables.lock."""
TIMEOUT = 120.0
"""Seconds that a command may take. On nf_tables, saving 10,000 Services whose chains were created in alphabetical order
takes 24 s."""
# The kubelet creates these in the mangle table, so that others can tell which backend the node uses (KEP-3178).
HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
RANDOM_FULLY_SINCE = (1, 6, 2)


class Backend(StrEnum):
    """The kernel subsystem that holds the rules: nf_tables, through its compatibility layer, or the older xtables."""

    NFT = "nft"
    LEGACY = "legacy"


class Tables(Protocol):
    """One family's iptables tables, on a host or in tests.fakes.iptables."""

    @property
    def family(self) -> Family: ...

    @property
    def backend(self) -> Backend: ...

    def save(self) -> str:
        """All tables that exist, as iptables-save prints them; for one that cannot be read whole there is a comment
        instead (see `unreadable_tables`). Raises KernelError."""

    def chains(self, table: str) -> Collection[str]:
        """The names of all chains of TABLE, also when their rules cannot be read. Raises KernelError."""

    def list_chain(self, table: str, chain: str) -> str:
        """One chain's part of what `save` returns, its line ":CHAIN …" and its rules. Raises KernelError when there is
        no such chain, or a rule of it cannot be read."""

    def holds(self, table: str, chain: str, rule: str) -> bool:
        """Whether CHAIN has RULE, as iptables -C answers, also when other rules of it cannot be read. Raises
        KernelError."""

    def restore(self, text: bytes | str) -> None:
        """Apply TEXT as iptables-restore --noflush does: each table up to its COMMIT whole or not at all; a failure
        leaves the tables before it applied. Raises RestoreError for a rule that was refused, else KernelError."""


@dataclass(frozen=True, slots=True)
class Command:
    """One backend's commands by their names on this host. infix: "-nft", "-legacy" or "" for the plain ones. version:
    of the tools, as (1, 8, 9)."""

    backend: Backend
    infix: str
    version: tuple[int, ...]

    def name(self, family: Family, verb: str = "") -> str:
        """As iptables-nft-save for (IPv4, "save"); verb "" is for the command that changes single rules."""
        stem = "iptables" if family is Family.IPV4 else "ip6tables"
        return f"{stem}{self.infix}{'-' if verb else ''}{verb}"

    @property
    def random_fully(self) -> bool:
        """Whether the tools have MASQUERADE --random-fully (since 1.6.2; the kernel has it since 3.13)."""
        return self.version >= RANDOM_FULLY_SINCE


class HostTables:
    """The host's tables through the backend's own commands, one process per call. It has no state of its own."""

    def __init__(self, runner: Runner, family: Family, command: Command) -> None:
        self._runner = runner
        self._family = family
        self._command = command

    @property
    def family(self) -> Family:
        return self._family

    @property
    def backend(self) -> Backend:
        return self._command.backend

    def save(self) -> str:
        """See Tables. Output that is no iptables-save text counts as unreadable: acting on a part of it would delete
        rules that are there. Each table is read alone when they cannot be read together."""
        try:
            return self._saved()
        except KernelError as error:
            if _no_answer(error) or forbidden(error):
                raise
        return "".join(map(self._saved_or_why, self._tables()))

    def chains(self, table: str) -> Collection[str]:
        """See Tables. Of what the command prints before it gives up: names come first."""
        done = self._list(table)
        return [line.split(" ")[1] for line in done.stdout.decode(errors="replace").splitlines() if line[:3] in _HEADS]

    def list_chain(self, table: str, chain: str) -> str:
        done = self._list(table, chain)
        head, *rules = [_as_saved(line) for line in done.stdout.decode(errors="surrogateescape").splitlines()] or [""]
        whole = head.startswith(f":{chain} ") and all(rule.startswith(f"-A {chain} ") for rule in rules)
        if not done.ok or not whole:
            raise CommandError([self._command.name(self._family), "-S", chain], done.status, _one_line(done.stderr))
        return "".join(f"{line}\n" for line in (head, *rules))

    def holds(self, table: str, chain: str, rule: str) -> bool:
        argv = [self._command.name(self._family), *self._lock_options(), "-t", table, "-C", chain, *shlex.split(rule)]
        done = self._runner.run(argv, timeout=TIMEOUT)
        if not done.ok and not _NO_RULE.search(done.stderr):
            raise CommandError(argv, done.status, _one_line(done.stderr))
        return done.ok

    def accept_restores(self) -> None:
        """Raises KernelError when the tables cannot be changed by iptables-restore; changes nothing."""
        argv = [self._command.name(self._family, "restore"), "--noflush", "--test", *self._lock_options()]
        checked(self._runner, argv, b"*nat\nCOMMIT\n*filter\nCOMMIT\n", timeout=TIMEOUT)

    def _saved(self, *options: str) -> str:
        argv = [self._command.name(self._family, "save"), *options]
        text = checked(self._runner, argv, timeout=TIMEOUT).stdout.decode(errors="surrogateescape")
        if flaw := unreadable(text):
            raise KernelError(f"{argv[0]}: its output cannot be read: {flaw}")
        return text

    def _saved_or_why(self, table: str) -> str:
        try:
            return self._saved("-t", table)
        except KernelError as error:
            if _no_answer(error):
                raise
            return f"# Table `{table}' cannot be read: {error}\n"

    def _tables(self) -> list[str]:
        """The tables that may hold chains of ours. Of legacy only those that are loaded: naming others loads them."""
        there = loaded(self._family) if self.backend is Backend.LEGACY else _OURS
        return [table for table in _OURS if table in there]

    def _list(self, table: str, *chain: str) -> Completed:
        return self._runner.run([self._command.name(self._family), "-t", table, "-S", *chain], timeout=TIMEOUT)

    def restore(self, text: bytes | str) -> None:
        argv = [self._command.name(self._family, "restore"), "--noflush", *self._lock_options()]
        data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        done = self._runner.run(argv, data, timeout=TIMEOUT)
        if not done.ok:
            raise _refusal(argv, done, data.decode(errors="surrogateescape"))

    def _lock_options(self) -> list[str]:
        if self.backend is Backend.NFT or self._command.version < (1, 6, 2):
            return []  # the kernel's transactions need no lock; the older tools have no such option
        return ["-w", str(LOCK_WAIT), "-W", "100000"]  # the interval between two attempts in microseconds


_OURS = ("mangle", "nat", "filter")  # the tables that kube-proxy and kproxy ever wrote to
_HEADS = ("-P ", "-N ")
_NO_RULE = re.compile("matching rule exist|No chain/target/match|does not exist|Couldn't load target")
_UNREADABLE_TABLE = re.compile(r"^# Table `(\w+)' (?:is (incompatible)|cannot be read: (.*))", re.MULTILINE)


def unreadable_tables(text: str) -> dict[str, str]:
    """The tables that TEXT, which `save` returned, leaves out, each with a reason."""
    by_nft = "it holds rules of nft's own, which iptables cannot read"
    return {found[1]: by_nft if found[2] else found[3] for found in _UNREADABLE_TABLE.finditer(text)}


def _no_answer(error: KernelError) -> bool:
    """Whether a command did not run, or not to its end: that says nothing about the tables."""
    return isinstance(error, CommandError) and error.status in (MISSING, NOT_EXECUTABLE, TIMED_OUT)


def _as_saved(line: str) -> str:
    """A line of iptables -S as iptables-save prints it."""
    verb, _, rest = line.partition(" ")
    return f":{rest} [0:0]" if verb == "-P" else f":{rest} - [0:0]" if verb == "-N" else line


def _one_line(text: str) -> str:
    return " ".join(text.split())


# What iptables-save prints: options, chains, tables and their ends, comments.
_LINE_STARTS = ("-A ", ":", "*", "COMMIT\n", "#")


def unreadable(text: str) -> str:
    """Why TEXT cannot be what iptables-save printed to its end; "" when it can."""
    if not text:
        return ""
    if "\0" in text:
        return "it contains NUL bytes"
    if not text.endswith("\n"):
        return f"it ends within a line: {text[text.rfind(chr(10)) + 1 :][-80:]!r}"
    lines = text.count("\n")
    if lines != sum(text.count("\n" + start) + text.startswith(start) for start in _LINE_STARTS):
        for number, line in enumerate(text.splitlines(), 1):
            if not line.startswith(("-A ", ":", "*", "#")) and line != "COMMIT":
                return f"line {number} is {line[:80]!r}"
        return "a table ends twice"
    tables, ends = (text.count("\n" + mark) + text.startswith(mark) for mark in ("*", "COMMIT\n"))
    return "" if tables == ends else f"{tables} tables begin and {ends} end"


# ---------------------------------------------------------------- what a failed restore says

# Failures of the host and not of a rule: trying single lines would not help.
_HOST = re.compile(
    "xtables lock|lock file|must be root|Permission denied|Operation not permitted|Cannot allocate memory"
    "|No buffer space|Resource temporarily unavailable|unable to initialize table|table name '"
    "|Could not fetch rule set generation|Table does not exist|(?:unsupported|incompatible).* (?:kernel|version)",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile("must be root|Permission denied|Operation not permitted")
_LOCKED = re.compile("holding the xtables lock")
_NO_CHAIN = re.compile(r"Chain '([^']+)' does not exist")
_LINE = (
    re.compile(r"^line (\d{1,9}): \w+ failed", re.MULTILINE),  # nft, refused by the kernel
    re.compile(r"\bline (\d{1,9}) failed"),
    re.compile(r"Error occurred at line: (\d{1,9})"),
    re.compile(r"COMMIT expected at line (\d{1,9})"),
)


def forbidden(error: KernelError) -> bool:
    """Whether ERROR says that this process lacks the permission, and not that there are no such tables."""
    return bool(_FORBIDDEN.search(str(error)))


def _refusal(argv: Sequence[str], done: Completed, text: str) -> CommandError:
    said = _one_line(done.stderr)
    if _LOCKED.search(done.stderr):
        said = f"another program has held the xtables lock (/run/xtables.lock) for over {LOCK_WAIT} s: {said}"
    line = faulty_line(done.stderr, text)
    if not line or _HOST.search(done.stderr):
        return CommandError(argv, done.status, said)
    return RestoreError(argv, done.status, said, line)


def faulty_line(stderr: str, text: str) -> int:
    """The 1-based line of TEXT that the message of either backend is about, 0 when it names none.

    It is a COMMIT line when legacy's kernel side refuses something: it judges the whole table, and does not name the
    rule. nft reports a jump to a missing chain at COMMIT too, but names the chain, so that the jump can be found.
    """
    if (missing := _NO_CHAIN.search(stderr)) and (line := _jump_to(missing[1], text)):
        return line
    for pattern in _LINE:
        if found := pattern.search(stderr):
            return min(int(found[1]), text.count("\n"))
    return 0


def _jump_to(chain: str, text: str) -> int:
    jump = re.search(rf" -[jg] {re.escape(chain)}$", text, re.MULTILINE)
    return text.count("\n", 0, jump.start()) + 1 if jump else 0


# ---------------------------------------------------------------- which backend


def available(runner: Runner) -> dict[Backend, Command]:
    """The backends whose commands this host has, for both families. Raises KernelError when it has none, or none whose
    version can be read."""
    found: dict[Backend, Command] = {}
    unknown: list[str] = []
    for infix in ("-nft", "-legacy", ""):
        if not all(runner.which(f"{stem}{infix}-{verb}") for stem in _STEMS for verb in ("save", "restore")):
            continue
        command, printed = _identify(runner, infix)
        if command is None:
            unknown.append(f"iptables{infix}-restore --version prints {printed!r}")
        else:
            found.setdefault(command.backend, command)
    if not found and unknown:
        raise KernelError(f"the version of iptables cannot be read: {'; '.join(unknown)}")
    if not found:
        raise KernelError("iptables-save and iptables-restore (and their ip6tables forms) are not installed")
    return found


def detect(runner: Runner) -> Command:
    """The backend that the node already uses: the one with the kubelet's chains, else the one with more rules, else nft
    where there is a choice. Reads both families' tables once. Raises KernelError, also when this process may not see
    what a backend holds: taking it for empty could leave the node with rules in both."""
    found = available(runner)
    if len(found) == 1:
        return next(iter(found.values()))
    rules: dict[Backend, int] = {}
    for backend in (Backend.NFT, Backend.LEGACY):
        saves = [_quiet_save(runner, found[backend], family) for family in Family]
        if any(_hinted(text) for text in saves):
            return found[backend]
        rules[backend] = sum(text.count("\n-A ") for text in saves)
    return found[Backend.LEGACY if rules[Backend.LEGACY] > rules[Backend.NFT] else Backend.NFT]


_STEMS = ("iptables", "ip6tables")
_VERSION = re.compile(r"v(\d{1,9}(?:\.\d{1,9}){1,4})(?:.*\((nf_tables|legacy)\))?")


def _identify(runner: Runner, infix: str) -> tuple[Command | None, str]:
    """The command, None when its version cannot be read; and what it printed of its version.

    The plain commands may be either backend; releases before 1.8 do not say, and are legacy.
    """
    done = runner.run([f"iptables{infix}-restore", "--version"])
    printed = done.stdout.decode(errors="replace") + done.stderr
    found = _VERSION.search(printed)
    if not found:
        return None, printed[:80]
    backend = Backend.NFT if found[2] == "nf_tables" else Backend.LEGACY
    return Command(backend, infix, tuple(int(part) for part in found[1].split("."))), printed


def _quiet_save(runner: Runner, command: Command, family: Family) -> str:
    """The tables of a backend as far as they can be read, "" where there are none, as on a host without IPv6. No table
    is named on the command line: naming one makes legacy load it into the kernel."""
    name = command.name(family, "save")
    done = runner.run([name], timeout=TIMEOUT)
    if not done.ok and _FORBIDDEN.search(done.stderr):
        raise KernelError(
            f"{name} may not read its tables (legacy needs the capability NET_RAW, both need NET_ADMIN); "
            "grant it, or name the backend with --iptables-backend"
        )
    return done.stdout.decode(errors="replace")


def _hinted(text: str) -> bool:
    return any(f"\n{hint}" in text for hint in HINTS)
