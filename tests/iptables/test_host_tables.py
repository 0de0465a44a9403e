"""The node's backend is found by what it already uses; refusals are traced to their line."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import CommandError, KernelError, RestoreError
from kproxy.kernel.commands import Commands, Completed
from kproxy.kernel.iptables import Backend, Command, HostTables, available, detect, faulty_line, unreadable_tables
from kproxy.model.plans import Family
from kproxy.modes.xtables.canonical import canonical
from kproxy.modes.xtables.saved import Saved, frontend

HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
CANARY = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
ONE_RULE = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n"
NFT = Command(Backend.NFT, "-nft", (1, 8, 9))
VERSIONS = {
    "-nft": "iptables-nft-restore v1.8.9 (nf_tables)\n",
    "-legacy": "iptables-restore v1.8.9 (legacy)\n",
    "": "iptables-restore v1.8.9 (nf_tables)\n",
}


class Scripted:
    """A host with some iptables commands, whose tables are texts."""

    def __init__(self, saves: dict[str, str], versions: dict[str, str] | None = None) -> None:
        self._saves = saves
        self._versions = VERSIONS if versions is None else versions
        self.ran: list[tuple[str, ...]] = []
        self.answer = Completed(0)
        self._failing: dict[str, str] = {}

    def failing(self, name: str, stderr: str) -> Scripted:
        """One command ends with status 1 and this complaint."""
        self._failing[name] = stderr
        return self

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        self.ran.append(tuple(argv))
        infix = argv[0].partition("tables")[2].rpartition("-")[0]
        if "--version" in argv:
            return Completed(0, self._versions[infix].encode())
        if said := self._failing.get(argv[0]):
            return Completed(1, stderr=said)
        if argv[0].endswith("-save"):
            return Completed(0, self._saves.get(argv[0], "").encode())
        return self.answer

    def which(self, name: str) -> str | None:
        infix = name.partition("tables")[2].rpartition("-")[0]
        return f"/usr/sbin/{name}" if infix in self._saves or name in self._saves else None


def both(**saves: str) -> Scripted:
    names = {name.replace("_", "-"): text for name, text in saves.items()}
    return Scripted({"-nft": "", "-legacy": "", **names})


FOUND = {
    "nothing tells: nft": (both(), Backend.NFT),
    "the kubelet's hint in legacy": (both(iptables_legacy_save=HINT), Backend.LEGACY),
    "the kubelet's canary in IPv6 legacy": (both(ip6tables_legacy_save=CANARY), Backend.LEGACY),
    "the hint outweighs rules": (both(iptables_legacy_save=HINT, iptables_nft_save=ONE_RULE), Backend.LEGACY),
    "the hint in nft": (both(iptables_nft_save=HINT, iptables_legacy_save=ONE_RULE), Backend.NFT),
    "more rules in legacy": (both(iptables_legacy_save=ONE_RULE), Backend.LEGACY),
    "as many rules in both": (both(iptables_legacy_save=ONE_RULE, iptables_nft_save=ONE_RULE), Backend.NFT),
    "only legacy is installed": (Scripted({"-legacy": ""}), Backend.LEGACY),
    "only the plain commands are installed": (Scripted({"": ""}), Backend.NFT),
}


@pytest.mark.parametrize(("runner", "backend"), FOUND.values(), ids=FOUND)
def test_the_backend_in_use_is_found(runner: Scripted, backend: Backend) -> None:
    assert detect(runner).backend is backend


FORBIDDEN = "iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)"
NO_FAMILY = "ip6tables-save v1.8.9 (legacy): Cannot initialize: Address family not supported by protocol"


def test_a_backend_that_may_not_be_read_is_not_taken_for_empty() -> None:
    with pytest.raises(KernelError, match=r"^iptables-legacy-save .*NET_RAW.*--iptables-backend$"):
        detect(both(iptables_legacy_save=HINT).failing("iptables-legacy-save", FORBIDDEN))


def test_it_does_not_matter_where_the_kubelet_left_its_hint_in_the_other() -> None:
    assert detect(both(iptables_nft_save=HINT).failing("iptables-legacy-save", FORBIDDEN)).backend is Backend.NFT


def test_a_host_without_ipv6_has_no_rules_of_it() -> None:
    assert detect(both(iptables_legacy_save=HINT).failing("ip6tables-legacy-save", NO_FAMILY)).backend is Backend.LEGACY


def test_no_iptables_is_an_error_that_says_so() -> None:
    with pytest.raises(KernelError, match="not installed"):
        detect(Scripted({}))


def test_plain_commands_of_old_releases_are_legacy() -> None:
    command = detect(Scripted({"": ""}, {"": "iptables-restore v1.6.1\n"}))
    assert (command.backend, command.name(Family.IPV6, "save")) == (Backend.LEGACY, "ip6tables-save")
    assert not command.random_fully


def test_plain_commands_do_not_hide_those_named_by_backend() -> None:
    commands = available(Scripted({"": "", "-nft": "", "-legacy": ""}))
    assert {command.infix for command in commands.values()} == {"-nft", "-legacy"}


def test_the_real_host_is_found(host: Any) -> None:
    assert detect(host).backend is Backend.NFT
    HostTables(host, Family.IPV6, available(host)[Backend.LEGACY]).restore(
        "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
    )
    assert detect(host).backend is Backend.LEGACY


def test_legacy_waits_for_the_lock_and_nft_needs_none() -> None:
    runner = both()
    for backend in Backend:
        HostTables(runner, Family.IPV6, Command(backend, f"-{backend}", (1, 8, 9))).restore("*nat\nCOMMIT\n")
    assert runner.ran == [
        ("ip6tables-nft-restore", "--noflush"),
        ("ip6tables-legacy-restore", "--noflush", "-w", "5", "-W", "100000"),
    ]


UNREADABLE = {
    "binary": ("\x7fELF\x02\x01\0\0", "NUL bytes"),
    "binary lines between rules": (f"{ONE_RULE}\x01\x02\n", "line 5 is"),
    "an error message": ("Segmentation fault\n", "line 1 is 'Segmentation fault'"),
    "half a line": (ONE_RULE[: ONE_RULE.index("ACCEPT\nCOMMIT")], "ends within a line: '-A INPUT -j '"),
    "half a table": (ONE_RULE.removesuffix("COMMIT\n"), "1 tables begin and 0 end"),
    "an end too many": (f"{ONE_RULE}COMMIT\n", "a table ends twice"),
    "a rule cut in its middle": (ONE_RULE.replace("-A INPUT", "A INPUT"), "line 3 is 'A INPUT -j ACCEPT'"),
}


@pytest.mark.parametrize(("text", "flaw"), UNREADABLE.values(), ids=UNREADABLE)
def test_saved_text_that_cannot_be_whole_is_not_read(text: str, flaw: str) -> None:
    why = unreadable_tables(HostTables(both(iptables_nft_save=text), Family.IPV4, NFT).save())
    assert why.keys() == {"mangle", "nat", "filter"}
    assert all(re.match(f"iptables-nft-save: its output cannot be read: .*{re.escape(flaw)}", w) for w in why.values())


@pytest.mark.parametrize("text", ["", ONE_RULE, HINT + ONE_RULE, f"# Generated by\n{ONE_RULE}# Completed on\n"])
def test_saved_text_that_is_whole_is_read(text: str) -> None:
    assert HostTables(both(iptables_nft_save=text), Family.IPV4, NFT).save() == text


@given(st.binary(max_size=200), st.integers(0, len(HINT + ONE_RULE)))
def test_any_output_is_read_or_a_clear_error(noise: bytes, place: int) -> None:
    text = (HINT + ONE_RULE).encode()
    runner = both()
    runner.run = lambda *_, **__: Completed(0, text[:place] + noise + text[place:])  # type: ignore[method-assign]
    with suppress(KernelError):
        saved = Saved(HostTables(runner, Family.IPV4, NFT).save())
        for table in saved.tables:
            for chain in saved.chains(table):
                for rule in saved.rules(table, chain):
                    canonical(rule)
                    frontend(rule)


@pytest.mark.parametrize("printed", ["", "usage: iptables-restore", "\0\1\2", "v" + "9" * 5000 + ".1"])
def test_a_version_that_cannot_be_read_is_named(printed: str) -> None:
    with pytest.raises(KernelError, match=r"^the version of iptables cannot be read: iptables-nft-restore --version"):
        detect(Scripted({"-nft": ""}, {"-nft": printed}))
    assert detect(Scripted({"-nft": "", "": ""}, {"-nft": printed, "": VERSIONS[""]})).infix == ""


HOLDS_THE_LOCK = 'exec 9>"$KPROXY_LOCK"; flock 9; sleep 60'
TAKES_THE_LOCK = (
    'exec 9>"$KPROXY_LOCK"; flock --timeout 0.3 9 || '
    '{ echo "Another app is currently holding the xtables lock. Stopped waiting after 5s." >&2; exit 4; }'
)


@pytest.mark.parametrize(
    ("hangs", "error"),
    [("sleep 60", None), (HOLDS_THE_LOCK, r"^iptables-legacy-restore .*held the xtables lock \(/run/xtables.lock\)")],
    ids=["without the lock", "with the lock"],
)
def test_a_hanging_command_of_the_other_family(tmp_path: Path, hangs: str, error: str | None) -> None:
    """It costs nothing, or a wait of LOCK_WAIT seconds and a clear error while it has the lock."""
    for name, script in (("ip6tables", hangs), ("iptables", TAKES_THE_LOCK)):
        path = tmp_path / f"{name}-legacy-restore"
        path.write_text(f"#!/bin/sh\ncat > /dev/null; {script}\n")
        path.chmod(0o755)
    lock = tmp_path / "lock"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KPROXY_LOCK": str(lock)}
    command, commands = Command(Backend.LEGACY, "-legacy", (1, 8, 9)), Commands(environment)
    with ThreadPoolExecutor(1) as pool:
        argv = [command.name(Family.IPV6, "restore")]
        hanging = pool.submit(commands.run, argv, b"", 5.0)
        while hangs == HOLDS_THE_LOCK and not lock.exists():
            time.sleep(0.01)
        start = time.monotonic()
        with pytest.raises(CommandError, match=error) if error else nullcontext():
            HostTables(commands, Family.IPV4, command).restore("*nat\nCOMMIT\n")
        assert time.monotonic() - start < 3
        assert not hanging.done()
        with pytest.raises(CommandError, match="longer than 5 s"):
            hanging.result()
    HostTables(commands, Family.IPV4, command).restore("*nat\nCOMMIT\n")


TEXT = "*nat\n:A - [0:0]\n-A A -j RETURN\n-A A -j KUBE-SVC-X\n-A A -j KUBE-SVC-XY\nCOMMIT\n"
COMPLAINTS = {
    "nft: parser": (
        "iptables-nft-restore v1.8.9 (nf_tables): Couldn't load match `x'\n\nError occurred at line: 3\n",
        3,
    ),
    "nft: kernel": (
        "iptables-nft-restore v1.8.9 (nf_tables): \nline 4: RULE_APPEND failed (Invalid argument): rule in A\n",
        4,
    ),
    "nft: rule to delete": (
        "iptables-nft-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).\n",
        3,
    ),
    "nft: missing chain, named at COMMIT": (
        "iptables-nft-restore v1.8.9 (nf_tables): Chain 'KUBE-SVC-X' does not exist\nError occurred at line: 7\n",
        4,
    ),
    "nft: another missing chain": ("Chain 'NONE' does not exist\nError occurred at line: 7\n", 6),
    "legacy: kernel": ("iptables-restore: line 6 failed\n", 6),
    "legacy: parser": ("iptables-restore v1.8.9 (legacy): Couldn't load target `X'\n\nError occurred at line: 5\n", 5),
    "nothing said": ("Killed\n", 0),
}


@pytest.mark.parametrize(("stderr", "line"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints_are_traced_to_a_line(stderr: str, line: int) -> None:
    assert faulty_line(stderr, TEXT) == line


@pytest.mark.parametrize(
    "stderr",
    [
        "Another app is currently holding the xtables lock. Stopped waiting after 5s.\n",
        "iptables-restore v1.8.9 (legacy): unable to initialize table 'nat'\nError occurred at line: 1\n",
        "line 4: RULE_APPEND failed (No buffer space available): rule in chain A\n",
        "Could not fetch rule set generation id: Permission denied (you must be root)\n",
    ],
)
def test_the_hosts_trouble_is_no_rules_fault(stderr: str) -> None:
    runner = both()
    runner.answer = Completed(4, b"", stderr)
    with pytest.raises(CommandError) as failed:
        HostTables(runner, Family.IPV4, NFT).restore(TEXT)
    assert not isinstance(failed.value, RestoreError)


@pytest.mark.parametrize(
    ("rule", "line"),
    [("-m nosuch -j RETURN", 3), ("-j NOSUCH", 3), ("-p tcp -m tcp --dport 70000 -j RETURN", 3), ("-s 10.0.0.300", 3)],
)
def test_complaints_of_the_real_tools_are_traced_to_the_line(real: HostTables, rule: str, line: int) -> None:
    with pytest.raises(RestoreError) as refused:
        real.restore(f"*nat\n:A - [0:0]\n-A A {rule}\n-A A -j RETURN\nCOMMIT\n")
    assert refused.value.line == line
