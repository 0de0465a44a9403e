"""iptables mode's Dataplane: the rules of the plans, written by a ChainWriter."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from kproxy.kernel.iptables import Tables
from kproxy.model.plans import Family, PortKey, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.iptables.render import Settings, render_base, render_port
from kproxy.modes.xtables.chain_writer import ChainWriter, Drift
from kproxy.modes.xtables.fragments import Fragment
from kproxy.modes.xtables.names import ENDPOINT_PREFIX


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
        """Take new settings. When they differ the next apply compares everything with the kernel."""
        if settings != self._settings:
            self._settings = settings
            self._chains.rebase(render_base(settings), _renderer(settings))

    def apply(self, wanted: Mapping[PortKey, ServicePlan], touched: Collection[PortKey] | None) -> Outcome:
        """As Dataplane.apply."""
        return self._chains.apply(wanted, touched)

    def drifted(self) -> bool:
        """As Dataplane.drifted."""
        return self._chains.drifted()

    def housekeeping(self) -> float | None:
        """As Dataplane.tend: rules need no care between syncs."""
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """As Dataplane.names: the port's own chains; each leads on to its endpoints' KUBE-SEP-… chains."""
        chains = (chain.name for chain in render_port(plan, self._settings).chains)
        return tuple(name for name in chains if not name.startswith(ENDPOINT_PREFIX))

    def cleanup(self) -> None:
        """Remove all that kube-proxy or kproxy ever wrote into this backend's tables, in whatever mode."""
        self._chains.cleanup()


def _renderer(settings: Settings) -> Callable[[ServicePlan], Fragment]:
    return partial(render_port, settings=settings)
