"""ipsets of the real kernel in a namespace of the test's own; ipset(8) is the independent reader and writer."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from kproxy.errors import NetlinkError
from kproxy.kernel import ipset
from kproxy.kernel.ipset import Change, HeldSet, KernelIpSets
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.model.plans import Family

V4 = {
    SetType.HASH_IP: ("10.0.0.1", "203.0.113.255"),
    SetType.HASH_IP_PORT: ("10.0.0.1,tcp:80", "10.0.0.1,udp:80", "10.0.0.1,sctp:65535"),
    SetType.HASH_IP_PORT_IP: ("10.0.0.1,tcp:80,10.0.0.1", "10.0.0.1,udp:53,10.0.0.2"),
    SetType.HASH_IP_PORT_NET: ("10.0.0.1,tcp:80,10.0.0.0/8", "10.0.0.1,tcp:80,0.0.0.0/1", "10.0.0.1,tcp:80,10.0.0.9"),
    SetType.BITMAP_PORT: ("0", "30080", "65535"),
}
V6 = {
    SetType.HASH_IP: ("fd00::1", "2001:db8::ffff"),
    SetType.HASH_IP_PORT: ("fd00::1,tcp:80", "fd00::1,udp:80", "fd00::1,sctp:65535"),
    SetType.HASH_IP_PORT_IP: ("fd00::1,tcp:80,fd00::1", "fd00::1,udp:53,fd00::2"),
    SetType.HASH_IP_PORT_NET: ("fd00::1,tcp:80,fd00::/8", "fd00::1,tcp:80,8000::/1", "fd00::1,tcp:80,fd00::9"),
    SetType.BITMAP_PORT: ("0", "30080", "65535"),
}
FAMILIES = {Family.IPV4: V4, Family.IPV6: V6}
SPECS = {SetSpec(f"SET-{family}-{kind}", kind, family): FAMILIES[family][kind] for family in Family for kind in SetType}
Shell = Callable[..., str]


@pytest.fixture
def sets(netns: None) -> Iterator[KernelIpSets]:
    with KernelIpSets() as sets:
        yield sets


def saved(shell: Shell) -> set[str]:
    return {line for line in shell("ipset save").splitlines() if line.startswith("add ")}


def test_what_we_write_ipset_lists(sets: KernelIpSets, shell: Shell) -> None:
    sets.create(SPECS)
    changes = [Change(spec.name, text, add=True) for spec, texts in SPECS.items() for text in texts]
    assert sets.apply(changes) == {}
    assert saved(shell) == {f"add {change.set} {change.entry}" for change in changes}
    assert sets.apply(changes) == {}, "what is there already is no error"
    gone = changes[::2]
    assert sets.apply([change._replace(add=False) for change in gone]) == {}
    assert saved(shell) == {f"add {change.set} {change.entry}" for change in changes if change not in gone}
    assert sets.apply([change._replace(add=False) for change in gone]) == {}, "what is gone already is no error"


def test_what_ipset_writes_we_list(sets: KernelIpSets, shell: Shell) -> None:
    lines = []
    for spec, texts in SPECS.items():
        options = "range 0-65535" if spec.type is SetType.BITMAP_PORT else f"family {_inet(spec.family)}"
        lines.append(f"create {spec.name} {spec.type} {options}")
        lines += [f"add {spec.name} {text}" for text in texts]
    shell("ipset restore", "\n".join(lines) + "\n")
    assert sets.held([spec.name for spec in SPECS]) == {
        spec.name: HeldSet(spec.type, None if spec.type is SetType.BITMAP_PORT else spec.family, 0, frozenset(texts))
        for spec, texts in SPECS.items()
    }


def _inet(family: Family) -> str:
    return "inet6" if family is Family.IPV6 else "inet"


def test_options_that_are_not_ours_do_not_hide_entries(sets: KernelIpSets, shell: Shell) -> None:
    shell("ipset restore", "create S hash:ip,port,net timeout 1000 counters comment\ncreate N hash:net\n")
    shell(
        "ipset restore", 'add S 10.0.0.1,tcp:80,10.0.0.0/8 comment "why"\nadd S 10.0.0.1,tcp:80,10.1.0.0/16 nomatch\n'
    )
    held = sets.held(["S", "N", "missing"])
    assert held["S"].entries == {"10.0.0.1,tcp:80,10.0.0.0/8", "10.0.0.1,tcp:80,10.1.0.0/16 nomatch"}
    assert held["N"] == HeldSet("hash:net", Family.IPV4, 0, frozenset())
    assert "missing" not in held
    assert sets.apply([Change("S", entry, add=False) for entry in held["S"].entries]) == {}
    assert saved(shell) == set()


def test_sets_are_made_as_kube_proxy_makes_them(sets: KernelIpSets, shell: Shell) -> None:
    """So each side takes over the other's sets: a set of another form is an error for ipset, and for kube-proxy."""
    sets.create(SPECS)
    for spec in SPECS:
        options = "range 0-65535"
        if spec.type is not SetType.BITMAP_PORT:
            options = f"family {_inet(spec.family)} hashsize 1024 maxelem 65536"
        shell(f"ipset create {spec.name} {spec.type} {options} -exist")
        shell(f"ipset destroy {spec.name}")
        shell(f"ipset create {spec.name} {spec.type} {options}")
    sets.create(SPECS)
    assert set(sets.held([spec.name for spec in SPECS])) == {spec.name for spec in SPECS}


