"""What one family's table is believed to hold: which plans, who needs what of it, and what was refused. Pure.

Leaves out: what the kernel says of it (apply).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from kproxy.conntrack.stale_flows import TRACKED
from kproxy.model.plans import Frontend, PortKey, ServicePlan
from kproxy.modes.nftables import names
from kproxy.modes.nftables.delta import Delta
from kproxy.modes.nftables.fragments import Fragment, Settings
from kproxy.modes.nftables.ownership import Ownership
from kproxy.modes.nftables.render import render_base, render_port
from kproxy.modes.nftables.wanted_places import frontend_of
from kproxy.netfilter.objects import Set
from kproxy.netfilter.operations import ELEMENTS_AT_ONCE

NOTHING = Fragment()


class TableState:
    """One state of a table, which changes with what is written.

    plans: what was asked for. rejected: the ports that the kernel refused, with one line of why; they hold nothing.
    size: how many elements there are. rules: how many rules each chain has.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.base = render_base(settings)
        self.sets: dict[str, Set] = {found.name: found for found in self.base.sets}
        self.plans: dict[PortKey, ServicePlan] = {}
        self.rejected: dict[PortKey, str] = {}
        self.start_over()

    @property
    def total(self) -> int:
        """Elements and rules."""
        return self.size + self.rules.total()

    def start_over(self) -> None:
        """Nobody needs anything, and nothing is written."""
        self.claims = Ownership(self._settings, self.fragment)
        self.size = 0
        self.rules: Counter[str] = Counter()

    def fragment(self, key: PortKey) -> Fragment:
        """What the port needs of the table as it is believed to be."""
        plan = self.plans.get(key)
        return NOTHING if plan is None or key in self.rejected else render_port(plan, self._settings)

    def fragments(self) -> Iterator[tuple[PortKey, Fragment]]:
        """All ports' by name."""
        return ((key, self.fragment(key)) for key in sorted(self.plans))

    def differing(
        self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None
    ) -> Collection[PortKey]:
        """The ports of TOUCHED whose plans differ; of all ports, and those that were refused, for None."""
        if touched is not None:
            return {key for key in touched if self.plans.get(key) != wanted.get(key)}
        held = self.plans
        found = {key for key, plan in wanted.items() if (one := held.get(key)) is not plan and one != plan}
        return found | self.rejected.keys() | {key for key in held if key not in wanted}

    def take(
        self, wanted: Mapping[PortKey, ServicePlan], keys: Collection[PortKey]
    ) -> tuple[dict[PortKey, Fragment], dict[PortKey, Fragment]]:
        """Take in the plans of KEYS, refused ones once more; what they needed and need."""
        old = {key: self.fragment(key) for key in keys}
        for key in keys:
            self.rejected.pop(key, None)
            if key in wanted:
                self.plans[key] = wanted[key]
            else:
                self.plans.pop(key, None)
        return old, {key: self.fragment(key) for key in keys}

    def restore(
        self,
        former: Mapping[PortKey, tuple[ServicePlan | None, str | None]],
        old: Mapping[PortKey, Fragment],
        new: Mapping[PortKey, Fragment],
    ) -> None:
        """Take back a `take` and the claims' change. former: the plans and rejections before it."""
        self.claims.change(new, old)
        for key, (plan, why) in former.items():
            self.plans.pop(key, None)
            self.rejected.pop(key, None)
            if plan is not None:
                self.plans[key] = plan
            if why is not None:
                self.rejected[key] = why

    def sizes(self) -> dict[str, int]:
        """About how many elements the large sets should hold, so that those too large are not listed."""
        ends = sum(len(plan.reachable) for plan in self.plans.values())
        large = {names.ENDPOINTS: ends, names.NODE_PORT_ENDPOINTS: 0, names.HAIRPINS: ends}
        return {**large, names.CLUSTER_IPS: len(self.plans)}

    def portions(self) -> Iterator[dict[PortKey, Fragment]]:
        """All ports by name, so many at a time as fit into one transaction."""
        some: dict[PortKey, Fragment] = {}
        room = ELEMENTS_AT_ONCE
        for key, fragment in self.fragments():
            size = fragment.size
            if some and size > room:
                yield some
                some, room = {}, ELEMENTS_AT_ONCE
            some[key] = fragment
            room -= size
        yield some

    def abandoned(self, delta: Delta) -> list[Frontend]:
        """Frontends that the kernel has and no port any more, but for those whose clients notice by themselves."""
        found = []
        for name in (names.SERVICES, names.NODE_PORTS):
            for element in delta.surplus.get(name, ()):
                frontend = frontend_of((name, element.key))
                if frontend is not None and frontend.protocol in TRACKED and self.claims.first(frontend) is None:
                    found.append(frontend)
        return found

    def count(self, delta: Delta) -> None:
        """The table is now what it was before, and DELTA."""
        missing, surplus = (sum(map(len, side.values())) for side in (delta.missing, delta.surplus))
        self.size += missing - surplus
        for chain in (*delta.chains, *delta.changed):
            self.rules[chain.name] = len(chain.rules)
        for name in delta.former_chains:
            self.rules.pop(name, None)
