"""Merges the classes that two sets of rules treat differently into as few sentences as possible. Pure.

Decides: what kind of address and port a class is about, in which words a change is described, and what is told
together: all that has the same kind and the same change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

from kproxy.model.addresses import contains, is_loopback
from kproxy.model.plans import ServicePlan
from kproxy.preflight.classes import Class, Space, Tracer, classes
from kproxy.trace.comparisons import Dimension, Intervals, united
from kproxy.trace.outcome import Fate, Outcome, Probe, Verdict

SHOWN = 3
"""Addresses and ranges of ports that a sentence lists; more are counted."""
_FATES = {Fate.DELIVERED: "forwarded", Fate.REJECTED: "refused", Fate.DROPPED: "dropped"}


class Places:
    """What addresses and ports are: of which kind of frontend. plans: none where the cluster is not known."""

    def __init__(self, plans: Iterable[ServicePlan], addresses: frozenset[str], service_cidrs: Iterable[str]) -> None:
        self._addresses, self._cidrs = addresses, tuple(service_cidrs)
        self._frontends: dict[str, tuple[str, set[tuple[str, int]]]] = {}
        self._node_ports: set[tuple[str, int]] = set()
        for plan in plans:
            self._node_ports.add((plan.protocol, plan.node_port))
            ips = [(plan.load_balancer_ips, "load balancer IP"), (plan.external_ips, "external IP")]
            for group, kind in (*ips, ((plan.cluster_ip,), "cluster IP")):
                for ip in group:
                    known = self._frontends.get(ip, (kind, set()))[1]
                    self._frontends[ip] = kind, {*known, (plan.protocol, plan.port)}

    def is_own(self, ip: str) -> bool:
        """Whether it is one of the node's addresses, loopback included."""
        return is_loopback(ip) or ip in self._addresses

    def kind(self, probe: Probe) -> str:
        """What the packet is sent to; {} stands for the addresses."""
        ip, at = probe.destination, (str(probe.protocol), probe.port)
        if self.is_own(ip):
            where = "loopback" if is_loopback(ip) else "the node's own addresses"
            return f"node ports on {where}" if at in self._node_ports else f"other ports on {where}"
        if ip in self._frontends:
            kind, ports = self._frontends[ip]
            return f"{{}} {kind}" if at in ports else f"ping and other ports of {{}} {kind}"
        if any(contains(cidr, ip) for cidr in self._cidrs):
            return "addresses of the ServiceCIDRs that no Service has"
        return "{} other address" if self._frontends else "{} address"


@dataclass(slots=True)
class Difference:
    """All classes of one kind that change in one way. change: from what to what. example: one of them."""

    kind: str
    change: str
    example: Class
    count: int = 0
    from_node: bool = False
    arriving: bool = False
    addresses: set[str] = field(default_factory=set)
    whole_ranges: bool = False
    ports: list[tuple[int, int]] = field(default_factory=list)

    def add(self, found: Class) -> None:
        """Count one more class."""
        self.count += 1
        self.from_node |= not found.probe.interface
        self.arriving |= bool(found.probe.interface)
        destinations = found.box.values[Dimension.DESTINATION]
        if all(low == high for low, high in destinations):
            self.addresses.add(found.probe.destination)
        else:
            self.whole_ranges = True
        self.ports += found.box.values[Dimension.PORT][:SHOWN]
        if len(self.ports) > 1000:
            self.ports = list(united(self.ports))

    @property
    def summary(self) -> str:
        """One sentence."""
        sender = "" if self.from_node and self.arriving else ", from the node itself"
        sender = ", from pods and other machines" if self.arriving and not self.from_node else sender
        return f"{self._what()}{sender}: {self.change}"

    def _what(self) -> str:
        if "{}" in self.kind:
            return self._counted()
        ports = _ranges(united(self.ports)) if self.kind.startswith("node ports") else ""
        return self.kind.replace("node ports", f"node ports {ports}") if ports else self.kind

    def _counted(self) -> str:
        before, _, noun = self.kind.partition("{} ")
        plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
        if self.whole_ranges:
            return f"{before}{plural}"
        listed = ", ".join(sorted(self.addresses)) if len(self.addresses) <= SHOWN else ""
        if len(self.addresses) == 1:
            return f"{before}{noun} {listed}"
        return f"{before}{plural} {listed}" if listed else f"{before}the {len(self.addresses):,} {plural}"


class Comparison:
    """Collects what the comparison of two sets of rules finds, of both families.

    differences: in the order in which they were found. classes, differing: how many there are.
    """

    def __init__(self) -> None:
        self.classes = self.differing = 0
        self._known: dict[tuple[str, str], Difference] = {}

    @property
    def differences(self) -> list[Difference]:
        return list(self._known.values())

    def compare(self, space: Space, before: Tracer, after: Tracer, places: Places) -> Iterator[int]:
        """Compare all first packets of one family. Yields how many classes there were so far, so that progress can be
        shown. Raises what the tracers raise."""
        for each in classes(space, before, after):
            self.classes += 1
            if each.differs:
                self.differing += 1
                key = places.kind(each.probe), change(each, places)
                if key not in self._known:
                    self._known[key] = Difference(*key, each)
                self._known[key].add(each)
            yield self.classes


def change(found: Class, places: Places) -> str:
    """How a class is treated today and how then, in words."""
    before, after = _fates(found.before, found.probe, places), _fates(found.after, found.probe, places)
    if before != after:
        return f"{before} today, {after} then"
    old, new = _endpoints(found.before.chances), _endpoints(found.after.chances)
    if old.keys() != new.keys():
        return f"{before} to other endpoints then"
    if old != new:
        return f"{before} to the same endpoints with other probabilities then"
    masqueraded = [_masqueraded(outcome.chances) for outcome in (found.before, found.after)]
    if masqueraded == [0, 1]:
        return f"{before} with the client's address as source today, masqueraded then"
    if masqueraded == [1, 0]:
        return f"{before} and masqueraded today, with the client's address as source then"
    return f"{before}, but masqueraded in other cases then"


def _fates(outcome: Outcome, probe: Probe, places: Places) -> str:
    """What happens, the most probable first."""
    chances: dict[str, Fraction] = defaultdict(Fraction)
    for verdict, chance in outcome.chances.items():
        chances[_fate(verdict, probe, places)] += chance
    ordered = sorted(chances, key=lambda fate: (-chances[fate], fate))
    return " or ".join(f"{fate} ({chances[fate]})" if len(ordered) > 1 else fate for fate in ordered)


def _fate(verdict: Verdict, probe: Probe, places: Places) -> str:
    if verdict.fate is Fate.UNTOUCHED:
        return "left to the node's own programs" if places.is_own(probe.destination) else "routed on"
    return _FATES[verdict.fate]


def _endpoints(chances: Mapping[Verdict, Fraction]) -> dict[str, Fraction]:
    found: dict[str, Fraction] = defaultdict(Fraction)
    for verdict, chance in chances.items():
        found[verdict.endpoint] += chance
    return dict(found)


def _masqueraded(chances: Mapping[Verdict, Fraction]) -> Fraction:
    return sum((chance for verdict, chance in chances.items() if verdict.masqueraded), Fraction())


def _ranges(ports: Intervals) -> str:
    shown = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in islice(ports, SHOWN))
    return f"{shown} and {len(ports) - SHOWN} more ranges" if len(ports) > SHOWN else shown
