"""A packet on its way through a host's hooks, whoever filters there.

    comes in by an interface: PREROUTING, then INPUT when the destination is the node's own, else FORWARD, POSTROUTING
    the node sends it:        OUTPUT, POSTROUTING, and where it goes to the node itself, PREROUTING, INPUT

NAT is for the first packet of a connection, which a probe is, and is met once on each side: what the node sends to
itself passes PREROUTING and INPUT without it. Leaves out: out-interfaces, bridges, what the routing table may refuse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from enum import Enum
from fractions import Fraction
from typing import Any, NamedTuple

from kproxy.model.plans import address_port
from kproxy.trace.verdicts import Branch, Fate, Host, Memory, Outcome, Probe, Step, Verdict, number

LOOPBACK = "lo"


class Place(Enum):
    """A hook of the kernel."""

    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


class Packet(NamedTuple):
    """A packet under way. source, destination: canonical text, and as numbers beside.

    translated: its destination was changed; masqueraded: its source will be.
    """

    source: str
    destination: str
    source_number: int
    destination_number: int
    protocol: str
    port: int
    interface: str = ""
    bridged: bool = False
    mark: int = 0
    translated: bool = False
    masqueraded: bool = False

    @property
    def states(self) -> frozenset[str]:
        """What connection tracking says of it: the first packet of a connection is new."""
        done = (("DNAT", self.translated), ("SNAT", self.masqueraded))
        return frozenset({"NEW", *(name for name, is_so in done if is_so)})


class Flow(NamedTuple):
    """A packet that got this far, by this way, with this probability."""

    packet: Packet
    probability: Fraction = Fraction(1)
    remembers: frozenset[Memory] = frozenset()
    path: tuple[Step, ...] = ()

    def by(self, step: Step) -> Flow:
        """After one more step."""
        return self._replace(path=(*self.path, step))

    def part(self, share: Fraction) -> Flow:
        """The part of it on which a lot falls."""
        return self._replace(probability=self.probability * share)

    def remembering(self, memory: Memory) -> Flow:
        return self._replace(remembers=self.remembers | {memory})

    def changed(self, **fields: Any) -> Flow:
        """With these fields of the packet."""
        return self._replace(packet=self.packet._replace(**fields))

    def led(self, ip: str, port: int) -> Flow:
        """To another destination. PORT 0 keeps the packet's."""
        to = port or self.packet.port
        return self.changed(destination=ip, destination_number=number(ip), port=to, translated=True)


class Journey(ABC):
    """One probe under way; collects the branches that have ended."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ended: list[Branch] = []

    @abstractmethod
    def _hook(self, place: Place, flow: Flow, nat: bool) -> list[Flow]:
        """What goes on after all that is hooked there; what does not was given to `_end`. nat: whether NAT is met."""

    def run(self, probe: Probe) -> Outcome:
        """Every way that the probe may go."""
        flow = Flow(
            Packet(
                probe.source,
                probe.destination,
                number(probe.source),
                number(probe.destination),
                probe.protocol.lower(),
                probe.port,
                probe.interface,
                probe.bridged,
            )
        )
        for arrived in self._arriving(flow) if probe.interface else self._sent(flow):
            self._end(arrived, Fate.DELIVERED if arrived.packet.translated else Fate.UNTOUCHED)
        return Outcome(tuple(self._ended))

    def _arriving(self, flow: Flow) -> list[Flow]:
        here, elsewhere = self._routed(self._hook(Place.PREROUTING, flow, True))
        return [*self._through(Place.INPUT, here), *self._leaving(self._through(Place.FORWARD, elsewhere))]

    def _sent(self, flow: Flow) -> list[Flow]:
        here, elsewhere = self._routed(self._leaving(self._hook(Place.OUTPUT, flow, True)))
        back = [each.changed(interface=LOOPBACK) for each in here]
        back = self._through(Place.INPUT, self._through(Place.PREROUTING, back, False), False)
        return [*elsewhere, *back]

    def _leaving(self, flows: Iterable[Flow]) -> list[Flow]:
        return self._through(Place.POSTROUTING, [flow.changed(interface="", bridged=False) for flow in flows])

    def _through(self, place: Place, flows: Sequence[Flow], nat: bool = True) -> list[Flow]:
        return [passed for flow in flows for passed in self._hook(place, flow, nat)]

    def _routed(self, flows: Iterable[Flow]) -> tuple[list[Flow], list[Flow]]:
        """Those that go to the node itself, and the others."""
        here: list[Flow] = []
        elsewhere: list[Flow] = []
        for flow in flows:
            (here if self._host.owns(flow.packet.destination) else elsewhere).append(flow)
        return here, elsewhere

    def _end(self, flow: Flow, fate: Fate) -> None:
        packet = flow.packet
        endpoint, masqueraded = "", False
        if fate is Fate.DELIVERED:
            endpoint = address_port(packet.destination, packet.port)
        if fate in (Fate.DELIVERED, Fate.UNTOUCHED):
            masqueraded = packet.masqueraded
        verdict = Verdict(fate, endpoint, masqueraded)
        self._ended.append(Branch(flow.probability, verdict, flow.remembers, flow.path))
