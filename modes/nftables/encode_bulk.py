"""The elements that many ports need at once, as a whole table is written or compared. Pure.

Those of data are most of a table. They are made as bytes straight away, which is what the kernel is told and what a
listing is compared with: a fifth of the time that it takes by way of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kproxy.modes.nftables.fragments import Claim
from kproxy.modes.nftables.ownership import Needs
from kproxy.netfilter.element_codec import Encoded, coder
from kproxy.netfilter.objects import Element, Set


def elements(needs: Needs, sets: Mapping[str, Set]) -> dict[str, Sequence[Element]]:
    """What NEEDS come to, by the name of their set. sets: of the base, by name."""
    found: dict[str, list[Element]] = {}
    for claim in needs.claims:
        found.setdefault(claim.verdict.set, []).append(claim.verdict)
        if claim.sources:
            found.setdefault(claim.sources[0].set, []).extend(claim.sources)
    try:
        return {**found, **_targets(needs.claims, sets), **_shared(needs.shared, sets)}
    except ValueError:  # one of them means nothing; of values it can be told which
        return {**found, **_values(needs, sets)}


def _targets(claims: Iterable[Claim], sets: Mapping[str, Set]) -> dict[str, Encoded]:
    """Raises ValueError."""
    coders = {name: coder(found) for name, found in sets.items()}
    data: dict[str, list[bytes]] = {}
    for claim in claims:
        if (targets := claim.targets) is not None:
            data.setdefault(targets.set, []).extend(coders[targets.set].slots(targets.key, targets.ends))
    return {name: Encoded(sets[name], encoded) for name, encoded in data.items()}


def _shared(shared: Mapping[str, Sequence[str]], sets: Mapping[str, Set]) -> dict[str, Encoded]:
    """Raises ValueError."""
    data = {name: coder(sets[name]).repeated(addresses) for name, addresses in shared.items() if addresses}
    return {name: Encoded(sets[name], encoded) for name, encoded in data.items()}


def _values(needs: Needs, sets: Mapping[str, Set]) -> dict[str, list[Element]]:
    found: dict[str, list[Element]] = {}
    for claim in needs.claims:
        if claim.targets is not None:
            found.setdefault(claim.targets.set, []).extend(claim.targets.elements)
    for name, addresses in needs.shared.items():
        if addresses:
            found[name] = [Element(name, (address,) * len(sets[name].key)) for address in addresses]
    return found
