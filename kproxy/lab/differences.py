"""Where a proxy mode cannot do what the table of scenarios asks for, what a client meets instead, and why.

docs/modes.md explains each reason under the same words. Whatever is not listed here holds in every mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from kproxy.lab.scenarios import Probe, Scenario, Seen

__all__ = ["DIFFERENCES", "Difference", "expected"]


class Difference(NamedTuple):
    """reason: the words that docs/modes.md has. concerns: which probes differ. instead: what is met, None when it
    cannot be told (the probe is left out)."""

    reason: str
    concerns: Callable[[Scenario, Probe], bool]
    instead: Callable[[Scenario, Probe], Probe | None]


def _source_rewritten(scenario: Scenario, probe: Probe) -> Probe:
    return replace(probe, seen=Seen.REWRITTEN)


def _answered_by_a_pod(scenario: Scenario, probe: Probe) -> bool:
    return isinstance(probe.expect, tuple) and probe.seen is Seen.KEPT and "balancer" not in probe.expect


DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    "userspace": (Difference("Endpoints see the node as their client", _answered_by_a_pod, _source_rewritten),),
}


def expected(mode: str, scenario: Scenario, probe: Probe) -> Probe | None:
    """PROBE as it must turn out in MODE; None when it says nothing there."""
    for difference in DIFFERENCES.get(mode, ()):
        if difference.concerns(scenario, probe):
            changed = difference.instead(scenario, probe)
            if changed is None:
                return None
            probe = changed
    return probe
