"""A proxy on trial: a cluster with `kproxy run` at work on node1, live scenarios, and a verdict on each probe."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kproxy.lab import probes
from kproxy.lab.clusters import CLIENT_OTHER, Cluster, build
from kproxy.lab.differences import expected
from kproxy.lab.outcomes import Answered, Nothing, Outcome
from kproxy.lab.proxies import Manifests, Proxy, choose_backend
from kproxy.lab.scenarios import PODS, PORTS, SCENARIOS, Port, Probe, Scenario, Seen, Via, node_objects
from kproxy.model.plans import Family, Protocol

ENOUGH = 60  # attempts after which each of three endpoints has answered, but for one run in 10**10
FEW = 5
PATIENCE = 5.0  # seconds for an answer that must come
IMPATIENCE = 0.25  # seconds for one that must not
CROWD = 16
OUT_OF_STEP = 0.02


@dataclass(slots=True)
class Trial:
    """What is under way."""

    cluster: Cluster
    proxy: Proxy
    manifests: Manifests
    backend: str
    mode: str = "iptables"

    def ask(self, probe: Probe, scenario: Scenario, family: Family, port: Port, timeout: float = PATIENCE) -> Outcome:
        """Make the probe once; TIMEOUT is in seconds."""
        name, own = probe.source, ""
        if name == "client-other":
            name, own = "client", CLIENT_OTHER[family]
        function = probes.udp if port.protocol is Protocol.UDP else probes.tcp
        target = scenario.address(probe.via, family), scenario.port(probe.via, port)
        return self.cluster.spaces[name].call(function, *target, timeout, own)

    def serves(self, scenario: Scenario, timeout: float = 0.5) -> bool:
        """Whether every port of the Service answers a pod, in both families."""
        probe = Probe("caller", Via.CLUSTER_IP, ())
        return all(
            isinstance(self.ask(probe, scenario, family, port, timeout), Answered)
            for family in Family
            for port in scenario.ports
        )

    def faults(self, scenario: Scenario, family: Family) -> Mapping[str, str]:
        """Make all probes of the scenario at once; which of them did not meet what they must, and how.

        At once, because the kernel notices some refusals only when it sends its first segment again, a second later.
        """
        with ThreadPoolExecutor(CROWD) as crowd:
            verdicts = {
                f"{probe.source} by {probe.via.value}, {port.name}": crowd.submit(
                    self.fault, probe, scenario, family, port
                )
                for asked in scenario.probes
                if (probe := expected(self.mode, scenario, asked))
                for port in scenario.ports
                if family in probe.families
            }
        return {name: verdict.result() for name, verdict in verdicts.items() if verdict.result()}

    def fault(self, probe: Probe, scenario: Scenario, family: Family, port: Port) -> str:
        """Make the probe as often as it takes to be sure of the outcome; what is wrong with it, "" when nothing is."""
        if isinstance(probe.expect, Nothing):
            timeout = IMPATIENCE if probe.expect is Nothing.TIMED_OUT else PATIENCE
            outcome = self.ask(probe, scenario, family, port, timeout)
            return "" if outcome is probe.expect else f"{outcome}, not {probe.expect}"
        answered: set[str] = set()
        for attempt in range(ENOUGH):
            outcome = self.ask(probe, scenario, family, port)
            if not isinstance(outcome, Answered) or outcome.pod not in probe.expect:
                return f"{outcome}, not one of {probe.expect}"
            if wrong := self._wrong(probe, outcome, family, port):
                return wrong
            answered.add(outcome.pod)
            if attempt >= FEW and (probe.sticky or len(answered) == len(probe.expect)):
                break
            # Clients in step with each other would each get the same endpoint every time where turns are taken.
            time.sleep(random.uniform(0, OUT_OF_STEP))
        if probe.sticky:
            return "" if len(answered) == 1 else f"{sorted(answered)} answered one client"
        return "" if answered == set(probe.expect) else f"of {probe.expect} only {sorted(answered)} ever answered"

    def _wrong(self, probe: Probe, answer: Answered, family: Family, port: Port) -> str:
        if answer.pod != "balancer" and answer.reached_port != port.target:
            return f"{answer}, not at port {port.target}"
        own = frozenset({CLIENT_OTHER[family]})
        if probe.source != "client-other":
            own = self.cluster.addresses_of(probe.source, family)
        allowed = {Seen.KEPT: own, Seen.REWRITTEN: self.cluster.addresses_of("node1", family)}.get(probe.seen)
        return "" if allowed is None or answer.source in allowed else f"{answer}, its source not {probe.seen.value}"


@contextlib.contextmanager
def trial(
    folder: Path,
    backend: str,
    arguments: Sequence[str] = (),
    scenarios: Sequence[Scenario] = SCENARIOS,
    start: bool = True,
    mode: str = "iptables",
) -> Iterator[Trial]:
    """A trial with these SCENARIOS, served when the block begins and removed when it ends.

    folder: an empty one, for manifests and log. backend: "nft" or "legacy", as the node's kubelet would show it.
    start: whether the proxy runs already. mode: the proxy mode. Raises KernelError when it does not come up.
    """
    manifests = Manifests(folder)
    manifests.put("nodes", node_objects())
    for scenario in scenarios:
        manifests.put(scenario.name, scenario.objects())
    with build(PODS, PORTS) as cluster:
        node = cluster.spaces["node1"]
        choose_backend(node, backend)
        proxy = Proxy(node, manifests.folder, folder / "log", ("--proxy-mode", mode, *arguments))
        running = Trial(cluster, proxy, manifests, backend, mode)
        try:
            if start:
                proxy.start()
                # Services may answer before all is written: a first packet would then escape masquerading.
                proxy.await_ready(lambda: proxy.synced() == len(Family) and running.serves(scenarios[-1]))
            yield running
        finally:
            if proxy.running():
                proxy.stop()
