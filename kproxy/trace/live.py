"""Traces a packet through all that a node's kernel holds: every base chain of nf_tables and of legacy iptables.

Decides: in which order chains are passed, and which of them NAT leaves out. Leaves out: reading the kernel; the rules
come in as values, or by the interface of kproxy.netfilter.ruleset.
Sources: net/netfilter/nf_nat_core.c, net/netfilter/ipvs/ip_vs_core.c, include/uapi/linux/netfilter_ipv4.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import NamedTuple, Protocol

from kproxy.model.plans import Family, address_port
from kproxy.netfilter.live_rules import HookedChain
from kproxy.trace.hooks import ChainAtHook, Hook, HookTracer, Packet, Path
from kproxy.trace.iptables import NAT, NAT_DESTINATION, NAT_SOURCE, TABLES, IptablesChains, priority
from kproxy.trace.iptables_parser import Chain, ListedTables, Tables
from kproxy.trace.iptables_rules import MatchContext, SetLookup
from kproxy.trace.nft_rules import NftChains, Rules
from kproxy.trace.outcome import Affinity, Fate, Host, NotKnown, Outcome, Probe, Step, check_family

NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}
CONNTRACK = -200  # NF_IP_PRI_CONNTRACK, at PREROUTING and OUTPUT
IPVS = {Hook.INPUT: NAT_SOURCE - 1, Hook.OUTPUT: NAT_DESTINATION + 2}  # ip_vs_in_hook of ip_vs_core.c


class LiveRules(Rules, Protocol):
    """The rules of nf_tables."""

    def base_chains(self) -> Sequence[HookedChain]: ...


class Balancer(NamedTuple):
    """A virtual server of IPVS. reals: the address, port and weight of each real server. persistence: the seconds for
    which a client stays with the same one, 0 for none."""

    name: str
    scheduler: str
    reals: tuple[tuple[str, int, int], ...]
    persistence: int = 0


class Live(NamedTuple):
    """What a node's kernel holds for one family.

    rules: nf_tables. by_nft: those of its tables that iptables-nft can read. legacy: the tables of iptables-legacy.
    sets: looks up ipsets. balancer: the virtual server for a packet.
    """

    family: Family
    host: Host
    rules: LiveRules
    by_nft: Tables | ListedTables
    legacy: Tables
    sets: SetLookup | None = None
    affinity: Affinity = MappingProxyType({})
    balancer: Callable[[Packet], Balancer | None] | None = None


class LiveOutcome(NamedTuple):
    """The outcome of a probe. unknown: the rules of which it is not known whether they match, with the reasons; they
    were passed as if they did not."""

    outcome: Outcome
    unknown: tuple[tuple[Step, str], ...] = ()


def trace_live(live: Live, probe: Probe) -> LiveOutcome:
    """The outcome of a probe. Raises InvalidInput when it is of another family, and what `live.rules` raises."""
    check_family(probe, live.family)
    trace = _Trace(live)
    return LiveOutcome(trace.run(probe), tuple(trace.unknown.items()))


class _Trace(HookTracer):
    """The trace of one probe."""

    def __init__(self, live: Live) -> None:
        super().__init__(live.host)
        self.unknown: dict[Step, str] = {}
        context = MatchContext(live.host, live.affinity, live.sets or _no_sets)
        nft_tables, legacy_tables = live.by_nft, live.legacy
        by_nft = IptablesChains(nft_tables, context, self._end, self._note)
        legacy = IptablesChains(legacy_tables, context, self._end, self._note)
        nft = NftChains(live.rules, live.host, self._end, self._note)
        found: dict[Hook, list[ChainAtHook]] = {hook: [] for hook in Hook}
        for chain in live.rules.base_chains():
            if chain.place.family not in (NFT_FAMILY[live.family], "inet") or chain.hook not in _HOOK_OF:
                continue
            hook = _HOOK_OF[chain.hook]
            table = chain.place.table
            of_iptables = chain.place.family != "inet" and table in TABLES[hook] and chain.name == hook.name
            known = nft_tables.chain(table, chain.name) if of_iptables else None
            apply = _xtables(by_nft, table, known) if known else _nft(nft, chain)
            found[hook].append(ChainAtHook(chain.priority, chain.type == NAT, apply))
        for hook, tables in TABLES.items():
            for table in tables:
                if there := legacy_tables.chain(table, hook.name):
                    found[hook].append(ChainAtHook(priority(table, hook), table == NAT, _xtables(legacy, table, there)))
        if live.balancer is not None:
            self._balancer = live.balancer
            for hook, place in IPVS.items():
                found[hook].append(ChainAtHook(place, False, self._balanced))
        self._hooked = {hook: sorted(chains, key=lambda each: each.priority) for hook, chains in found.items()}

    def _hook(self, hook: Hook, path: Path, nat: bool) -> list[Path]:
        left = [path]
        for chain in self._hooked[hook]:
            passed: list[Path] = []
            seen = chain.priority >= CONNTRACK or hook not in (Hook.PREROUTING, Hook.OUTPUT) or not nat
            for each in left:
                each = each.changed(seen=seen) if each.packet.seen is not seen else each
                passed += chain.passed(hook, each, nat)
            left = passed
        return [each if each.packet.seen else each.changed(seen=True) for each in left]

    def _balanced(self, path: Path) -> list[Path]:
        """IPVS: what goes to a real server elsewhere passes OUTPUT and POSTROUTING from here."""
        server = None if path.packet.balanced else self._balancer(path.packet)
        if server is None:
            return [path]
        shares = {real: 1 if server.scheduler == "rr" else real[2] for real in server.reals if real[2]}
        persistent = f", persistent for {server.persistence} s" if server.persistence else ""
        step = Step("ipvs", server.name, f"scheduler {server.scheduler}{persistent}")
        if not shares:
            self._end(path.after(step._replace(element="no real server takes new connections")), Fate.REJECTED)
        if server.scheduler not in ("rr", "wrr") and len(shares) > 1:
            self._note(step, "which real server its scheduler chooses; shown as if by weight")
        left = []
        for (ip, port, weight), share in shares.items():
            why = f"real server {address_port(ip, port)}, weight {weight}"
            part = path.part(Fraction(share, sum(shares.values()))).after(step._replace(element=why))
            part = part.redirected(ip, port).changed(balanced=True)
            if self._host.owns(ip):
                left.append(part)
                continue
            sent = self._through(Hook.OUTPUT, [self._directed(part.changed(interface=""))], False)
            for gone in self._leaving(sent):
                self._end(gone, Fate.DELIVERED)
        return left

    def _note(self, step: Step, why: str) -> None:
        self.unknown.setdefault(step, why)


def _xtables(chains: IptablesChains, table: str, chain: Chain) -> Callable[[Path], list[Path]]:
    return lambda path: chains.base(table, chain, path)


def _nft(chains: NftChains, chain: HookedChain) -> Callable[[Path], list[Path]]:
    return lambda path: chains.base(chain, path)


def _no_sets(name: str, directions: tuple[str, ...], packet: Packet) -> bool:
    raise NotKnown(f"the ipset {name}")


_HOOK_OF: Mapping[str, Hook] = {hook.value: hook for hook in Hook}
