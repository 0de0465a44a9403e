"""What nftables mode's table holds against what it should hold: chains, rules, sets and elements. Pure.

There is a difference exactly when a full check would write something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from kproxy.model.plans import PortKey
from kproxy.modes.differences import Difference, Kind
from kproxy.modes.nftables import names
from kproxy.modes.nftables.compare import OtherForm
from kproxy.modes.nftables.delta import Delta
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.ownership import Place, frontend_of
from kproxy.modes.nftables.refusals import owned_places
from kproxy.modes.nftables.table_state import TableState
from kproxy.modes.nftables.text import Writer
from kproxy.netfilter import rule_codec
from kproxy.netfilter.kernel import Listing
from kproxy.netfilter.objects import Chain, Element, Rule, SetKind

OUR_CHAINS = (*(f"{kind.value}-" for kind in names.Kind), "affinity-")
OUR_SETS = "clients-"
Texts = Callable[[str], Sequence[str]]
"""Returns the rules that a chain of the table holds, as text."""


def differences(
    state: TableState, settings: Settings, listing: Listing | None, texts: Texts
) -> tuple[list[Difference], Delta | None]:
    """The differences between the table as listed, None for no table, and what the plans in STATE need; and the Delta
    that removes them, None where the table would be written anew."""
    writer = Writer(settings.family)
    table = f"table {writer.ip} {names.TABLE}"
    if listing is None:
        size = sum(fragment.size for _, fragment in state.fragments()) + len(state.base.elements)
        what = f"{table}, with {size} elements for {len(state.plans)} Service ports"
        return [Difference("", Kind.MISSING, what)], None
    try:
        delta, _ = state.compare(listing, known=True)
    except OtherForm:
        return [Difference("", Kind.CHANGED, f"{table}: of another form; would be written anew")], None
    return [*_Words(state, listing, delta, writer, texts).differences()], delta


class _Words:
    """Says what a Delta changes."""

    def __init__(self, state: TableState, listing: Listing, delta: Delta, writer: Writer, texts: Texts) -> None:
        self._state, self._listing, self._delta, self._writer, self._texts = state, listing, delta, writer, texts
        self._owners = _owners(state, delta)

    def differences(self) -> Iterator[Difference]:
        delta = self._delta
        for new in delta.sets:
            yield self._of(new.name, Kind.MISSING, f"{'set' if new.kind is SetKind.SET else 'map'} {new.name}")
        for chain in delta.chains:
            yield self._of(chain.name, Kind.MISSING, f"chain {chain.name} ({len(chain.rules)} rules)")
        for chain in delta.changed:
            yield from self._rules(chain)
        for name in delta.former_chains:
            yield self._of(name, Kind.EXTRA if name.startswith(OUR_CHAINS) else Kind.FOREIGN, f"chain {name}")
        for name in delta.former_sets:
            yield self._of(name, Kind.EXTRA if name.startswith(OUR_SETS) else Kind.FOREIGN, f"set {name}")
        for name in dict.fromkeys((*delta.missing, *delta.surplus)):
            yield from self._elements(name, delta.missing.get(name, ()), delta.surplus.get(name, ()))

    def _of(self, place: Place | str, kind: Kind, what: str) -> Difference:
        return Difference(str(self._owners.get(place, "")), kind, what)

    def _rules(self, chain: Chain) -> Iterator[Difference]:
        """The rules of a chain that differ; a rule too many is another program's."""
        listed, held = self._listing.chains[chain.name].rules, [*self._texts(chain.name)]
        wanted = [rule_codec.expressions(self._state.family, rule) for rule in chain.rules]
        surplus = [*_without(listed, wanted)]
        missing = [self._text(chain.rules[at]) for at in _without(wanted, listed)]
        if not surplus and not missing:
            yield self._of(chain.name, Kind.CHANGED, f"chain {chain.name}: the order of its rules")
        for at, new in zip_longest(surplus, missing):
            old = "" if at is None else held[at] if at < len(held) else f"rule {at + 1}"
            if at is None:
                yield self._of(chain.name, Kind.MISSING, f"chain {chain.name}: {new}")
            elif new is None:
                yield self._of(chain.name, Kind.FOREIGN, f"chain {chain.name}: {old}")
            else:
                yield self._of(chain.name, Kind.CHANGED, f"chain {chain.name}: {old} → {new}")

    def _text(self, rule: Rule) -> str:
        return " ".join(map(self._writer.statement, rule))

    def _elements(self, name: str, missing: Iterable[Element], surplus: Iterable[Element]) -> Iterator[Difference]:
        former = {element.key: element for element in surplus}
        for element in missing:
            text, old = self._writer.element(element), former.pop(element.key, None)
            if old is None:
                yield self._element(element, Kind.MISSING, f"element of {name}: {text}")
            else:
                yield self._element(element, Kind.CHANGED, f"element of {name}: {self._writer.element(old)} → {text}")
        for element in former.values():
            yield self._element(element, Kind.EXTRA, f"element of {name}: {self._writer.element(element)}")

    def _element(self, element: Element, kind: Kind, what: str) -> Difference:
        place = element.set, element.key
        if place in self._owners or not (service := self._named(element)):
            return self._of(place, kind, what)
        return Difference(service, kind, what)

    def _named(self, element: Element) -> str:
        """The Service port of an element by its frontend, or its comment; "" for none."""
        frontend = frontend_of((element.set, element.key))
        key = self._state.ownership.first(frontend) if frontend else None
        return str(key) if key else element.comment


def _owners(state: TableState, delta: Delta) -> Mapping[Place | str, PortKey]:
    """The first Service port that needs each of the places that differ."""
    wanted = frozenset(delta.places)
    found: dict[Place | str, PortKey] = {}
    for key, fragment in state.fragments() if wanted else ():
        for place in wanted.intersection(owned_places(fragment)):
            found.setdefault(place, key)
    return found


def _without(rules: Sequence[object], others: Iterable[object]) -> Iterator[int]:
    """The places of those of RULES that OTHERS do not have."""
    pool = [*others]
    for at, rule in enumerate(rules):
        if rule in pool:
            pool.remove(rule)
        else:
            yield at
