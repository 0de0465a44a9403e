"""A node in memory that IPVS mode programs, plans for it, and the state that they ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

from hypothesis import strategies as st

from kproxy.kernel.ipvs_codec import Operation, RealState, Verb
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.apply import IpvsDataplane
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.ipvs.native import outcome
from tests.fakes.clocks import ManualClock
from tests.fakes.ipset import FakeIpSets, SavedTables
from tests.fakes.iptables import FakeTables
from tests.fakes.ipvs import FakeIpvs
from tests.fakes.service_device import FakeAddresses
from tests.plans import NODE_IP, Plans, any_plans

SETTINGS = Settings(
    Family.IPV4, node_addresses=frozenset({NODE_IP, "172.30.0.12"}), node_port_ips=(NODE_IP, "172.30.0.12")
)
FOREIGN = VirtualServer(ServerKey(Protocol.TCP, "192.0.2.77", 443), "wlc")
FOREIGN_REAL = RealServer(RealKey("192.0.2.99", 443), 5)


def server(each: ServicePlan, ip: str = "", port: int = 0) -> ServerKey:
    """The virtual server of a plan: at its cluster IP unless said otherwise."""
    return ServerKey(each.protocol, ip or each.cluster_ip, port or each.port)


def real(number: int) -> RealKey:
    return RealKey(f"10.244.1.{number}", 8080)


class Rig:
    """One family's dataplane over kernels in memory, with a virtual server that belongs to somebody else."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.clock = ManualClock()
        self.ipvs, self.sets, self.addresses = FakeIpvs(), FakeIpSets(), FakeAddresses()
        self.tables = FakeTables(settings.family)
        self.tables.refuse = lambda table, chain, rule: self.sets.unknown(rule)
        self.sets.users.append(SavedTables(self.tables.save))
        self.ipvs.edit(Operation(Verb.ADD_SERVER, FOREIGN))
        self.ipvs.edit(Operation(Verb.ADD_REAL, FOREIGN, FOREIGN_REAL))
        self.dataplane = self.restarted()

    def restarted(self, settings: Settings | None = None) -> IpvsDataplane:
        """A dataplane that knows nothing yet of the same kernels."""
        self.settings = settings or self.settings
        self.dataplane = IpvsDataplane(
            self.settings, self.ipvs, self.sets, self.addresses, self.tables, clock=self.clock.monotonic
        )
        return self.dataplane

    def apply(self, plans: Plans, touched: Collection[PortKey] | None = None) -> Outcome:
        return self.dataplane.apply(plans, touched)

    def reals(self, key: ServerKey) -> dict[RealKey, int]:
        """Weights."""
        return {real: state.weight for real, state in self.servers()[key][1].items()}

    def servers(self) -> dict[ServerKey, tuple[VirtualServer, dict[RealKey, RealState]]]:
        found = self.ipvs.servers(self.settings.family)
        return {key: (held.server, dict(held.reals)) for key, held in found.items()}

    def entries(self) -> dict[str, tuple[str, ...]]:
        held = self.sets.held([name for name, _ in names.sets(self.settings.family)])
        return {name: tuple(sorted(each.entries)) for name, each in held.items()}

    def written(self) -> tuple[int, ...]:
        """How often anything was asked to be written."""
        return self.ipvs.applies, self.sets.applies, self.addresses.changes, len(self.tables.restores)

    def asked(self) -> int:
        """How many single things were asked to be written, rules aside."""
        addresses = len(self.addresses.added) + len(self.addresses.removed)
        return len(self.ipvs.applied) + len(self.sets.applied) + addresses

    def assert_holds(self, plans: Plans, foreign: Iterable[ServerKey] = ()) -> None:
        """Exactly what the plans ask for, real servers that leave, and what belongs to others.

        foreign: virtual servers that may be there besides the one that always is.
        """
        wanted = outcome(plans.items(), self.settings)
        assert self.entries() == wanted.sets
        assert sorted(self.addresses.held(self.settings.family)) == sorted(wanted.addresses)
        held = self.servers()
        assert held.pop(FOREIGN.key) == (FOREIGN, {FOREIGN_REAL.key: RealState(FOREIGN_REAL.weight)})
        assert held.keys() - set(foreign) == {served.server.key for served in wanted.served}
        for served in wanted.served:
            found, reals = held[served.server.key]
            assert found == served.server
            wants = {each.key: each.weight for each in served.reals}
            assert {key: reals[key].weight for key in wants} == wants
            rest = {key: state for key, state in reals.items() if key not in wants}
            assert not rest or served.server.key.protocol is Protocol.TCP
            assert all(state.weight == 0 for state in rest.values())
            assert all(state.masqueraded for state in reals.values())
        assert _shape(self.tables.save()) == _loaded(wanted.rules)


def _shape(text: str) -> list[str]:
    """Rules of the one chain that ports share stand in any order."""
    lines = text.splitlines()
    shared = [line for line in lines if line.startswith(f"-A {names.IPVS_OUT_FILTER} ")]
    return [*(line for line in lines if line not in shared), *sorted(shared)]


@cache
def _loaded(rules: str) -> list[str]:
    tables = FakeTables(SETTINGS.family)
    tables.restore(rules)
    return _shape(tables.save())


def clusters() -> st.SearchStrategy[Plans]:
    protocols = (Protocol.TCP, Protocol.UDP)
    return any_plans(*((name, protocol, port) for name in "ab" for port in (53, 80) for protocol in protocols))
