"""The order in which a packet passes the kernel's hooks, whatever rules are attached to them.

    comes in by an interface: PREROUTING, then INPUT when the destination is the node's own, else FORWARD, POSTROUTING
    the node sends it:        OUTPUT, POSTROUTING, and where it goes to the node itself, PREROUTING, INPUT

A probe is the first packet of a connection, so it passes NAT chains, but only once on each side: what the node sends to
itself passes PREROUTING and INPUT without them. Leaves out: bridges, refusals of the routing table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from fractions import Fraction
from typing import Any, NamedTuple

from kproxy.model.addresses import is_loopback
from kproxy.model.plans import address_port
from kproxy.trace.comparisons import Dimension, Observer, owned, unobserved
from kproxy.trace.outcome import AffinityEntry, Branch, Fate, Host, Outcome, Probe, Step, Verdict, number

LOOPBACK = "lo"


class Hook(Enum):
    """A hook of the kernel."""

    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


SOURCE_HOOKS = frozenset({Hook.INPUT, Hook.POSTROUTING})
"""The hooks at which NAT changes the source; at the others it changes the destination."""


class Packet(NamedTuple):
    """A packet at some point of its path. source, destination: canonical text; beside it the same as numbers.

    translated: its destination was changed. masqueraded: its source will be changed to an address of the node. output:
    the interface by which it leaves, "" where that is not decided yet, None if it is not known. ct_mark: of its
    connection. untracked: connection tracking leaves it out. balanced: IPVS has chosen a real server. source_to: the
    address that a rule names as its source afterwards, "" for the output interface's. seen: by connection tracking,
    which chains of low priorities come before.
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
    output: str | None = ""
    ct_mark: int = 0
    untracked: bool = False
    source_to: str = ""
    seen: bool = True
    balanced: bool = False

    @property
    def states(self) -> frozenset[str]:
        """Its connection tracking states; the first packet of a connection is NEW."""
        if not self.seen:
            return frozenset({"UNTRACKED" if self.untracked else "INVALID"})
        done = (("DNAT", self.translated and not self.balanced), ("SNAT", self.masqueraded))
        return frozenset({"UNTRACKED" if self.untracked else "NEW", *(name for name, is_so in done if is_so)})


class Path(NamedTuple):
    """One path of a packet up to this point, and the probability that the packet takes it."""

    packet: Packet
    probability: Fraction = Fraction(1)
    remembers: frozenset[AffinityEntry] = frozenset()
    steps: tuple[Step, ...] = ()

    def after(self, step: Step) -> Path:
        """The path with one more step."""
        return Path(self.packet, self.probability, self.remembers, (*self.steps, step))  # twice as fast as _replace

    def part(self, share: Fraction) -> Path:
        """The path after a random choice that has this probability."""
        return Path(self.packet, self.probability * share, self.remembers, self.steps)

    def remembering(self, memory: AffinityEntry) -> Path:
        return self._replace(remembers=self.remembers | {memory})

    def changed(self, **fields: Any) -> Path:
        """The path with these fields of the packet changed."""
        return Path(self.packet._replace(**fields), self.probability, self.remembers, self.steps)

    def redirected(self, ip: str, port: int) -> Path:
        """The path with another destination. Port 0 keeps the packet's."""
        to = port or self.packet.port
        return self.changed(destination=ip, destination_number=number(ip), port=to, translated=True)


class ChainAtHook(NamedTuple):
    """A chain that a hook calls. apply: returns the paths that it lets pass."""

    priority: int
    is_nat: bool
    apply: Callable[[Path], list[Path]]

    def passed(self, hook: Hook, path: Path, nat: bool) -> list[Path]:
        """The paths that it lets pass, or that pass it by. nat: as in HookTracer."""
        return [path] if self.is_nat and not (nat and may_translate(hook, path)) else self.apply(path)


def may_translate(hook: Hook, path: Path) -> bool:
    """Whether a packet passes NAT chains: only until one of them has translated it, and only if it is tracked.

    Source: net/netfilter/nf_nat_core.c, nf_nat_inet_fn.
    """
    packet = path.packet
    return not (packet.untracked or (packet.masqueraded if hook in SOURCE_HOOKS else packet.translated))


