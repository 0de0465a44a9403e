"""The host's xtables tables of one family: read them whole, change them by restore.

Decides: which of the two backends (nf_tables, legacy) the node uses, how its commands are called, and which line of a
refused restore was at fault. Leaves out: what the rules mean, and what to do about a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kproxy.errors import CommandError, KernelError, RestoreError
from kproxy.kernel.commands import Completed, Runner, checked
from kproxy.model.plans import Family

LOCK_WAIT = 5  # seconds that the legacy commands may wait for /run/xtables.lock
TIMEOUT = 120.0  # seconds; 10,000 Services take 24 s to save on nf_tables when their chains came in alphabetical order
# The kubelet leaves these in the mangle table, so that others can tell which backend the node uses (KEP-3178).
HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
RANDOM_FULLY_SINCE = (1, 6, 2)


class Backend(StrEnum):
    """Where the rules live: in nf_tables, through its compatibility layer, or in the older xtables."""

    NFT = "nft"
    LEGACY = "legacy"


class Tables(Protocol):
    """One family's xtables tables, on a host or in tests.fakes.iptables."""

    @property
    def family(self) -> Family: ...

    @property
    def backend(self) -> Backend: ...

    def save(self) -> str:
        """All tables that exist, as iptables-save prints them. Raises KernelError."""

    def restore(self, text: bytes | str) -> None:
        """Apply TEXT as iptables-restore --noflush does: every table up to its COMMIT at once or not at all, those
        before it stay. Raises RestoreError for a rule that was refused, KernelError when nothing can be had."""


@dataclass(frozen=True, slots=True)
class Command:
    """One backend's commands as they are named on this host: `infix` is "-nft", "-legacy" or "" for the plain ones.

    version: of the tools, as (1, 8, 9).
    """

    backend: Backend
    infix: str
    version: tuple[int, ...]

    def name(self, family: Family, verb: str = "") -> str:
        """iptables-nft-save for (IPv4, "save"); verb "" is the command that changes single rules."""
        stem = "iptables" if family is Family.IPV4 else "ip6tables"
        return f"{stem}{self.infix}{'-' if verb else ''}{verb}"

    @property
    def random_fully(self) -> bool:
        """MASQUERADE --random-fully exists (iptables 1.6.2; the kernel has it since 3.13)."""
        return self.version >= RANDOM_FULLY_SINCE


class HostTables:
    """The host's tables through the backend's own commands, one process for each call."""

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
        """As Tables.save. Raises KernelError also when another program's nft rules hide a table from iptables."""
        done = checked(self._runner, [self._command.name(self._family, "save")], timeout=TIMEOUT)
        text = done.stdout.decode(errors="surrogateescape")
        if hidden := re.search(r"^# Table `(filter|nat)' is incompatible", text, re.MULTILINE):
            raise KernelError(f"table {hidden[1]} holds nft rules that iptables cannot read; remove them with nft")
        return text

    def restore(self, text: bytes | str) -> None:
        """As Tables.restore."""
        argv = [self._command.name(self._family, "restore"), "--noflush", *self._lock_options()]
        data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        done = self._runner.run(argv, data, timeout=TIMEOUT)
        if not done.ok:
            raise _refusal(argv, done, data.decode(errors="surrogateescape"))

    def _lock_options(self) -> list[str]:
        if self.backend is Backend.NFT:  # the kernel's transactions need no lock
            return []
        interval = ["-W", "100000"] if self._command.version >= (1, 6, 2) else []  # microseconds
        return ["-w", str(LOCK_WAIT), *interval] if self._command.version >= (1, 6, 2) else []


# ---------------------------------------------------------------- what a failed restore says

# The host's trouble, not the rules': trying single lines would not help.
_HOST = re.compile(
    "xtables lock|lock file|must be root|Permission denied|Operation not permitted|Cannot allocate memory"
    "|No buffer space|Resource temporarily unavailable|unable to initialize table|table name '"
    "|Could not fetch rule set generation|Table does not exist|(?:unsupported|incompatible).* (?:kernel|version)",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile("must be root|Permission denied|Operation not permitted")
_NO_CHAIN = re.compile(r"Chain '([^']+)' does not exist")
_LINE = (
    re.compile(r"^line (\d+): \w+ failed", re.MULTILINE),  # nft, refused by the kernel
    re.compile(r"\bline (\d+) failed"),
    re.compile(r"Error occurred at line: (\d+)"),
    re.compile(r"COMMIT expected at line (\d+)"),
)


def forbidden(error: KernelError) -> bool:
    """ERROR says that this process may not, rather than that there is nothing of the kind."""
    return bool(_FORBIDDEN.search(str(error)))


def _refusal(argv: Sequence[str], done: Completed, text: str) -> CommandError:
    said = " ".join(done.stderr.split())
    line = faulty_line(done.stderr, text)
    if not line or _HOST.search(done.stderr):
        return CommandError(argv, done.status, said)
    return RestoreError(argv, done.status, said, line)


def faulty_line(stderr: str, text: str) -> int:
    """The 1-based line of TEXT that the complaint of either backend is about, 0 when it names none.

    It is a COMMIT line when legacy's kernel side refuses something: only then is the whole table judged, without a word
    about the rule. nft finds a jump to a missing chain at COMMIT too, but names the chain, so the jump can be found.
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
    """The backends whose commands this host has, for both families. Raises KernelError when it has none."""
    found: dict[Backend, Command] = {}
    for infix in ("-nft", "-legacy", ""):
        if not all(runner.which(f"{stem}{infix}-{verb}") for stem in _STEMS for verb in ("save", "restore")):
            continue
        if command := _identify(runner, infix):
            found.setdefault(command.backend, command)
    if not found:
        raise KernelError("iptables-save and iptables-restore (and their ip6tables forms) are not installed")
    return found


def detect(runner: Runner) -> Command:
    """The backend that the node already uses: where the kubelet left its chains, else the one with more rules, else
    nft where there is a choice. Reads both families' tables once. Raises KernelError, also when the kernel lets this
    process not see what a backend holds: taking it for empty could leave the node with rules in both."""
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
_VERSION = re.compile(r"v(\d+(?:\.\d+)+)(?:.*\((nf_tables|legacy)\))?")


def _identify(runner: Runner, infix: str) -> Command | None:
    """The plain commands may be either backend; releases before 1.8 say nothing and are legacy."""
    done = runner.run([f"iptables{infix}-restore", "--version"])
    found = _VERSION.search(done.stdout.decode(errors="replace") + done.stderr)
    if not found:
        return None
    backend = Backend.NFT if found[2] == "nf_tables" else Backend.LEGACY
    return Command(backend, infix, tuple(int(part) for part in found[1].split(".")))


def _quiet_save(runner: Runner, command: Command, family: Family) -> str:
    """Without naming a table: naming one makes legacy load it into the kernel. A host without IPv6 has no rules."""
    name = command.name(family, "save")
    done = runner.run([name], timeout=TIMEOUT)
    if not done.ok and _FORBIDDEN.search(done.stderr):
        raise KernelError(
            f"{name} may not read its tables (legacy needs the capability NET_RAW, both need NET_ADMIN); "
            "grant it, or name the backend with --iptables-backend"
        )
    return done.stdout.decode(errors="replace") if done.ok else ""


def _hinted(text: str) -> bool:
    return any(f"\n{hint}" in text for hint in HINTS)
