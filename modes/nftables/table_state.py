"""What one family's table is believed to hold: which plans, who needs what of it, and what was refused. Pure.

Leaves out: what the kernel says about it (apply).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from kproxy.conntrack.stale_flows import TRACKED
from kproxy.errors import one_line
from kproxy.model.plans import Family, Frontend, PortKey, ServicePlan
from kproxy.modes.nftables import names
from kproxy.modes.nftables.compare import Comparison
from kproxy.modes.nftables.delta import Delta, elements
from kproxy.modes.nftables.fragments import Fragment, Settings
from kproxy.modes.nftables.ownership import Ownership, frontend_of
from kproxy.modes.nftables.render import render_base, render_port
from kproxy.netfilter.kernel import Listing
from kproxy.netfilter.objects import Chain, Set
from kproxy.netfilter.operations import ELEMENTS_AT_ONCE

NOTHING = Fragment()


class Unrenderable(Exception):
    """Rendering KEY raised `error`, an unexpected exception."""

    def __init__(self, key: PortKey, error: Exception) -> None:
        super().__init__(f"{key}: {error!r}")
        self.key, self.error = key, error


class TableState:
    """What a table is believed to hold, updated with every write.

    plans: what was asked for. rejected: the ports that hold nothing because the kernel refused them or they could not
    be rendered, with one line of why. faults: the latter, with what rendering raised.
    size: how many elements there are. rules: how many rules each chain has.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.base = render_base(settings)
        self.sets: dict[str, Set] = {found.name: found for found in self.base.sets}
        self.plans: dict[PortKey, ServicePlan] = {}
        self.rejected: dict[PortKey, str] = {}
        self.faults: dict[PortKey, Exception] = {}
        self._left_out: set[PortKey] = set()  # ports that are not rendered again during this apply
        self.start_over()

    @property
    def family(self) -> Family:
        return self._settings.family

    @property
    def total(self) -> int:
        """The number of elements and rules."""
        return self.size + self.rules.total()

    def start_over(self) -> None:
        """Begin with no needs and an empty table."""
        self.ownership = Ownership(self._settings, self.fragment)
        self.size = 0
        self.rules: Counter[str] = Counter()

    def begin(self) -> None:
        """Note that an apply begins: ports that could not be rendered may be tried again."""
        self._left_out.clear()
        self.faults = {key: error for key, error in self.faults.items() if key in self.rejected}

    # ---- what ports need

    def fragment(self, key: PortKey) -> Fragment:
        """What the port needs of the table as it is believed to be. Raises Unrenderable."""
        plan = self.plans.get(key)
        if plan is None or key in self.rejected:
            return NOTHING
        try:
            return render_port(plan, self._settings)
        except Exception as error:
            raise Unrenderable(key, error) from error

    def reject_fault(self, fault: Unrenderable) -> None:
        """Reject a port that cannot be rendered: it counts as empty, and is not rendered again during this apply."""
        error = fault.error
        self._left_out.add(fault.key)
        self.faults[fault.key] = error
        self.rejected[fault.key] = one_line(f"unexpected {type(error).__name__}: {error}")

    def _fragment_or_fault(self, key: PortKey) -> Fragment:
        """What a port needs that holds nothing yet; NOTHING, and a fault, when it cannot be rendered."""
        try:
            return self.fragment(key)
        except Unrenderable as fault:
            self.reject_fault(fault)
            return NOTHING

    def fragments(self) -> Iterator[tuple[PortKey, Fragment]]:
        """What every port needs, by name. Raises Unrenderable."""
        return ((key, self.fragment(key)) for key in sorted(self.plans))

    def portions(self) -> Iterator[dict[PortKey, Fragment]]:
        """All ports by name, as many at a time as fit into one transaction. Records ports that cannot be rendered."""
        some: dict[PortKey, Fragment] = {}
        room = ELEMENTS_AT_ONCE
        for key in sorted(self.plans):
            fragment = self._fragment_or_fault(key)
            size = fragment.size
            if some and size > room:
                yield some
                some, room = {}, ELEMENTS_AT_ONCE
            some[key] = fragment
            room -= size
        yield some

    # ---- changes of plans

    def differing(
        self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None
    ) -> Collection[PortKey]:
        """The ports of `touched` whose plans differ or that could not be rendered; for None those of all ports, and the
        rejected ones."""
        if touched is not None:
            return {key for key in touched if self.plans.get(key) != wanted.get(key) or key in self.faults}
        held = self.plans
        found = {key for key, plan in wanted.items() if (one := held.get(key)) is not plan and one != plan}
        return found | self.rejected.keys() | {key for key in held if key not in wanted}

    def take(
        self, wanted: Mapping[PortKey, ServicePlan], keys: Collection[PortKey]
    ) -> tuple[dict[PortKey, Fragment], dict[PortKey, Fragment]]:
        """Takes over the plans of `keys`, rejected ones once more. Returns what these ports needed and what they need.

        Raises Unrenderable for a port that held something.
        """
        old = {key: self.fragment(key) for key in keys}
        for key in keys:
            if key not in self._left_out or key not in wanted:
                self._unreject(key)
            if key in wanted:
                self.plans[key] = wanted[key]
            else:
                self.plans.pop(key, None)
        return old, {key: self._fragment_or_fault(key) for key in keys}

    def restore(
        self,
        former: Mapping[PortKey, tuple[ServicePlan | None, str | None]],
        old: Mapping[PortKey, Fragment],
        new: Mapping[PortKey, Fragment],
    ) -> None:
        """Undoes a `take` and the change of ownership. former: the plans and rejections before it."""
        self.ownership.change(new, old)
        for key, (plan, why) in former.items():
            self.plans.pop(key, None)
            self.rejected.pop(key, None)
            if plan is not None:
                self.plans[key] = plan
            if why is not None:
                self.rejected[key] = why

    def replace(self, wanted: Mapping[PortKey, ServicePlan]) -> None:
        """Takes over all plans, rejected ones once more."""
        self.plans = dict(wanted)
        for key in [key for key in self.rejected if key not in self._left_out or key not in wanted]:
            self._unreject(key)

    def _unreject(self, key: PortKey) -> None:
        self.rejected.pop(key, None)
        if key not in self._left_out:
            self.faults.pop(key, None)

    # ---- what the table holds

    def sizes(self) -> dict[str, int]:
        """About how many elements the large sets should hold, so that sets too large are not listed."""
        ends = sum(len(plan.reachable) for plan in self.plans.values())
        large = {names.ENDPOINTS: ends, names.NODE_PORT_ENDPOINTS: 0, names.HAIRPINS: ends}
        return {**large, names.CLUSTER_IPS: len(self.plans)}

    def compare(self, listing: Listing, known: bool) -> tuple[Delta, Mapping[str, Chain]]:
        """Compares the table as listed with what all ports need, which it admits; returns also all wanted chains.

        known: sets too large to be listed are as they should be. Raises OtherForm.
        """
        self.start_over()
        comparison = Comparison(listing, self._settings.family, sure=known)
        sets, chains = dict(self.sets), {chain.name: chain for chain in self.base.chains}
        for element in self.base.elements:
            comparison.want({element.set: [element]}, sets)
        for ports in self.portions():
            needs = self.ownership.admit(ports)
            sets.update((found.name, found) for found in needs.sets)
            chains.update((chain.name, chain) for chain in needs.chains)
            needed = elements(needs, self.sets)
            comparison.want(needed, sets)
            self.size += sum(map(len, needed.values()))
        return comparison.delta(sets, chains), chains

    def abandoned(self, delta: Delta) -> list[Frontend]:
        """Frontends in the kernel that no port has any more, except those whose clients notice by themselves."""
        found = []
        for name in (names.SERVICES, names.NODE_PORTS):
            for element in delta.surplus.get(name, ()):
                frontend = frontend_of((name, element.key))
                if frontend is not None and frontend.protocol in TRACKED and self.ownership.first(frontend) is None:
                    found.append(frontend)
        return found

    def count(self, delta: Delta) -> None:
        """Records that `delta` was written."""
        missing, surplus = (sum(map(len, side.values())) for side in (delta.missing, delta.surplus))
        self.size += missing - surplus
        for chain in (*delta.chains, *delta.changed):
            self.rules[chain.name] = len(chain.rules)
        for name in delta.former_chains:
            self.rules.pop(name, None)
