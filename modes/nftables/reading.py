"""What a table as the kernel lists it lacks, has otherwise or has for nothing.

What cannot be mended piece by piece is replaced as a whole, in one transaction: a set or base chain of another form,
or elements that mean nothing.
"""

from __future__ import annotations

from kproxy.kernel.nftables import ListedSet, Listing
from kproxy.kernel.nftables_codec import ListedChain
from kproxy.model.nft import Chain, Set
from kproxy.modes.nftables.delta import Delta
from kproxy.modes.nftables.layout import Layout

__all__ = ["compare"]


def compare(listing: Listing | None, layout: Layout) -> Delta:
    """What leads from LISTING, None for no table, to LAYOUT."""
    if listing is None:
        return _whole(layout, Delta(new=True))
    try:
        if _has_other_forms(listing, layout):
            return _whole(layout, Delta(replace=True))
        return _pieces(listing, layout)
    except ValueError:  # of LAYOUT's elements and rules too: then the kernel says which
        return _whole(layout, Delta(replace=True))


def _whole(layout: Layout, delta: Delta) -> Delta:
    delta.sets, delta.chains = list(layout.sets.values()), list(layout.chains.values())
    delta.missing = {name: list(elements) for name, elements in layout.elements.items() if elements}
    return delta


def _pieces(listing: Listing, layout: Layout) -> Delta:
    delta = Delta(
        sets=[found for name, found in layout.sets.items() if name not in listing.sets],
        chains=[chain for name, chain in layout.chains.items() if name not in listing.chains],
        former_chains=[name for name in listing.chains if name not in layout.chains],
        former_sets=[name for name in listing.sets if name not in layout.sets],
    )
    for name, chain in layout.chains.items():
        listed = listing.chains.get(name)
        if listed is not None and not listed.same_as(layout.family, chain):
            delta.changed.append(chain)
    for name, found in layout.sets.items():
        if not found.timeout:  # else packets add the elements
            wanted = layout.elements.get(name, ())
            surplus, missing = listing.sets.get(name, ListedSet(found)).difference(wanted)
            if surplus:
                delta.surplus[name] = surplus
            if missing:
                delta.missing[name] = missing
    return delta


def _has_other_forms(listing: Listing, layout: Layout) -> bool:
    sets = ((listing.sets.get(name), found) for name, found in layout.sets.items())
    chains = ((listing.chains.get(name), chain) for name, chain in layout.chains.items())
    return any(_is_other_set(*pair) for pair in sets) or any(_is_other_chain(*pair) for pair in chains)


def _is_other_set(listed: ListedSet | None, wanted: Set) -> bool:
    return listed is not None and listed.spec != wanted


def _is_other_chain(listed: ListedChain | None, wanted: Chain) -> bool:
    return listed is not None and not (listed.ordinary and listed.base == wanted.base)
