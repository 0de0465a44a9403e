"""What others' edits of the table, as the kernel tells of them, leave to be done. Pure.

What the table held before the edits is what it should hold; so what is known of an edit tells what is there now, and
nothing has to be read. What cannot be followed in this way is left to a comparison with the whole table: sets that come
or go, other hooks, a set that the kernel keeps in halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from kproxy.modes.nftables.delta import Delta, by_set
from kproxy.modes.nftables.ownership import Place
from kproxy.modes.nftables.wanted_places import Wanted
from kproxy.netfilter.element_codec import coder
from kproxy.netfilter.notifications import Event
from kproxy.netfilter.objects import Element, Set


def mended(events: Iterable[Event], sets: Mapping[str, Set], wanted: Wanted) -> Delta | None:
    """What leads from the table after EVENTS back to what is WANTED, None when they do not tell. sets: our own."""
    elements: dict[Place, Element | None] = {}
    chains: dict[str, bool] = {}  # whether they exist
    for event in events:
        match event.kind:
            case "element" if event.name in sets and _followed(sets[event.name]):
                try:
                    elements.update(_elements(event, sets[event.name]))
                except ValueError:
                    return None
            case "rule":
                chains.setdefault(event.name, True)
            case "chain" if event.deleted or (found := wanted.chain(event.name)) is None or found.base is None:
                chains[event.name] = not event.deleted
            case _:
                return None
    asked = {place: wanted.element(place) for place in elements}
    wrong = [place for place, there in elements.items() if there != asked[place]]
    delta = Delta(
        surplus=by_set(there for place in wrong if (there := elements[place]) is not None),
        missing=by_set(element for place in wrong if (element := asked[place]) is not None),
    )
    _compare_chains(chains, wanted, delta)
    return delta


def _followed(spec: Set) -> bool:
    return not spec.timeout and not (spec.interval and len(spec.key) == 1)


def _elements(event: Event, spec: Set) -> dict[Place, Element | None]:
    code = coder(spec)
    found: dict[Place, Element | None] = {}
    for element in map(code.decode, code.listed(event.elements)):
        if spec.interval:  # an address is told as a range of one; only the last field of ours is a network
            *fields, network = element.key
            key = (*(str(field).partition("/")[0] if isinstance(field, str) else field for field in fields), network)
            element = msgspec.structs.replace(element, key=key)
        found[event.name, element.key] = None if event.deleted else element
    return found


def _compare_chains(chains: Mapping[str, bool], wanted: Wanted, delta: Delta) -> None:
    for name, there in chains.items():
        chain = wanted.chain(name)
        if chain is None:
            delta.former_chains += [name] if there else []
        elif there:
            delta.changed.append(chain)
        else:
            delta.chains.append(chain)
