"""The values between rendering and programming: what one Service port needs, and what the node needs once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from kproxy.model.flows import Frontend
from kproxy.model.nft import Chain, Element, Set
from kproxy.modes.nftables.names import Balancer
from kproxy.modes.nftables.settings import Settings

__all__ = ["Base", "Claim", "Fragment"]


class Claim(NamedTuple):
    """A frontend that leads to the port, and the elements that make it so.

    When two ports claim one frontend, all elements are those of the first of them by PortKey: a mixture of both would
    lead nowhere. The keys of all elements hold the frontend, so those of different frontends never meet.
    balancer: how traffic to it is treated; None when it is refused or dropped. own: a chain of the fragment does that,
    not the one that all ports share.
    """

    frontend: Frontend
    elements: tuple[Element, ...]
    balancer: Balancer | None = None
    own: bool = False

    @property
    def needs(self) -> Balancer | None:
        """The shared chain to which the frontend leads, None when there is none."""
        return None if self.own else self.balancer


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service port needs.

    shared: elements that other ports may need as well (a Service's cluster IP, a pod's address): each stays as long as
    any port needs it. Their keys are one value, once or several times. sets: the set of clients, with affinity only;
    ports with the same timeout share it, and one of a name is always the same. chains: this port's own, with affinity
    only.
    """

    claims: tuple[Claim, ...] = ()
    shared: tuple[Element, ...] = ()
    sets: tuple[Set, ...] = ()
    chains: tuple[Chain, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """What a node needs whatever its Services are. sets: all that ports write into, too."""

    settings: Settings
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    elements: tuple[Element, ...] = ()
