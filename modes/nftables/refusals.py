"""Attributes what the kernel refused to the Service ports that need it. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kproxy.errors import NetlinkError
from kproxy.model.plans import PortKey
from kproxy.modes.nftables.fragments import Fragment
from kproxy.modes.nftables.ownership import Place
from kproxy.netfilter.objects import Element
from kproxy.netfilter.operations import AddChain, AddElements, AddRules, AddSet, ElementsRefused, Operation

# Something exists that should not, or the other way around: the table is not as it was believed to be.
SURPRISES = frozenset({errno.EEXIST, errno.ENOENT, errno.EBUSY, errno.ESRCH})
OBSTACLES = SURPRISES | {errno.EBADMSG}
"""Why a table that was just read cannot be repaired, or not be read: others have something in it that we do not
know."""


def contradicts(errors: Mapping[int, NetlinkError]) -> bool:
    """Whether `errors`, by the index of the operation, say that the table is not as it was believed to be.

    The first of them decides, as the others may follow from it: of a set that is refused, every rule that uses it.
    """
    first = errors[min(errors)]
    return any(error.errno in SURPRISES for error in (_each(first) or [first]))


def refused_ports(
    operations: Sequence[Operation], errors: Mapping[int, NetlinkError], fragments: Iterable[tuple[PortKey, Fragment]]
) -> dict[PortKey, str]:
    """Those of `fragments` that need what was refused, with one line of why; none when it belongs to no port.

    errors: by the index of the operation.
    """
    elements: dict[Element, str] = {}
    names: dict[str, str] = {}
    for index, error in errors.items():
        match operations[index]:
            case AddElements(elements=members) if isinstance(error, ElementsRefused):
                elements.update((members[at], str(why)) for at, why in error.elements.items())
            case AddChain(chain=name) | AddRules(chain=name):
                names.setdefault(name, str(error))
            case AddSet(set=spec):
                names.setdefault(spec.name, str(error))
    found = ((key, _why(fragment, elements, names)) for key, fragment in fragments)
    return {key: why for key, why in found if why}


def ports_at(places: Iterable[Place | str], fragments: Iterable[tuple[PortKey, Fragment]]) -> list[PortKey]:
    """The ports of those `fragments` that have anything at `places`: places of elements, names of sets and chains."""
    wanted = frozenset(places)
    return [key for key, fragment in fragments if not wanted.isdisjoint(owned_places(fragment))]


def owned_places(fragment: Fragment) -> Iterator[Place | str]:
    """Everything that a port needs: places of elements, names of sets and chains."""
    yield from (found.name for found in fragment.sets)
    yield from (chain.name for chain in fragment.chains)
    yield from (claim.needs.name for claim in fragment.claims if claim.needs)
    elements = (element for claim in fragment.claims for element in claim.elements)
    yield from ((element.set, element.key) for element in (*fragment.shared, *elements))


def _why(fragment: Fragment, elements: Mapping[Element, str], names: Mapping[str, str]) -> str:
    """Why `fragment` is refused; "" when it is not."""
    if names:
        shared = (claim.needs.name for claim in fragment.claims if claim.needs)
        own = (*(found.name for found in fragment.sets), *(chain.name for chain in fragment.chains))
        for name in (*own, *shared):
            if name in names:
                return names[name]
    if elements:
        for element in (*fragment.shared, *(element for claim in fragment.claims for element in claim.elements)):
            if element in elements:
                return elements[element]
    return ""


def _each(error: NetlinkError) -> list[NetlinkError]:
    return list(error.elements.values()) if isinstance(error, ElementsRefused) else []
