"""Where a proxy mode differs from the table of scenarios: which probes, with which result instead, and why.

docs/modes.md explains each reason in the same words. Everything that is not listed here holds in every mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from kproxy.lab.probes import Nothing
from kproxy.lab.scenarios import Probe, Scenario, Seen, Via


class Difference(NamedTuple):
    """One way in which a mode differs. reason: as in docs/modes.md. concerns: whether a probe differs. instead: the
    probe with the result in this mode, None if that is undefined (the probe is left out)."""

    reason: str
    concerns: Callable[[Scenario, Probe], bool]
    instead: Callable[[Scenario, Probe], Probe | None]


def _source_rewritten(scenario: Scenario, probe: Probe) -> Probe:
    return replace(probe, seen=Seen.REWRITTEN)


def _answered_by_a_pod(scenario: Scenario, probe: Probe) -> bool:
    return isinstance(probe.expect, tuple) and probe.seen is Seen.KEPT and "balancer" not in probe.expect


def _on_localhost(scenario: Scenario, probe: Probe) -> bool:
    return probe.via is Via.LOCALHOST


def _refused(scenario: Scenario, probe: Probe) -> Probe:
    return replace(probe, expect=Nothing.REFUSED)


def _from_within_to_policy_local(scenario: Scenario, probe: Probe) -> bool:
    """Whether pods or the node connect through an outside address with external policy Local."""
    within = probe.source in ("caller", "node1") and probe.via is not Via.CLUSTER_IP
    here = isinstance(probe.expect, tuple) and "a" in probe.expect
    return within and here and scenario.spec.get("externalTrafficPolicy") == "Local"


def _only_here(scenario: Scenario, probe: Probe) -> Probe:
    # The node connects to a load balancer IP that is its own.
    own = probe.source == "node1" and probe.via is Via.BALANCER
    return replace(probe, expect=("a",), seen=Seen.EITHER if own else probe.seen)


def _nobody_here(scenario: Scenario, probe: Probe) -> bool:
    internal = scenario.spec.get("internalTrafficPolicy") == "Local" and probe.via is Via.CLUSTER_IP
    return internal and probe.expect is Nothing.TIMED_OUT


def _anybody(scenario: Scenario, probe: Probe) -> Probe:
    return replace(probe, expect=("far",), seen=Seen.KEPT if probe.source == "caller" else Seen.REWRITTEN)


DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    "ipvs": (
        Difference("Node ports do not answer on 127.0.0.1", _on_localhost, _refused),
        Difference("One address has one list of endpoints", _from_within_to_policy_local, _only_here),
        Difference("Policy Local without an endpoint here falls back to all endpoints", _nobody_here, _anybody),
    ),
    "nftables": (Difference("Node ports do not answer on 127.0.0.1", _on_localhost, _refused),),
    "userspace": (Difference("Endpoints see the node's address", _answered_by_a_pod, _source_rewritten),),
}


def expected(mode: str, scenario: Scenario, probe: Probe) -> Probe | None:
    """PROBE with its expected result in `mode`; None if it is undefined there."""
    for difference in DIFFERENCES.get(mode, ()):
        if difference.concerns(scenario, probe):
            changed = difference.instead(scenario, probe)
            if changed is None:
                return None
            probe = changed
    return probe
