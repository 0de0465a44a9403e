"""The kernel in memory refuses what iptables-restore refuses, and prints what iptables-save prints."""

from __future__ import annotations

import re

import pytest

from kproxy.errors import KernelError, RestoreError
from kproxy.kernel.iptables import Backend, HostTables
from kproxy.model.plans import Family
from tests.fakes.iptables import FakeTables

# Each starts from a table nat with the chains OLD (one rule) and LED, which OLD leads to.
START = "*nat\n:OLD - [0:0]\n:LED - [0:0]\n-A OLD -j LED\nCOMMIT\n"

REFUSED = {
    "a rule to delete that is not there": ("*nat\n-D OLD -j ACCEPT\nCOMMIT\n", 2),
    "a rule for a chain that is not there": ("*nat\n-A GONE -j ACCEPT\nCOMMIT\n", 2),
    "a rule into a chain that is not there": ("*nat\n-I GONE -j ACCEPT\nCOMMIT\n", 2),
    "a chain to delete that is not there": ("*nat\n-X GONE\nCOMMIT\n", 2),
    "a chain to delete that is led to": ("*nat\n-X LED\nCOMMIT\n", 2),
    "a chain to delete that has rules": ("*nat\n-D OLD -j LED\n-A OLD -j ACCEPT\n-X OLD\nCOMMIT\n", 4),
    "a built-in chain to delete": ("*nat\n-X OUTPUT\nCOMMIT\n", 2),
    "a chain to make that is there": ("*nat\n-N OLD\nCOMMIT\n", 2),
    "an unknown table": ("*nats\nCOMMIT\n", 1),
    "an unknown match": ("*nat\n-A OLD -m nosuch -j ACCEPT\nCOMMIT\n", 2),
    "an unknown option": ("*nat\n-A OLD --nosuch -j ACCEPT\nCOMMIT\n", 2),
    "an impossible address": ("*nat\n-A OLD -s 10.0.0.300 -j ACCEPT\nCOMMIT\n", 2),
    "an impossible port": ("*nat\n-A OLD -p tcp -m tcp --dport 70000 -j ACCEPT\nCOMMIT\n", 2),
    "a place past the end": ("*nat\n-I OLD 5 -j ACCEPT\nCOMMIT\n", 2),
    "a name of 29 characters": (f"*nat\n:{'X' * 29} - [0:0]\nCOMMIT\n", 2),
    "no commit": ("*nat\n-A OLD -j ACCEPT\n", 3),
    "a word that is no command": ("*nat\nfoo bar\nCOMMIT\n", 2),
}


@pytest.fixture(params=list(Backend))
def fake(request: pytest.FixtureRequest) -> FakeTables:
    tables = FakeTables(Family.IPV4, request.param)
    tables.restore(START)
    return tables


@pytest.mark.parametrize(("text", "line"), REFUSED.values(), ids=REFUSED)
def test_wrong_restores_are_refused_at_their_line_and_change_nothing(fake: FakeTables, text: str, line: int) -> None:
    before = fake.save()
    with pytest.raises(RestoreError) as refused:
        fake.restore(text)
    assert (refused.value.line, fake.save()) == (line, before)


@pytest.mark.parametrize(("text", "line"), REFUSED.values(), ids=REFUSED)
def test_the_real_tools_refuse_the_same(real: HostTables, text: str, line: int) -> None:
    real.restore(START)
    before = re.sub("^#.*$", "", real.save(), flags=re.MULTILINE)
    with pytest.raises(KernelError):
        real.restore(text)
    assert re.sub("^#.*$", "", real.save(), flags=re.MULTILINE) == before


def test_a_jump_into_nothing_is_found_by_nft_at_its_line() -> None:
    fake = FakeTables(Family.IPV4, Backend.NFT)
    with pytest.raises(RestoreError, match="'GONE' does not exist") as refused:
        fake.restore("*nat\n:A - [0:0]\n-A A -j GONE\n-A A -j ACCEPT\nCOMMIT\n")
    assert refused.value.line == 3


def test_legacy_judges_targets_at_the_commit_and_names_no_rule() -> None:
    fake = FakeTables(Family.IPV4, Backend.LEGACY)
    with pytest.raises(RestoreError) as refused:
        fake.restore("*filter\n:A - [0:0]\n-A A -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n")
    assert refused.value.line == 4


def test_tables_before_the_refused_one_stay() -> None:
    fake = FakeTables()
    with pytest.raises(RestoreError):
        fake.restore("*filter\n:NEW - [0:0]\nCOMMIT\n*nat\n-X GONE\nCOMMIT\n")
    assert ":NEW - [0:0]" in fake.save()
    assert "*nat" not in fake.save()


def test_declaring_a_chain_empties_it_but_not_a_built_in_one(fake: FakeTables) -> None:
    fake.restore("*nat\n-A OUTPUT -j OLD\nCOMMIT\n*nat\n:OLD - [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    assert "-A OLD" not in fake.save()
    assert "-A OUTPUT -j OLD" in fake.save()


def test_a_chain_can_be_deleted_together_with_the_chain_that_jumps_to_it(fake: FakeTables) -> None:
    fake.restore("*nat\n:OLD - [0:0]\n:LED - [0:0]\n-X LED\n-X OLD\nCOMMIT\n")
    assert "OLD" not in fake.save()


RULES = {
    '-m comment --comment "a b" -m tcp -p tcp -d 10.0.0.1 --dport 80 -j ACCEPT': (
        '-d 10.0.0.1/32 -p tcp -m comment --comment "a b" -m tcp --dport 80 -j ACCEPT'
    ),
    "-m statistic --mode random --probability 0.3333333333 -j LED": (
        "-m statistic --mode random --probability 0.33333333349 -j LED"
    ),
    "-m recent --name X --rcheck --seconds 60 --reap -j LED": (
        "-m recent --rcheck --seconds 60 --reap --name X --mask 255.255.255.255 --rsource -j LED"
    ),
    "-j MARK --or-mark 0x00004000": "-j MARK --set-xmark 0x4000/0x4000",
    "-j MARK --xor-mark 0x00004000": "-j MARK --set-xmark 0x4000/0x0",
    "-m mark ! --mark 0x00004000/0x00004000 -j RETURN": "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-m comment --comment plain ! -s 10.0.0.0/8 -i veth+ -j LED": (
        "! -s 10.0.0.0/8 -i veth+ -m comment --comment plain -j LED"
    ),
    "-m conntrack ! --ctstate DNAT,RELATED,ESTABLISHED -j ACCEPT": (
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"
    ),
    "-p udp --dport 53 -j ACCEPT": "-p udp -m udp --dport 53 -j ACCEPT",
    '-m comment --comment "it\'s a \\"quote\\"" -j ACCEPT': '-m comment --comment "it\\\'s a \\"quote\\"" -j ACCEPT',
}


@pytest.mark.parametrize(("rule", "printed"), RULES.items())
def test_rules_are_printed_as_iptables_save_prints_them(rule: str, printed: str) -> None:
    fake = FakeTables()
    fake.restore(f"{START}*nat\n:C - [0:0]\n-A C {rule}\nCOMMIT\n")
    assert f"\n-A C {printed}\n" in fake.save()


@pytest.mark.parametrize(("rule", "printed"), RULES.items())
def test_the_real_tools_print_the_same(real: HostTables, rule: str, printed: str) -> None:
    real.restore(f"{START}*nat\n:C - [0:0]\n-A C {rule}\nCOMMIT\n")
    assert f"\n-A C {printed}\n" in real.save()
