"""What a single place of the table should hold, whichever port asks for it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from kproxy.model.plans import Frontend, PortKey
from kproxy.model.plans import Protocol as Transport
from kproxy.modes.nftables import names
from kproxy.modes.nftables.chains import balancer_chain
from kproxy.modes.nftables.fragments import Base, Fragment
from kproxy.modes.nftables.ownership import Ownership, Place
from kproxy.netfilter.objects import Chain, Element

BY_ADDRESS = frozenset({names.SERVICES, names.ENDPOINTS, names.SOURCES})
TRANSPORTS = {protocol.lower(): protocol for protocol in Transport}
BY_NODE_PORT = frozenset({names.NODE_PORTS, names.NODE_PORT_ENDPOINTS})


def frontend_of(place: Place) -> Frontend | None:
    """The frontend that an element is about, None for one of another set or of a protocol that no Service has."""
    name, key = place
    if name in BY_ADDRESS:
        ip, protocol, port, *_ = key
    elif name in BY_NODE_PORT:
        ip, (protocol, port, *_) = "", key
    else:
        return None
    transport = TRANSPORTS.get(str(protocol))
    return None if transport is None else Frontend(str(ip), int(port), transport)


class Wanted:
    """Looks up elements and chains. Good for as long as none of its sources changes."""

    def __init__(
        self,
        base: Base,
        claims: Ownership,
        fragment: Callable[[PortKey], Fragment],
        with_chains: Iterable[PortKey],
    ) -> None:
        """fragment: of any port. with_chains: the ports that have chains of their own."""
        self._base, self._claims, self._fragment, self._with_chains = base, claims, fragment, with_chains
        self._fragments: dict[PortKey, Fragment] = {}
        self._fixed = {(element.set, element.key): element for element in base.elements}

    def element(self, place: Place) -> Element | None:
        """The element at PLACE, None when there should be none."""
        if (fixed := self._fixed.get(place)) is not None:
            return fixed
        if (frontend := frontend_of(place)) is None:
            shared = Element(*place)
            return shared if self._claims.shares(shared) else None
        if (key := self._claims.first(frontend)) is None:
            return None
        if key not in self._fragments:
            self._fragments[key] = self._fragment(key)
        claims = (claim for claim in self._fragments[key].claims if claim.frontend == frontend)
        return next((e for claim in claims for e in claim.elements if (e.set, e.key) == place), None)

    def chain(self, name: str) -> Chain | None:
        """The chain of that name, None when there should be none."""
        return self._chains.get(name)

    @cached_property
    def _chains(self) -> dict[str, Chain]:
        chains = {b.name: balancer_chain(b, self._base.settings) for b in self._claims.balancers()}
        chains.update((chain.name, chain) for chain in self._base.chains)
        chains.update((chain.name, chain) for key in self._with_chains for chain in self._fragment(key).chains)
        return chains
