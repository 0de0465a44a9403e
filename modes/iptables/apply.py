"""iptables mode's Dataplane: a ChainWriter with the rules of each Service port's plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from kproxy.kernel.iptables import Tables
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.iptables.render import Settings, render_base, render_port
from kproxy.modes.xtables.chain_writer import ChainWriter, Drift
from kproxy.modes.xtables.names import ENDPOINT_PREFIX
from kproxy.modes.xtables.rules import Fragment


class IptablesDataplane:
    """Programs one family through iptables-restore."""

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        drift: Drift | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, monotonic."""
        self._settings = settings
        base, render = render_base(settings), _renderer(settings)
        self._chains: ChainWriter[ServicePlan] = ChainWriter(settings.family, base, render, tables, drift, clock)

    @property
    def family(self) -> Family:
        return self._settings.family

    def configure(self, settings: Settings) -> None:
        """Replace the settings. When they differ, the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings = settings
            self._chains.rebase(render_base(settings), _renderer(settings))

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        return self._chains.apply(wanted, touched)

    def drifted(self) -> bool:
        return self._chains.drifted()

    def housekeeping(self) -> float | None:
        """Do nothing: iptables mode has no work between syncs."""
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """The port's own chains, without the KUBE-SEP-… chains of its endpoints that they jump to."""
        chains = (chain.name for chain in render_port(plan, self._settings).chains)
        return tuple(name for name in chains if not name.startswith(ENDPOINT_PREFIX))


def _renderer(settings: Settings) -> Callable[[ServicePlan], Fragment]:
    return partial(render_port, settings=settings)