class HookTracer(ABC):
    """Traces one probe through the hooks and collects the branches of its outcome."""

    def __init__(self, host: Host, observe: Observer = unobserved) -> None:
        self._host, self._observe = host, observe
        self._ended: list[Branch] = []

    @abstractmethod
    def _hook(self, hook: Hook, path: Path, nat: bool) -> list[Path]:
        """Apply the rules at one hook. Returns the paths that continue; the others are passed to `_end`.

        nat: whether NAT chains are passed.
        """

    def run(self, probe: Probe) -> Outcome:
        """All paths of the probe."""
        path = Path(
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
        for arrived in self._arriving(path) if probe.interface else self._sent(path):
            self._end(arrived, Fate.DELIVERED if arrived.packet.translated else Fate.UNTOUCHED)
        return Outcome(tuple(self._ended))

    def _arriving(self, path: Path) -> list[Path]:
        arrived = self._hook(Hook.PREROUTING, path, True)
        arrived = [p for p in arrived if not self._is_martian(p, p.packet.destination, path.packet.interface)]
        here, elsewhere = self._routed(arrived)
        forwarded = self._through(Hook.FORWARD, [self._directed(each) for each in elsewhere])
        return [*self._through(Hook.INPUT, here), *self._leaving(forwarded)]

    def _sent(self, path: Path) -> list[Path]:
        sent = [self._directed(each) for each in self._hook(Hook.OUTPUT, self._directed(path), True)]
        sent = [each for each in sent if not self._is_martian(each, each.packet.source, each.packet.output)]
        here, elsewhere = self._routed(self._leaving(sent))
        back = [each.changed(interface=LOOPBACK, output="") for each in here]
        back = self._through(Hook.INPUT, self._through(Hook.PREROUTING, back, False), False)
        return [*elsewhere, *back]

    def _is_martian(self, path: Path, ip: str, interface: str | None) -> bool:
        """Whether routing drops a packet as its source or destination IP is a loopback address and the interface is
        not (RFC 1122); the path has ended then."""
        refused = is_loopback(ip) and bool(interface) and interface != LOOPBACK and not self._host.route_localnet
        if refused:
            step = Step("routing", interface or "", f"{ip} is a loopback address, and route_localnet is off")
            self._end(path.after(step), Fate.DROPPED)
        return refused

    def _leaving(self, paths: Iterable[Path]) -> list[Path]:
        return self._through(Hook.POSTROUTING, [path.changed(interface="", bridged=False) for path in paths])

    def _directed(self, path: Path) -> Path:
        """The path with the output interface that the routing table gives."""
        destination = path.packet.destination
        if self._is_own(path.packet):
            return path.changed(output=LOOPBACK)
        route = self._host.route(destination)
        return path.changed(output=route.interface if route else None)

    def _through(self, hook: Hook, paths: Sequence[Path], nat: bool = True) -> list[Path]:
        return [passed for path in paths for passed in self._hook(hook, path, nat)]

    def _routed(self, paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
        """The paths that are destined for the node itself, and the others."""
        here: list[Path] = []
        elsewhere: list[Path] = []
        for path in paths:
            (here if self._is_own(path.packet) else elsewhere).append(path)
        return here, elsewhere

    def _is_own(self, packet: Packet) -> bool:
        if not packet.translated:
            self._observe(owned(self._host.addresses, ":" in packet.destination, Dimension.DESTINATION))
        return self._host.owns(packet.destination)

    def _end(self, path: Path, fate: Fate) -> None:
        packet = path.packet
        endpoint, masqueraded = "", False
        if fate is Fate.DELIVERED:
            endpoint = address_port(packet.destination, packet.port)
        if fate in (Fate.DELIVERED, Fate.UNTOUCHED):
            masqueraded = packet.masqueraded
        verdict = Verdict(fate, endpoint, masqueraded)
        output = packet.output or "" if fate in (Fate.DELIVERED, Fate.UNTOUCHED) else ""
        source = self._source(packet, output) if masqueraded else packet.source
        self._ended.append(Branch(path.probability, verdict, path.remembers, path.steps, output, source))

    def _source(self, packet: Packet, output: str) -> str:
        """The address that a masqueraded packet has afterwards, "" if it is not known."""
        if packet.source_to:
            return packet.source_to
        route = self._host.route(packet.destination)
        return (route.source if route else "") or self._host.interfaces.get(output, "")
