"""For each proxy mode and backend: one cluster and one running proxy, all scenarios' Services alive at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kproxy.lab import probes
from kproxy.lab.clusters import CLIENT_OTHER, Cluster, build
from kproxy.lab.namespaces import unavailable
from kproxy.lab.outcomes import Answered, Nothing, Outcome
from kproxy.lab.proxies import Manifests, Proxy, choose_backend
from kproxy.lab.scenarios import PODS, PORTS, SCENARIOS, Port, Probe, Scenario, Seen, Via, node_objects
from kproxy.model.plans import Family, Protocol

BACKENDS = (("iptables", "nft"), ("iptables", "legacy"))
ENOUGH = 60  # attempts after which every one of three endpoints has answered but for one run in 10**10
FEW = 5
PATIENCE = 5.0  # seconds for an answer that must come
IMPATIENCE = 0.25  # seconds for one that must not


@dataclass(slots=True)
class Running:
    """A cluster with a proxy at work on node1."""

    cluster: Cluster
    proxy: Proxy
    manifests: Manifests

    def ask(self, probe: Probe, scenario: Scenario, family: Family, port: Port, timeout: float = PATIENCE) -> Outcome:
        """Make the probe once."""
        name, own = probe.source, ""
        if name == "client-other":
            name, own = "client", CLIENT_OTHER[family]
        function = probes.udp if port.protocol is Protocol.UDP else probes.tcp
        target = scenario.address(probe.via, family), scenario.port(probe.via, port)
        return self.cluster.spaces[name].call(function, *target, timeout, own)

    def verify(self, probe: Probe, scenario: Scenario, family: Family, port: Port) -> str:
        """Make the probe as often as it takes to be sure of the outcome; what is wrong with it, "" when nothing is."""
        if isinstance(probe.expect, Nothing):
            timeout = IMPATIENCE if probe.expect is Nothing.TIMED_OUT else PATIENCE
            outcome = self.ask(probe, scenario, family, port, timeout)
            return "" if outcome is probe.expect else f"{outcome}, not {probe.expect}"
        answered: set[str] = set()
        for attempt in range(ENOUGH):
            outcome = self.ask(probe, scenario, family, port)
            if wrong := self._wrong_answer(probe, outcome, family, port):
                return wrong
            assert isinstance(outcome, Answered)
            answered.add(outcome.pod)
            if attempt >= FEW and (len(answered) == len(probe.expect) or probe.sticky):
                break
        if probe.sticky:
            return "" if len(answered) == 1 else f"{answered} answered one client"
        return "" if answered == set(probe.expect) else f"of {probe.expect} only {answered} ever answered"

    def _wrong_answer(self, probe: Probe, outcome: Outcome, family: Family, port: Port) -> str:
        assert not isinstance(probe.expect, Nothing)
        if not isinstance(outcome, Answered) or outcome.pod not in probe.expect:
            return f"{outcome}, not one of {probe.expect}"
        if outcome.pod != "balancer" and outcome.reached_port != port.target:
            return f"{outcome}, not at port {port.target}"
        own = {CLIENT_OTHER[family]} if probe.source == "client-other" else self._addresses(probe.source, family)
        allowed = {Seen.KEPT: own, Seen.REWRITTEN: self._addresses("node1", family)}.get(probe.seen)
        return "" if allowed is None or outcome.source in allowed else f"{outcome}, its source not {probe.seen.value}"

    def _addresses(self, name: str, family: Family) -> frozenset[str]:
        return self.cluster.addresses_of(name, family)


@pytest.fixture(scope="session", params=BACKENDS, ids=lambda b: f"{b[0]}-{b[1]}")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    mode, backend = request.param
    reason = unavailable((f"iptables-{backend}-restore", f"ip6tables-{backend}-restore"))
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(f"{mode}-{backend}")
    manifests = Manifests(folder)
    manifests.put("nodes", node_objects())
    for scenario in SCENARIOS:
        manifests.put(scenario.name, scenario.objects())
    with build(PODS, PORTS) as cluster:
        choose_backend(cluster.spaces["node1"], backend)
        proxy = Proxy(cluster.spaces["node1"], manifests.folder, folder / "log", ["--proxy-mode", mode, "-v", "2"])
        proxy.start()
        system = Running(cluster, proxy, manifests)
        try:
            proxy.await_ready(lambda: all(answers(system, family) for family in Family))
            yield system
            assert proxy.running(), proxy.tail()
        finally:
            if proxy.running():
                proxy.stop()


def answers(system: Running, family: Family) -> bool:
    """Whether the last Service of the table is served already."""
    probe = Probe("caller", Via.CLUSTER_IP, ("a", "far"))
    last = SCENARIOS[-1]
    return isinstance(system.ask(probe, last, family, last.ports[0], 0.5), Answered)
