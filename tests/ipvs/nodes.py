"""A small cluster for IPVS mode: clients, a node with IPVS and the mode's own Dataplanes, three pods that answer.

    clients 172.30.0.100 … .103 ── node 172.30.0.11 | 10.244.1.1 ── pods 10.244.1.11 … .13

All pods share one namespace, which costs less; each has its own address and says its own name. IPv6 is alike. Service
addresses are used once, so that what the kernel remembers of one test's connections means nothing to another's.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from kproxy.config import defaults
from kproxy.config.fields import ProxyMode
from kproxy.kernel.commands import Commands
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.service_device import KernelAddresses
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey, VirtualServer
from kproxy.lab import links, probes
from kproxy.lab.clusters import Pod, gateway_of, node_address
from kproxy.lab.namespaces import Namespace
from kproxy.lab.probes import Answered
from kproxy.lab.probes import Outcome as Answer
from kproxy.lab.proxies import wait_for
from kproxy.lab.servers import Servers
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.ipvs import native
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.ipvs.cleanup import clean
from kproxy.modes.ipvs.driver import prepare_ipvs
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.xtables.cleanup import clean as clean_rules
from tests.fakes.clocks import ManualClock

T = TypeVar("T")
Plans = dict[PortKey, ServicePlan]

PODS = {name: Pod(name, 1, number) for name, number in (("a", 11), ("b", 12), ("c", 13))}
TARGET = 8080
LENGTHS = {Family.IPV4: 24, Family.IPV6: 64}
DEFAULT = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
CLIENTS = {
    Family.IPV4: tuple(f"172.30.0.{n}" for n in range(100, 104)),
    Family.IPV6: tuple(f"fd00:30::{n}" for n in range(100, 104)),
}
PORTS = range(10000, 40000, 2)  # of clients, but for those that a test chooses itself
PATIENCE = 20.0  # seconds for what must come; the processor may be an emulated one
NFT = Command(Backend.NFT, "-nft", (1, 8, 9))


class Node:
    """What was built. Both families' dataplanes share one clock, which moves only when a test says so."""

    def __init__(self, spaces: dict[str, Namespace], stack: ExitStack) -> None:
        self.client, self.space, self.pods = (spaces[name] for name in ("client", "node", "pods"))
        self.clock = ManualClock()
        self.ipvs = stack.enter_context(self.space.call(KernelIpvs))
        self._stack = stack
        self._numbers = count(1)
        self._ports = iter(PORTS)
        self._plans: dict[Family, Plans] = {family: {} for family in Family}
        self._settings = {family: settings_of(family) for family in Family}
        self._dataplanes = {family: self._make_dataplane(family) for family in Family}

    # ---- Services

    def plan(
        self, family: Family, protocol: Protocol = Protocol.TCP, pods: Sequence[str] = tuple(PODS), **fields: Any
    ) -> ServicePlan:
        """A Service at an address that no other has."""
        number = next(self._numbers)
        made = ServicePlan(
            key=PortKey("default", f"service-{number}", "", protocol),
            family=family,
            cluster_ip=f"10.96.0.{number}" if family is Family.IPV4 else f"fd00:96::{number:x}",
            port=80,
            **fields,
        )
        return with_pods(made, pods)

    def all_kinds(self, family: Family) -> list[ServicePlan]:
        """A Service port by each protocol, with everything that a plan can ask of IPVS mode."""
        four = family is Family.IPV4
        external, balancer = ("198.51.100.7", "203.0.113.5") if four else ("2001:db8::7", "2001:db8::5")
        endpoint = Endpoint(*real("a", family), local=True)
        return [
            self.plan(
                family,
                protocol,
                node_port=30080 + number,
                external_ips=(external,),
                load_balancer_ips=(balancer,),
                source_ranges=("172.30.0.0/24" if four else "fd00:30::/64",),
                node_in_source_ranges=protocol is not Protocol.SCTP,
                affinity_seconds=60 if protocol is Protocol.TCP else 0,
                external_local=protocol is Protocol.UDP,
                health_check_node_port=32000 if protocol is Protocol.UDP else 0,
                local=(endpoint,),
                all_local=(endpoint,),
            )
            for number, protocol in enumerate(Protocol)
        ]

    def serve(self, family: Family, *plans: ServicePlan, **settings: Any) -> Outcome:
        """A full check that leaves just these Services, under SETTINGS that differ from the usual ones as told."""
        self._settings[family] = settings_of(family, **settings)
        self._dataplanes[family].configure(self._settings[family])
        self._plans[family] = {plan.key: plan for plan in plans}
        return self.check(family)

    def change(self, plan: ServicePlan) -> Outcome:
        """One Service becomes `plan`; nothing else is looked at."""
        self._plans[plan.family][plan.key] = plan
        return self.space.call(self._dataplanes[plan.family].apply, self._plans[plan.family], [plan.key])

    def check(self, family: Family) -> Outcome:
        """A full check."""
        return self.space.call(self._dataplanes[family].apply, self._plans[family], None)

    def restart(self, family: Family) -> Outcome:
        """A new dataplane takes over what the kernel holds."""
        self._dataplanes[family] = self._make_dataplane(family)
        return self.check(family)

    def notices(self, family: Family, seconds: int) -> bool:
        """Whether the dataplane notices within so many seconds of its clock that others changed what it wrote."""
        for _ in range(seconds):
            self.clock.advance(1)
            if self.space.call(self._dataplanes[family].drifted):
                return True
        return False

    def housekeeping(self, family: Family, after: float = 0.0) -> None:
        """What is due once so many seconds of the clock have passed."""
        self.clock.advance(after)
        self._dataplanes[family].housekeeping()

    def cleanup(self, family: Family) -> None:
        """What `kproxy cleanup` does, for one family; the dataplane is a new one afterwards."""
        settings, used = self._settings[family], ExitStack()
        with used:
            sets = used.enter_context(self.space.call(KernelIpSets))
            addresses = used.enter_context(self.space.call(KernelAddresses))

            def remove() -> list[str]:
                clean_rules(HostTables(Commands(), family, NFT))
                return clean(
                    self.ipvs, sets, addresses, settings.node_addresses, settings.exclude_cidrs, families=[family]
                )

            assert self.space.call(remove) == []
        self._dataplanes[family] = self._make_dataplane(family)

    def wanted(self) -> list[native.Outcome]:
        """What the kernel should hold of each family, as what is rendered."""
        return [native.outcome(self._plans[family].items(), self._settings[family]) for family in Family]

    # ---- the kernel

    def weights(self, plan: ServicePlan) -> dict[str, int]:
        """Of each pod that the Service's virtual server has."""
        names = {real(pod, plan.family): pod for pod in PODS}
        return {names[key]: state.weight for key, state in self.ipvs.reals(server(plan).key).items()}

    def set_weights(self, plan: ServicePlan, **weights: int) -> None:
        """By the same encoder, but not by the dataplane."""
        reals = (RealServer(real(pod, plan.family), weight) for pod, weight in weights.items())
        assert self.ipvs.apply([Operation(Verb.EDIT_REAL, server(plan), each) for each in reals]) == {}

    def idle(self, plan: ServicePlan, pod: str) -> bool:
        """Whether no connection leads to the pod any more."""
        return self.ipvs.reals(server(plan).key)[real(pod, plan.family)].idle

    def templates(self, plan: ServicePlan) -> int:
        """How many clients the kernel remembers the pod of: entries for all their ports, which is port 0."""
        text = self.space.call(Path("/proc/thread-self/net/ip_vs_conn").read_text)
        wanted = socket.inet_pton(socket.AF_INET6 if ":" in plan.cluster_ip else socket.AF_INET, plan.cluster_ip).hex()
        rows = (line.split() for line in text.splitlines()[1:])
        return sum(row[2] == "0000" and row[3].replace(":", "").lower() == wanted for row in rows)

    def forgot(self, plan: ServicePlan) -> bool:
        """Whether the kernel remembers no client of the Service."""
        return self.templates(plan) == 0

    # ---- clients

    def ask(self, plan: ServicePlan, times: int = 1, client: int = 0) -> list[str]:
        """Which pods answer so many connections or datagrams, each from a new port."""
        function = probes.udp if plan.protocol is Protocol.UDP else probes.tcp
        source = CLIENTS[plan.family][client]

        def work() -> str:
            return _pod(function(plan.cluster_ip, plan.port, PATIENCE, source))

        return [self._with_new_port(work) for _ in range(times)]

    def counts(self, plan: ServicePlan, times: int) -> Counter[str]:
        """How often each pod answers one client."""
        return Counter(self.ask(plan, times))

    @contextmanager
    def held(self, plan: ServicePlan) -> Iterator[tuple[str, probes.Held]]:
        """A TCP connection, reset in the end, and the pod that it leads to."""
        source = CLIENTS[plan.family][0]
        made = self._with_new_port(lambda: probes.Held(plan.cluster_ip, plan.port, PATIENCE, source))
        try:
            yield _pod(made.first), made
        finally:
            made.reset()

    def retries(self) -> str:
        """What clients had to send again so far, each of which may have taken a turn of its own."""
        names, values = (
            line.split()
            for line in self.client.call(Path("/proc/thread-self/net/snmp").read_text).splitlines()
            if line.startswith("Tcp:")
        )
        return f"segments sent again: {dict(zip(names, values, strict=True))['RetransSegs']}"

    def _with_new_port(self, work: Callable[[], T]) -> T:
        """Do `work` as a client, whose one socket gets a port that none had before: an old one may have a past.

        By UDP, IPVS leads it where it led before. By TCP a pod may still hold the connection of an earlier client, if
        its end came when the virtual server was gone. The pod answers the new client so that this one resets the
        attempt and tries again at once, and IPVS takes that for a new connection (conn_reuse_mode): one client, two
        turns.
        """
        port = next(self._ports)
        # Two, as TCP and UDP each have a preference for one parity; the other one is not used again either.
        self.client.sysctl({"ipv4/ip_local_port_range": f"{port} {port + 1}"})
        return self.client.call(work)

    def _make_dataplane(self, family: Family) -> IpvsDataplane:
        return dataplane(self.space, self._settings[family], self._stack, self.clock.monotonic)


