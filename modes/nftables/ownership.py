"""Which Service ports need which frontend, shared element, chain and set, and what a change of some ports changes.

Several ports may need the same: two Services may ask for one external IP and port, the ports of a Service share its
cluster IP, all frontends with as many endpoints share a chain, and all ports with one affinity timeout share a set of
clients. A frontend is served as the first of its ports by name asks for, so that the result does not depend on the
order in which they came. Pure.

Fragments are only counted, not kept: they are rendered again from the plans when they are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from kproxy.model.plans import Frontend, PortKey
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.nftables import names
from kproxy.modes.nftables.chains import balancer_chain
from kproxy.modes.nftables.fragments import Claim, Fragment, Settings
from kproxy.modes.nftables.names import Balancer
from kproxy.netfilter.objects import Chain, Element, Key, Set

Fragments = Mapping[PortKey, Fragment]
Place = tuple[str, Key]
"""Where an element is: the name of its set, and its key."""


TRANSPORTS = {protocol.lower(): protocol for protocol in Transport}
BY_ADDRESS = frozenset({names.SERVICES, names.ENDPOINTS, names.SOURCES})
BY_NODE_PORT = frozenset({names.NODE_PORTS, names.NODE_PORT_ENDPOINTS, names.LOCALHOST_PORTS, names.LOCALHOST_REFUSED})


def frontend_of(place: Place) -> Frontend | None:
    """The frontend that the element at PLACE belongs to; None for other sets, and for protocols that no Service has."""
    name, key = place
    if name in BY_ADDRESS:
        ip, protocol, port, *_ = key
    elif name in BY_NODE_PORT:
        ip, (protocol, port, *_) = "", key
    else:
        return None
    transport = TRANSPORTS.get(str(protocol))
    return None if transport is None else Frontend(str(ip), int(port), transport)


class Part(NamedTuple):
    """Part of the table: sets and chains by name, elements by place."""

    sets: dict[str, Set]
    chains: dict[str, Chain]
    elements: dict[Place, Element]


class Change(NamedTuple):
    """Everything that a change of some ports may affect, before and after it; the rest of the table stays as it is."""

    before: Part
    after: Part


class Needs(NamedTuple):
    """What some ports need that earlier ports did not need. shared: addresses, by the set that needs them."""

    claims: list[Claim]
    shared: dict[str, list[str]]
    chains: list[Chain]
    sets: list[Set]


class Ownership:
    """What some ports need, kept up to date one change at a time."""

    def __init__(self, settings: Settings, fragment: Callable[[PortKey], Fragment]) -> None:
        """fragment: renders a port that is not part of a change."""
        self._settings, self._fragment = settings, fragment
        self._frontends: dict[Frontend, tuple[PortKey, ...]] = {}
        # How many need an element, by its set and the address of which its key is made.
        self._shared: dict[str, dict[str | int, int]] = {names.CLUSTER_IPS: {}, names.HAIRPINS: {}}
        self._balancers: Counter[Balancer] = Counter()
        self._sets: Counter[Set] = Counter()

    def balancers(self) -> Collection[Balancer]:
        """The shared chains that any port needs."""
        return self._balancers.keys()

    def first(self, frontend: Frontend) -> PortKey | None:
        """The port that serves a frontend, None for none."""
        return self._frontends.get(frontend, (None,))[0]

    def shares(self, element: Element) -> bool:
        """Whether any port needs a shared element."""
        start, *others = element.key
        return start in self._shared.get(element.set, ()) and all(other == start for other in others)

    def admit(self, fragments: Fragments) -> Needs:
        """Adds ports whose names sort after all others; returns what they need. Quicker than `change`."""
        served: list[Claim] = []
        for key, fragment in fragments.items():
            for claim in fragment.claims:
                claimants = self._frontends.get(claim.frontend, ())
                self._frontends[claim.frontend] = (*claimants, key)
                if not claimants:
                    served.append(claim)
        before = frozenset(self._balancers)
        added = [b for b in self._count_balancers(served, 1) if b not in before]
        chains = {balancer.name: balancer_chain(balancer, self._settings) for balancer in added}
        chains.update((chain.name, chain) for fragment in fragments.values() for chain in fragment.chains)
        needed_sets = Counter(found for fragment in fragments.values() for found in fragment.sets)
        self._sets.update(needed_sets)
        new_sets = [found for found, number in needed_sets.items() if self._sets[found] == number]
        cluster_ips = [fragment.cluster_ip for fragment in fragments.values() if fragment.cluster_ip]
        hairpins = [ip for fragment in fragments.values() for ip in fragment.hairpins]
        shared = {
            names.CLUSTER_IPS: self._fresh(names.CLUSTER_IPS, cluster_ips),
            names.HAIRPINS: self._fresh(names.HAIRPINS, hairpins),
        }
        return Needs(served, shared, list(chains.values()), new_sets)

    def _fresh(self, name: str, addresses: Sequence[str]) -> list[str]:
        """Counts the users of shared elements; returns the addresses that nobody needed before, each once."""
        counts = self._shared[name]
        fresh: dict[str, int] = dict.fromkeys(addresses, 1)
        if len(fresh) == len(addresses) and counts.keys().isdisjoint(fresh):  # nearly always, and then quick
            counts.update(fresh)
            return list(fresh)
        found = [address for address in fresh if address not in counts]
        for address in addresses:
            counts[address] = counts.get(address, 0) + 1
        return found

    def change(self, old: Fragments, new: Fragments) -> Change:
        """Replaces what some ports needed, OLD, by what they need, NEW, which has the same ports; an empty fragment
        stands for nothing. A change is undone by the opposite one."""
        claims = (claim for fragments in (old, new) for fragment in fragments.values() for claim in fragment.claims)
        frontends = dict.fromkeys(claim.frontend for claim in claims)
        elements = dict.fromkeys(e for some in (old, new) for fragment in some.values() for e in fragment.shared)
        sets = dict.fromkeys(found for some in (old, new) for fragment in some.values() for found in fragment.sets)
        before = self._served(frontends, old)
        balancers = self._count_balancers(before, -1)
        present = [element for element in elements if self.shares(element)]
        sets_before = [found for found in sets if self._sets[found]]
        self._count(old, -1)
        self._count(new, 1)
        after = self._served(frontends, new)
        needed = self._count_balancers(after, 1)
        shared_before = balancers.keys() | {b for b in needed if self._balancers[b] > needed[b]}
        shared_after = needed.keys() | {b for b in balancers if self._balancers[b]}
        return Change(
            self._part(old, before, present, shared_before, sets_before),
            self._part(
                new,
                after,
                [element for element in elements if self.shares(element)],
                shared_after,
                [found for found in sets if self._sets[found]],
            ),
        )

    def _served(self, frontends: Iterable[Frontend], fragments: Fragments) -> list[Claim]:
        """For each frontend the claim of the first of its ports."""
        found: dict[PortKey, dict[Frontend, Claim]] = {}
        served = []
        for frontend in frontends:
            if not (claimants := self._frontends.get(frontend)):
                continue
            if (key := claimants[0]) not in found:
                fragment = fragments[key] if key in fragments else self._fragment(key)
                found[key] = {claim.frontend: claim for claim in fragment.claims}
            served.append(found[key][frontend])
        return served

    def _count(self, fragments: Fragments, step: int) -> None:
        for key, fragment in fragments.items():
            for claim in fragment.claims:
                self._claim(claim.frontend, key, step > 0)
            for element in fragment.shared:
                self._count_shared(element, step)
            for found in fragment.sets:
                self._sets[found] += step
                if not self._sets[found]:
                    del self._sets[found]

    def _count_shared(self, element: Element, step: int) -> None:
        counts = self._shared[element.set]
        start = element.key[0]
        if count := counts.get(start, 0) + step:
            counts[start] = count
        else:
            del counts[start]

    def _claim(self, frontend: Frontend, key: PortKey, needed: bool) -> None:
        claimants = tuple(other for other in self._frontends.pop(frontend, ()) if other != key)
        if needed:
            claimants = tuple(sorted((*claimants, key))) if claimants else (key,)
        if claimants:
            self._frontends[frontend] = claimants

    def _count_balancers(self, claims: Iterable[Claim], step: int) -> Counter[Balancer]:
        """Counts the users of the shared chains that CLAIMS need, which are returned."""
        needed = Counter(claim.needs for claim in claims if claim.needs)
        for balancer, number in needed.items():
            self._balancers[balancer] += step * number
            if not self._balancers[balancer]:
                del self._balancers[balancer]
        return needed

    def _part(
        self,
        fragments: Fragments,
        claims: Iterable[Claim],
        shared: Iterable[Element],
        balancers: Iterable[Balancer],
        sets: Iterable[Set],
    ) -> Part:
        elements = {(e.set, e.key): e for claim in claims for e in claim.elements}
        elements.update(((e.set, e.key), e) for e in shared)
        chains = {balancer.name: balancer_chain(balancer, self._settings) for balancer in balancers}
        chains.update((chain.name, chain) for fragment in fragments.values() for chain in fragment.chains)
        return Part({found.name: found for found in sets}, chains, elements)
