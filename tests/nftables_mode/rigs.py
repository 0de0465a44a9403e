"""A dataplane on nf_tables in memory, and what the table has to hold for some plans."""

from __future__ import annotations

from collections.abc import Iterable

from kproxy.model.plans import PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.nftables.apply import READ_AT_LEAST, NftablesDataplane
from kproxy.modes.nftables.compare import Comparison
from kproxy.modes.nftables.delta import Delta
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.nftables.render import Layout, lay_out, render_base, render_port
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.kernel import Listing
from kproxy.netfilter.objects import Chain, Element, Set
from kproxy.netfilter.table import Table
from tests.fakes.nftables import FakeNftables
from tests.nftables.plans import settings

Held = tuple[dict[str, Set], dict[str, Chain], dict[str, frozenset[Element]]]


def comparison(listing: Listing, layout: Layout) -> Delta:
    """What differs between a listed table and `layout`."""
    found = Comparison(listing, layout.family)
    found.want(layout.elements, layout.sets)
    return found.delta(layout.sets, layout.chains)


class Rig:
    """One dataplane, its kernel, and the plans that were last asked for."""

    def __init__(
        self,
        kernel: FakeNftables | None = None,
        chosen: Settings | None = None,
        own: OwnTransactions | None = None,
        listening: bool = True,
    ) -> None:
        """own: shared with the dataplane of the other family. listening: already before the first sync."""
        self.kernel = kernel or FakeNftables()
        self.settings = chosen or settings()
        self.table = Table(
            self.settings.family, TABLE, self.kernel, own or OwnTransactions(), pause=lambda seconds: None
        )
        if listening:
            self.table.listen()
        self.now = 0.0
        self.dataplane = NftablesDataplane(self.settings, self.table, clock=lambda: self.now)
        self.plans: dict[PortKey, ServicePlan] = {}

    def want(self, *plans: ServicePlan, gone: Iterable[ServicePlan] = ()) -> Outcome:
        """Some plans come, change or go."""
        for plan in gone:
            self.plans.pop(plan.key, None)
        self.plans.update((plan.key, plan) for plan in plans)
        return self.dataplane.apply(self.plans, [plan.key for plan in (*plans, *gone)])

    def check(self) -> Outcome:
        """A full check, which relies on notifications."""
        return self.dataplane.apply(self.plans, None)

    def read(self) -> Outcome:
        """A full check that reads the table."""
        self.now += READ_AT_LEAST
        return self.dataplane.apply(self.plans, None)

    def held(self) -> Held:
        """What the kernel holds."""
        family = self.dataplane.family
        sets = self.kernel.sets(family, TABLE)
        elements = {name: frozenset(self.kernel.elements(family, TABLE, name)) for name in sets}
        return sets, self.kernel.chains(family, TABLE), {name: found for name, found in elements.items() if found}

    def wanted(self, without: Iterable[PortKey] = ()) -> Held:
        """What it should hold, were it not for those ports that it refused."""
        left_out = set(without)
        plans = [plan for key, plan in self.plans.items() if key not in left_out]
        layout = lay_out(render_base(self.settings), [(p.key, render_port(p, self.settings)) for p in plans])
        elements = {name: frozenset(found) for name, found in layout.elements.items() if found}
        return layout.sets, layout.chains, elements
