"""Rules of nf_tables in words, beside what nft prints of them."""

from __future__ import annotations

import pytest

from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.netfilter.live_rules import Place
from kproxy.netfilter.ruleset import Ruleset
from kproxy.trace.nft_text import rule_text

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]
AS_NFT_PRINTS = (
    "ip saddr 10.0.0.0/8 accept",
    "ip saddr != 10.1.2.3 tcp dport 80 drop",
    "tcp dport != 443 accept",
    'iifname "eth0" oifname "veth*" accept',
    "ct state established,related accept",
    "ct state invalid drop",
    "ct status dnat accept",
    "ct mark 0x00000005 accept",
    "fib daddr type local accept",
    "ip protocol icmp accept",
    "numgen random mod 2 0 accept",
    "reject",
    "tcp dport < 1024 accept",
    "ip saddr & 255.255.0.255 == 10.0.0.1 accept",
    "meta mark set 0x00000007",
    "jump other",
    "goto other",
    "meta mark & 0x00004000 == 0x00004000 return",
    "meta mark set meta mark | 0x00004000",
    "masquerade",
    "tcp dport 80 redirect to :80",
    "tcp dport 80 dnat to 10.0.0.1:8080",
    'accept comment "why it is there"',
)
OTHERWISE = {
    "tcp dport 100-200 drop": "tcp dport >= 100 tcp dport <= 200 drop",
    "tcp dport { 80, 443 } accept": "tcp dport @__set0 accept",
    "limit rate 5/second accept": "[limit] accept",
}


def test_a_rule_reads_as_nft_prints_it() -> None:
    wanted = {**{rule: rule for rule in AS_NFT_PRINTS}, **OTHERWISE}
    space = Namespace("words")
    try:
        chain = "{ type nat hook prerouting priority 0; }"
        lines = ["add table ip t", "add chain ip t other", f"add chain ip t c {chain}"]
        lines += ["add chain ip t post { type nat hook postrouting priority 0; }"]
        place = {rule: "post" if rule == "masquerade" else "f" if rule == "reject" else "c" for rule in wanted}
        lines += ["add chain ip t f { type filter hook input priority 0; }"]
        lines += [f"add rule ip t {place[rule]} {rule}" for rule in wanted]
        space.run(["nft", "-f", "-"], "\n".join(lines) + "\n")
        rules = space.call(Ruleset)
        for name in ("c", "post", "f"):
            found = [rule_text(rule, "ip") for rule in rules.rules(Place("ip", "t"), name)]
            assert found == [wanted[rule] for rule in wanted if place[rule] == name]
        rules.close()
    finally:
        space.close()
