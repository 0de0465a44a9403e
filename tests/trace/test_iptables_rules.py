"""Rules of iptables in all the forms in which they are written, and those that nobody here understands."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from kproxy.errors import InvalidInput
from kproxy.model.plans import Family, Protocol
from kproxy.trace.hooks import Packet
from kproxy.trace.iptables import IptablesTracer
from kproxy.trace.layered import LayeredTracer
from kproxy.trace.outcome import Fate, Host, Outcome, Probe, Step, Verdict, probability_of

HOST = Host(frozenset({"172.18.0.2"}), {"eth0": "172.18.0.2"})
PACKET = Probe("192.0.2.1", "10.96.0.1", Protocol.TCP, 80, "eth0")
TO_NODE = Probe("192.0.2.1", "172.18.0.2", Protocol.TCP, 80, "eth0")
FROM_NODE = Probe("172.18.0.2", "10.96.0.1", Protocol.TCP, 80)
DROPPED, UNTOUCHED = Verdict(Fate.DROPPED), Verdict(Fate.UNTOUCHED)


def nat(*rules: str, chains: str = "") -> str:
    """A nat table with these rules in PREROUTING, and CHAINS after it."""
    declared = "".join(f":{name} - [0:0]\n" for name in ("ONE", "TWO"))
    lines = "".join(f"-A PREROUTING {rule}\n" for rule in rules)
    return f"*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{declared}{lines}{chains}COMMIT\n"


def filtering(chain: str, *rules: str, policy: str = "ACCEPT") -> str:
    lines = "".join(f"-A {chain} {rule}\n" for rule in rules)
    return f"# made by hand\n*filter\n:{chain} {policy} [1:2]\n{lines}COMMIT\n"


def traced(text: str, probe: Probe = PACKET) -> Outcome:
    return IptablesTracer(text, probe.family, HOST).trace(probe)


HOLDING = [
    "-d 10.96.0.1",
    "-d 10.96.0.1/32 -p tcp -m tcp --dport 80",
    "-m tcp -p tcp -d 10.96.0.0/16 --dport 80",
    "-p 6 --dport 1:1024",
    "-p all",
    "! -s 10.0.0.0/8 ! -d 10.97.0.0/16",
    "-i eth+",
    "! -i veth+ -i eth0",
    "-m addrtype ! --dst-type LOCAL",
    "-m conntrack --ctstate NEW,ESTABLISHED",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT",
    "-m mark --mark 0x0/0x4000",
    "-m mark ! --mark 0x4000/0x4000",
    '-m comment --comment "a -j ACCEPT ! -p udp -> b"',
    "-m comment --comment words without quotes -p tcp",
    "-m nfacct --nfacct-name  counter",
    "-m physdev ! --physdev-is-in",
    "-m recent ! --rcheck --name someone --mask 255.255.255.255 --rsource",
    "--source 192.0.2.0/24 --protocol TCP --destination-port 80",
]
PASSING = [
    "-d 10.96.0.2/32",
    "-p udp -m udp --dport 80",
    "-p tcp -m tcp ! --dport 80",
    "-i veth+",
    "-i eth",
    "-s 192.0.2.1 -d 10.97.0.0/16",
    "-m addrtype --src-type LOCAL",
    "-m conntrack --ctstate INVALID",
    "-m mark --mark 0x4000/0x4000",
    "-m recent --rcheck --seconds 60 --reap --name someone",
    "-m physdev --physdev-is-in",
]


@pytest.mark.parametrize(("rule", "holds"), [*((r, True) for r in HOLDING), *((r, False) for r in PASSING)])
def test_what_a_rule_matches(rule: str, holds: bool) -> None:
    assert traced(filtering("FORWARD", f"{rule} -j DROP")).chances == {DROPPED if holds else UNTOUCHED: 1}


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("-m owner --uid-owner 0 -j DROP", "match owner"),
        ("-m statistic --mode nth --every 3 --packet 0 -j DROP", "only --mode random"),
        ("-m recent --update --name x -j DROP", "only --set and --rcheck"),
        ("-m addrtype --dst-type BROADCAST -j DROP", "--dst-type BROADCAST"),
        ("-m conntrack --ctstate NEW --ctdir ORIGINAL -j DROP", "--ctdir"),
        ("-p tcp --sport 53 -j DROP", "--sport"),
        ("-p tcp -m string --algo bm --string x -j DROP", "string"),
        ("-o eth0 -j DROP", "-o eth0"),
        ("-d fd00::1 -j DROP", "family"),
        ("-m mark --mark high -j DROP", "match mark"),
        ("-j TPROXY --on-port 1", "target TPROXY"),
        ("-j NOWHERE", "target NOWHERE"),
        ("-m set --match-set KUBE-CLUSTER-IP dst,dst -j DROP", "ipset KUBE-CLUSTER-IP"),
    ],
)
def test_a_rule_that_is_not_understood_is_an_error_that_names_it(rule: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as raised:
        traced(filtering("FORWARD", rule))
    assert rule in str(raised.value) or "KUBE-CLUSTER-IP" in rule


def test_a_rule_for_other_packets_need_not_be_understood() -> None:
    rules = ("-d 10.97.0.0/16 -m owner --uid-owner 0 -j DROP", "-p udp -j TPROXY --on-port 1")
    assert traced(filtering("FORWARD", *rules)).chances == {UNTOUCHED: 1}


def test_a_rule_after_the_verdict_need_not_be_understood() -> None:
    assert traced(filtering("FORWARD", "-j DROP", "-m owner --uid-owner 0 -j ACCEPT")).chances == {DROPPED: 1}


@pytest.mark.parametrize(
    ("rules", "chains", "endpoint"),
    [
        (("-j ONE", "-j DNAT --to-destination 10.0.0.9"), "-A ONE -j RETURN\n-A ONE -j DROP\n", "10.0.0.9:80"),
        (("-j ONE", "-j DNAT --to-destination 10.0.0.9"), "-A ONE -j ACCEPT\n", ""),
        (("-g ONE", "-j DNAT --to-destination 10.0.0.9"), "-A ONE -p udp -j ACCEPT\n", ""),
        (("-j ONE", "-j DNAT --to-destination 10.0.0.9:1"), "-A ONE -g TWO\n-A ONE -j DROP\n", "10.0.0.9:1"),
        (("-j ONE",), "-A ONE -j TWO\n-A ONE -j DNAT --to-destination 10.0.0.8:1\n", "10.0.0.8:1"),
        (("-p tcp -j REDIRECT --to-ports 99",), "", "172.18.0.2:99"),
        (("-j RETURN", "-j DROP"), "", ""),
        (("-p tcp",), "", ""),
    ],
)
def test_where_chains_lead(rules: tuple[str, ...], chains: str, endpoint: str) -> None:
    fate = Fate.DELIVERED if endpoint else Fate.UNTOUCHED
    assert traced(nat(*rules, chains=chains)).chances == {Verdict(fate, endpoint): 1}


@pytest.mark.parametrize("target", ["NOTRACK", "CT --notrack"])
def test_what_is_not_tracked_is_not_translated(target: str) -> None:
    text = f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j {target}\nCOMMIT\n"
    text += nat("-j DNAT --to-destination 10.244.1.7:8080")
    layers = LayeredTracer(Family.IPV4, HOST, IptablesTracer(text, Family.IPV4, HOST)).trace(PACKET)
    assert traced(text).chances == layers.chances == {UNTOUCHED: 1}
    assert traced(text, replace(PACKET, protocol=Protocol.UDP)).chances != {UNTOUCHED: 1}


def test_chains_that_jump_in_a_circle_are_an_error() -> None:
    with pytest.raises(InvalidInput, match="loop"):
        traced(nat("-j ONE", chains="-A ONE -j TWO\n-A TWO -j ONE\n"))


@pytest.mark.parametrize(
    ("first", "mark"),
    [
        ("--set-xmark 0x4000/0x4000", "0x4000/0x4000"),
        ("--or-mark 0x4000", "0x4000/0x4000"),
        ("--xor-mark 0x4001", "0x4001"),
        ("--set-mark 0x5/0xf", "0x5/0xf"),
        ("--set-mark 7", "0x7"),
        ("--and-mark 0x0", "0x0"),
    ],
)
def test_marks(first: str, mark: str) -> None:
    rules = filtering("FORWARD", f"-j MARK {first}", f"-m mark --mark {mark} -j DROP")
    assert traced(rules).chances == {DROPPED: 1}


@pytest.mark.parametrize(
    ("probe", "met"),
    [
        (PACKET, {"FORWARD"}),
        (TO_NODE, {"INPUT"}),
        (FROM_NODE, {"OUTPUT"}),
        (Probe("172.18.0.2", "172.18.0.2", Protocol.TCP, 80), {"OUTPUT", "INPUT"}),
        (Probe("127.0.0.1", "127.0.0.1", Protocol.TCP, 80), {"OUTPUT", "INPUT"}),
    ],
)
def test_hooks_and_their_policies(probe: Probe, met: set[str]) -> None:
    for chain in ("INPUT", "FORWARD", "OUTPUT"):
        outcome = traced(filtering(chain, policy="DROP"), probe)
        assert outcome.chances == {DROPPED if chain in met else UNTOUCHED: 1}
        path = ((Step("filter", chain, "policy DROP"),) if chain in met else (),)
        assert tuple(branch.steps for branch in outcome.branches) == path


def test_what_the_node_sends_to_itself_comes_in_by_loopback() -> None:
    own = Probe("172.18.0.2", "172.18.0.2", Protocol.TCP, 80)
    assert traced(filtering("INPUT", "-i lo -j DROP"), own).chances == {DROPPED: 1}
    assert traced(filtering("OUTPUT", "-i lo -j DROP"), own).chances == {UNTOUCHED: 1}
    assert traced(filtering("INPUT", "-i lo -j DROP"), TO_NODE).chances == {UNTOUCHED: 1}


def test_lots_are_drawn_and_the_path_is_told() -> None:
    chance = "-m statistic --mode random --probability"
    rules = nat(
        f"{chance} 0.33333333349 -j DNAT --to-destination 10.0.0.1:8080",
        f"{chance} 0.5000000000 -j DNAT --to-destination 10.0.0.2:8080",
        "-j ONE",
        chains="-A ONE -j DNAT --to-destination 10.0.0.3:8080\n",
    )
    outcome = traced(rules)
    third = Fraction(1, 3)
    assert outcome.chances == {Verdict(Fate.DELIVERED, f"10.0.0.{n}:8080"): third for n in (1, 2, 3)}
    (last,) = (b for b in outcome.branches if b.verdict.endpoint == "10.0.0.3:8080")
    assert [step.chain for step in last.steps] == ["PREROUTING", "ONE"]


@pytest.mark.parametrize("share", [2, 3, 7, 150, 1000, 9999])
def test_decimals_stand_for_shares(share: int) -> None:
    kept = round(0x80000000 / share) / 0x80000000
    assert probability_of(f"{1 / share:.10f}") == probability_of(f"{kept:.11f}") == Fraction(1, share)


def test_decimals_that_stand_for_no_share_are_what_the_kernel_keeps() -> None:
    assert probability_of("0.4") == Fraction(round(0.4 * 2**31), 2**31)
    assert probability_of("0") == 0
    assert probability_of("1") == 1
    with pytest.raises(ValueError, match="not a probability"):
        probability_of("1.5")


def test_counters_before_rules_are_passed_over() -> None:
    assert traced("*filter\n:FORWARD ACCEPT [0:0]\n[3:180] -A FORWARD -j DROP\nCOMMIT\n").chances == {DROPPED: 1}


def test_sets_are_asked() -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def oracle(name: str, directions: tuple[str, ...], packet: Packet) -> bool:
        asked.append((name, directions))
        return packet.destination == "10.96.0.1"

    rules = filtering("FORWARD", "-m set --match-set KUBE-X dst,dst,src -j DROP")
    assert IptablesTracer(rules, Family.IPV4, HOST, oracle).trace(PACKET).chances == {DROPPED: 1}
    assert asked == [("KUBE-X", ("dst", "dst", "src"))]


@pytest.mark.parametrize("source", ["192.0.2.1", "fd00::2"])
def test_a_probe_of_another_family_is_an_error(source: str) -> None:
    with pytest.raises(InvalidInput, match="IPv4"):
        IptablesTracer(nat(), Family.IPV4, HOST).trace(Probe(source, "fd00::1", Protocol.TCP, 80))


def test_an_address_that_is_none_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="'here'"):
        traced(nat(), Probe("here", "10.0.0.1", Protocol.TCP, 80))