def dataplane(
    space: Namespace, settings: Settings, stack: ExitStack, clock: Callable[[], float] = time.monotonic
) -> IpvsDataplane:
    """A new one of a family over the kernel of `space`, with sockets that `stack` closes. To be called in `space`."""
    ipvs, sets, addresses = space.call(KernelIpvs), space.call(KernelIpSets), space.call(KernelAddresses)
    for each in (ipvs, sets, addresses):
        stack.enter_context(closing(each))
    tables = HostTables(Commands(), settings.family, NFT)
    return IpvsDataplane(settings, ipvs, sets, addresses, tables, clock=clock)


@contextmanager
def build() -> Iterator[Node]:
    """Everything, prepared as the daemon prepares a host; gone when the block ends."""
    with ExitStack() as stack:
        spaces = {name: stack.enter_context(closing(Namespace(name))) for name in ("client", "node", "pods")}
        for space in spaces.values():
            space.sysctl(links.HOST_SYSCTLS)
            links.up(space)
        links.connect(spaces["client"], "eth0", spaces["node"], "clients")
        links.connect(spaces["pods"], "eth0", spaces["node"], "pods")
        for family, length in LENGTHS.items():
            node, gateway = node_address(1, family), gateway_of(1, family)
            addresses = [pod.ip(family) for pod in PODS.values()]
            links.address(spaces["node"], "clients", f"{node}/{length}")
            links.address(spaces["node"], "pods", f"{gateway}/{length}")
            links.address(spaces["client"], "eth0", *(f"{ip}/{length}" for ip in CLIENTS[family]))
            links.address(spaces["pods"], "eth0", *(f"{ip}/{length}" for ip in addresses))
            links.route(spaces["client"], "eth0", DEFAULT[family], via=node)
            links.route(spaces["pods"], "eth0", DEFAULT[family], via=gateway)
        servers = stack.enter_context(closing(Servers()))
        for name, pod in PODS.items():
            servers.add(spaces["pods"], name, [pod.ip(family) for family in Family], [TARGET])
        spaces["node"].call(prepare_ipvs, Commands(), defaults.default(ProxyMode.IPVS))
        yield Node(spaces, stack)


def settings_of(family: Family, **changes: Any) -> Settings:
    own = (node_address(1, family), gateway_of(1, family))
    return Settings(**{"family": family, "node_addresses": frozenset(own), "node_port_ips": own} | changes)


def server(plan: ServicePlan, scheduler: str = "rr") -> VirtualServer:
    """The one at the Service's cluster IP."""
    return VirtualServer(ServerKey(plan.protocol, plan.cluster_ip, plan.port), scheduler)


def real(pod: str, family: Family) -> RealKey:
    return RealKey(PODS[pod].ip(family), TARGET)


def with_pods(plan: ServicePlan, pods: Sequence[str]) -> ServicePlan:
    """The same Service with these endpoints."""
    endpoints = tuple(Endpoint(*real(pod, plan.family)) for pod in pods)
    return replace(plan, cluster=endpoints, reachable=endpoints, has_endpoints=bool(endpoints))


def _pod(outcome: Answer) -> str:
    return outcome.pod if isinstance(outcome, Answered) else outcome.value


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within PATIENCE."""
    return wait_for(condition, PATIENCE, pause=0.1)
