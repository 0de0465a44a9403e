"""Traces a probe through several sets of rules that a node holds side by side: those of both backends of iptables, and
nftables mode's table. Pure.

Decides: in which order their chains are passed, by priority. Leaves out: the rules themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kproxy.model.plans import Family
from kproxy.trace.comparisons import Observer, unobserved
from kproxy.trace.hooks import ChainAtHook, Hook, HookTracer, Path
from kproxy.trace.outcome import Affinity, Fate, Host, Outcome, Probe, check_family


class Layer(Protocol):
    """A set of rules: IptablesTracer, NftablesTracer."""

    def at_hooks(
        self, end: Callable[[Path, Fate], None], affinity: Affinity, observe: Observer
    ) -> dict[Hook, list[ChainAtHook]]: ...


class LayeredTracer:
    """The rules of one family on one host. layers: of equal priorities, the first one's chains are passed first."""

    def __init__(self, family: Family, host: Host, *layers: Layer) -> None:
        self.family, self._host, self._layers = family, host, layers

    def trace(self, probe: Probe, affinity: Affinity | None = None, observe: Observer = unobserved) -> Outcome:
        """As the tracers of the layers do."""
        check_family(probe, self.family)
        return _Trace(self._host, self._layers, affinity or {}, observe).run(probe)


class _Trace(HookTracer):
    """The trace of one probe."""

    def __init__(self, host: Host, layers: tuple[Layer, ...], affinity: Affinity, observe: Observer) -> None:
        super().__init__(host, observe)
        at_hooks = [layer.at_hooks(self._end, affinity, observe) for layer in layers]
        self._chains = {
            hook: sorted((c for chains in at_hooks for c in chains[hook]), key=lambda chain: chain.priority)
            for hook in Hook
        }

    def _hook(self, hook: Hook, path: Path, nat: bool) -> list[Path]:
        left = [path]
        for chain in self._chains[hook]:
            left = [passed for each in left for passed in chain.passed(hook, each, nat)]
        return left