def test_a_set_with_other_options_stays_as_it_is(sets: KernelIpSets, shell: Shell) -> None:
    shell("ipset create S hash:ip maxelem 70000 timeout 0")
    sets.create([SetSpec("S", SetType.HASH_IP, Family.IPV4)])
    assert "maxelem 70000 timeout 0" in shell("ipset save S")


@pytest.mark.parametrize("there", ["hash:ip,port", "hash:ip family inet6", "bitmap:port range 0-65535"])
def test_a_set_of_another_type_is_an_error_that_names_it(sets: KernelIpSets, shell: Shell, there: str) -> None:
    shell(f"ipset create S {there}")
    with pytest.raises(NetlinkError, match=r"^create ipset S: File exists: there is one of type ") as raised:
        sets.create([SetSpec("S", SetType.HASH_IP, Family.IPV4)])
    assert there.split()[0] in str(raised.value)


def test_a_refused_entry_is_reported_and_all_others_are_added(sets: KernelIpSets) -> None:
    sets.create([SetSpec("S", SetType.HASH_IP, Family.IPV4)])
    good = [Change("S", f"10.0.{i >> 8}.{i & 255}", add=True) for i in range(1, 1500)]
    bad = {
        700: Change("S", "fd00::1", add=True),
        701: Change("S", "0.0.0.0", add=True),
        900: Change("S", "anything", add=True),
        1100: Change("none", "10.0.0.1", add=True),
        1200: Change("none", "10.0.0.2", add=False),
    }
    changes = list(good)
    for place, change in bad.items():
        changes.insert(place, change)
    errors = sets.apply(changes)
    assert {change: error.errno for change, error in errors.items()} == {
        bad[700]: errno.EINVAL,
        bad[701]: errno.EINVAL,
        bad[900]: errno.EINVAL,
        bad[1100]: errno.ENOENT,
    }
    assert str(errors[bad[700]]).startswith("add to ipset S: fd00::1: ")
    assert sets.held(["S"])["S"].entries - {"0.0.0.0"} == {change.entry for change in good}


def test_of_several_changes_of_one_entry_the_last_counts(sets: KernelIpSets) -> None:
    sets.create([SetSpec("S", SetType.BITMAP_PORT, Family.IPV4)])
    told = [("1", True), ("2", True), ("1", False), ("3", False), ("3", True), ("2", False), ("2", True)]
    assert sets.apply(Change("S", port, add) for port, add in told) == {}
    assert sets.held(["S"])["S"].entries == {"2", "3"}


def test_a_full_set_is_replaced_by_a_larger_one_that_the_rules_use(sets: KernelIpSets, shell: Shell) -> None:
    shell("ipset create S hash:ip,port maxelem 1000")
    shell("iptables-nft -A INPUT -m set --match-set S dst,dst -j ACCEPT")
    changes = [Change("S", f"10.0.{i >> 8}.{i & 255},tcp:80", add=True) for i in range(3000)]
    assert sets.apply(changes) == {}
    held = sets.held(["S", *ipset.LARGER.values()])
    assert held == {"S": HeldSet("hash:ip,port", Family.IPV4, 1, frozenset(change.entry for change in changes))}
    assert "maxelem 16000" in shell("ipset save S")


def test_a_range_that_does_not_reach_an_entry_is_an_error(sets: KernelIpSets, shell: Shell) -> None:
    shell("ipset create S bitmap:port range 0-100")
    far = Change("S", "30080", add=True)
    assert {change: error.errno for change, error in sets.apply([far]).items()} == {far: errno.ENOSPC}


def test_a_set_that_a_rule_uses_stays(sets: KernelIpSets, shell: Shell) -> None:
    sets.create(SetSpec(name, SetType.HASH_IP, Family.IPV4) for name in "AB")
    shell("iptables-nft -A INPUT -m set --match-set A src -j ACCEPT")
    assert sets.held("A")["A"].references == 1
    errors = sets.destroy(["A", "B", "none"])
    assert {name: error.errno for name, error in errors.items()} == {"A": errno.EBUSY}
    assert set(sets.held("AB")) == {"A"}


def test_thousands_of_entries(sets: KernelIpSets, shell: Shell) -> None:
    entries = {f"10.{i >> 16}.{i >> 8 & 255}.{i & 255},tcp:80,10.9.{i >> 8 & 255}.{i & 255}" for i in range(20_000)}
    sets.create([SetSpec("S", SetType.HASH_IP_PORT_IP, Family.IPV4)])
    assert sets.apply(Change("S", entry, add=True) for entry in entries) == {}
    assert sets.held(["S"])["S"].entries == entries
    assert len(saved(shell)) == len(entries)
