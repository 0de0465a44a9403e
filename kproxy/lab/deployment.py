"""A proxy under test: a cluster with `kproxy run` on node1 serving scenarios, and the checks of their probes."""

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
from kproxy.lab.probes import Answered, Nothing, Outcome
from kproxy.lab.proxies import Manifests, Proxy, choose_backend
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, PORTS, Port, Probe, Scenario, Seen, Via, node_objects
from kproxy.model.plans import Family, Protocol

MAX_ATTEMPTS = 60  # after which each of three endpoints has answered, except in one run of 10**10
MIN_ATTEMPTS = 5
TIMEOUT = 5.0  # seconds for an answer that must come
NO_ANSWER_TIMEOUT = 0.25  # seconds for one that must not
PROBES_AT_ONCE = 16
JITTER = 0.02  # seconds


@dataclass(slots=True)
class Deployment:
    """A cluster, the proxy on its node1, and the manifests that the proxy follows."""

    cluster: Cluster
    proxy: Proxy
    manifests: Manifests
    backend: str
    mode: str = "iptables"

    def ask(self, probe: Probe, scenario: Scenario, family: Family, port: Port, timeout: float = TIMEOUT) -> Outcome:
        """Make the probe once. timeout: seconds."""
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
        """Make all probes of the scenario at once. Returns those with an unexpected result, and that result.

        At once, because the kernel notices some refusals only when it retransmits, a second later.
        """
        with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
            verdicts = {
                f"{probe.source} by {probe.via.value}, {port.name}": pool.submit(
                    self.fault, probe, scenario, family, port
                )
                for asked in scenario.probes
                if (probe := expected(self.mode, scenario, asked))
                for port in scenario.ports
                if family in probe.families
            }
        return {name: verdict.result() for name, verdict in verdicts.items() if verdict.result()}

    def fault(self, probe: Probe, scenario: Scenario, family: Family, port: Port) -> str:
        """Make the probe as often as is needed to be certain. Returns what is wrong with the results, "" if nothing."""
        if isinstance(probe.expect, Nothing):
            timeout = NO_ANSWER_TIMEOUT if probe.expect is Nothing.TIMED_OUT else TIMEOUT
            outcome = self.ask(probe, scenario, family, port, timeout)
            return "" if outcome is probe.expect else f"{outcome}, not {probe.expect}"
        answered: set[str] = set()
        for attempt in range(MAX_ATTEMPTS):
            outcome = self.ask(probe, scenario, family, port)
            if not isinstance(outcome, Answered) or outcome.pod not in probe.expect:
                return f"{outcome}, not one of {probe.expect}"
            if wrong := self._wrong(probe, outcome, family, port):
                return wrong
            answered.add(outcome.pod)
            if attempt >= MIN_ATTEMPTS and (probe.sticky or len(answered) == len(probe.expect)):
                break
            # With round-robin, clients in lockstep would each get the same endpoint every time.
            time.sleep(random.uniform(0, JITTER))
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
def deployment(
    folder: Path,
    backend: str,
    arguments: Sequence[str] = (),
    scenarios: Sequence[Scenario] = SCENARIOS,
    start: bool = True,
    mode: str = "iptables",
) -> Iterator[Deployment]:
    """A deployment that serves `scenarios` when the block begins and is removed when it ends.

    folder: an empty one, for manifests and log. backend: "nft" or "legacy", as the node's kubelet would show it.
    start: whether to start the proxy. mode: the proxy mode. Raises KernelError when the proxy does not come up.
    """
    manifests = Manifests(folder)
    manifests.put("nodes", node_objects())
    for scenario in scenarios:
        manifests.put(scenario.name, scenario.objects())
    with build(PODS, PORTS) as cluster:
        node = cluster.spaces["node1"]
        choose_backend(node, backend)
        proxy = Proxy(node, manifests.folder, folder / "log", ("--proxy-mode", mode, *arguments))
        running = Deployment(cluster, proxy, manifests, backend, mode)
        try:
            if start:
                proxy.start()
                # A Service may answer before all rules are written; its first packet would not be masqueraded then.
                proxy.await_ready(lambda: proxy.synced() == len(Family) and running.serves(scenarios[-1]))
            yield running
        finally:
            if proxy.running():
                proxy.stop()
