"""Which portals userspace mode should have, given the proxy ports that its rules redirect to, and listeners that are
missing. Pure.

The forwarder chooses proxy ports when it opens listeners, so they are taken from the rules themselves.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from itertools import permutations

from kproxy.model.plans import PortKey, Protocol, ServicePlan
from kproxy.modes.differences import Difference, Kind, service_of
from kproxy.modes.userspace.listeners import Reach
from kproxy.modes.userspace.render import (
    NODEPORT_CONTAINER,
    NODEPORT_HOST,
    PORTALS_CONTAINER,
    PORTALS_HOST,
    PROXY_PORTS,
    Portal,
    Settings,
    listeners,
    render_port,
)
from kproxy.modes.xtables.canonical import canonical
from kproxy.modes.xtables.names import PORT_CHAINS
from kproxy.modes.xtables.saved import Saved

UNKNOWN = 1
"""The proxy port of a portal whose port no rule tells."""
_PORT = re.compile(r"-p (tcp|udp) .*(?:--to-ports |--to-destination \S+:)(\d{1,5})$")
_PROXY_PORT = re.compile(r'-p (tcp|udp) .*proxy port" .*--dport (\d{1,5}) -j REJECT')
_UNKNOWN = re.compile(rf"(--to-ports |--to-destination \S+:){UNKNOWN}$")

Ports = Mapping[tuple[str, str], list[int]]


def portals(saved: Saved, plans: Mapping[PortKey, ServicePlan], settings: Settings) -> dict[PortKey, Portal]:
    """The portals of PLANS, with the proxy ports that the rules in SAVED come nearest to."""
    ports, held = _redirected(saved), _held(saved)
    return {
        key: _nearest(plan, ports.get((str(key), key.protocol.lower()), []), held, settings)
        for key, plan in plans.items()
    }


def without_unknown(difference: Difference) -> Difference:
    """DIFFERENCE without the number of a proxy port that is not known."""
    return difference._replace(what=_UNKNOWN.sub(r"\1(a proxy port)", difference.what))


def unheard(found: Mapping[PortKey, Portal], listening: Collection[tuple[Protocol, int]]) -> Iterator[Difference]:
    """The listeners that do not answer. listening: what is listened on in this network namespace."""
    for key, portal in found.items():
        for reach in listeners(portal.plan):
            number = portal.port(reach)
            if number == UNKNOWN:
                yield Difference(
                    str(key), Kind.MISSING, f"listener for policy {reach.value}: no rule names its proxy port"
                )
            elif (key.protocol, number) not in listening:
                what = (
                    f"listener for policy {reach.value}: nobody listens on proxy port {number}/{key.protocol.lower()}"
                )
                yield Difference(str(key), Kind.MISSING, what)


def proxy_ports(portal: Portal) -> tuple[int, ...]:
    """The proxy ports of a portal that are known."""
    return tuple(number for number in (portal.cluster, portal.local) if number > UNKNOWN)


def _rules(saved: Saved) -> Iterator[str]:
    for chain in (PORTALS_CONTAINER, PORTALS_HOST, NODEPORT_CONTAINER, NODEPORT_HOST):
        yield from saved.rules("nat", chain)
    for chain in saved.chains("nat"):
        if chain.startswith(PORT_CHAINS):
            yield from saved.rules("nat", chain)
    yield from saved.rules("filter", PROXY_PORTS)


def _redirected(saved: Saved) -> Ports:
    """The proxy ports that rules name, the most frequent first, by Service port and protocol."""
    found: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for rule in _rules(saved):
        if said := _PORT.search(rule) or _PROXY_PORT.search(rule):
            found[service_of([rule]), said[1]][int(said[2])] += 1
    return {at: [number for number, _ in counts.most_common()] for at, counts in found.items()}


def _held(saved: Saved) -> frozenset[object]:
    return frozenset(canonical(rule) for rule in _rules(saved))


def _nearest(plan: ServicePlan, ports: list[int], held: Collection[object], settings: Settings) -> Portal:
    reaches = [*listeners(plan)]
    choices = [*permutations([*ports[:3], *([UNKNOWN] * len(reaches))], len(reaches))]
    made = [_portal(plan, dict(zip(reaches, numbers, strict=True))) for numbers in dict.fromkeys(choices)]
    if len(made) == 1:
        return made[0]
    return max(made, key=lambda portal: _matching(portal, held, settings))


def _portal(plan: ServicePlan, numbers: Mapping[Reach, int]) -> Portal:
    return Portal(plan, numbers.get(Reach.CLUSTER, 0), numbers.get(Reach.LOCAL, 0))


def _matching(portal: Portal, held: Collection[object], settings: Settings) -> int:
    fragment = render_port(portal, settings)
    rules = [rule.rule for rule in fragment.shared] + [rule for chain in fragment.chains for rule in chain.rules]
    return sum(canonical(rule) in held for rule in rules)
