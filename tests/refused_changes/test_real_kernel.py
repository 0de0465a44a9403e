"""Whatever changes in whatever order, the kernel takes every change that is asked for, in every mode.

Services share what a change may take away: addresses, node ports, chains, sets of clients, ipsets, virtual servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from random import Random
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as tuned
from hypothesis import strategies as st

from kproxy.config import defaults
from kproxy.config.fields import DetectLocal, DetectLocalMode, KubeProxyConfiguration, ProxyMode
from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.node_info import NodeInfo
from kproxy.model.plans import Endpoint, Family, PortKey, Protocol, ServicePlan
from kproxy.modes import settings
from kproxy.modes.base import Outcome
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.ipvs.driver import prepare_ipvs
from kproxy.modes.nftables.apply import NftablesDataplane
from kproxy.modes.nftables.names import TABLE
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.netfilter.changes import OwnTransactions
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.table import Table
from tests.fakes.forwarder import FakeForwarder
from tests.ipvs.nodes import dataplane as ipvs_dataplane
from tests.nftables.plans import NODE_IP, OUTSIDE, SOURCES, address, build_plan

TOOLS = ("nft", "iptables-nft-restore", "iptables-legacy-restore")
NODE = NodeInfo(
    ips=("172.30.0.11", "fd00:30::11"),
    addresses=("172.30.0.11", "127.0.0.1", "fd00:30::11", "::1"),
    service_cidrs=("10.96.0.0/16", "fd00:96::/112"),
)
NAMES = "abcd"
STEPS = 12
RANGES = {family: [cidr for cidr in cidrs if not cidr.endswith("/0")] for family, cidrs in SOURCES.items()}
T = TypeVar("T", int, str)

Make = Callable[[Namespace, ExitStack, Family], tuple[Any, Callable[[KubeProxyConfiguration], Any]]]


def random_plan(random: Random, name: str, family: Family) -> ServicePlan:
    """A plan as the planner makes them, with addresses and node ports that other Services may have as well."""

    def some(values: Sequence[T], most: int) -> list[T]:
        return sorted(random.sample(values, random.randint(0, most)))

    local = some(range(1, 6), 2)
    balancers = tuple(some(OUTSIDE[family], 2))
    return build_plan(
        name,
        family=family,
        protocol=random.choice(list(Protocol)),
        cluster=sorted({*some(range(1, 6), 3), *local}),
        local=local,
        all_local=tuple(Endpoint(address(family, 244, n), 8080, True) for n in local),
        # The second may be another Service's, whose deletion is not known yet.
        cluster_ip=address(family, 96, random.choice([NAMES.index(name) + 1, 250])),
        node_port=random.choice([0, 30000, 30001]),
        external_ips=tuple(some([*OUTSIDE[family], NODE_IP[family]], 2)),
        load_balancer_ips=balancers,
        source_ranges=tuple(some(RANGES[family], 3)) if balancers else (),
        node_in_source_ranges=random.random() < 0.5,
        health_check_node_port=random.choice([0, 32000]),
        affinity_seconds=random.choice([0, 60, 10800]),
        internal_local=random.random() < 0.3,
        external_local=random.random() < 0.5,
    )


def configuration(mode: ProxyMode, variant: int) -> KubeProxyConfiguration:
    usual = msgspec.structs.replace(defaults.default(mode), cluster_cidr="10.244.0.0/16,fd00:244::/32")
    changes: list[dict[str, Any]] = [
        {},
        {"node_port_addresses": ("172.30.0.0/24", "fd00:30::/64")},
        {"node_port_addresses": ("0.0.0.0/0", "::/0")},
        {
            "detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX,
            "detect_local": DetectLocal(interface_name_prefix="veth"),
        },
    ]
    return msgspec.structs.replace(usual, **changes[variant])


class Walk:
    """Both families of one mode, and the plans that were asked for."""

    def __init__(self, mode: ProxyMode, make: Make, space: Namespace, stack: ExitStack) -> None:
        self._mode, self._made = mode, {family: make(space, stack, family) for family in Family}
        self._plans: dict[Family, dict[PortKey, ServicePlan]] = {family: {} for family in Family}
        for family in Family:
            self._apply(family, 0, None)

    def step(self, random: Random) -> None:
        """Change some of one family's Services at once; then a full check finds nothing left to write."""
        family = random.choice(list(Family))
        held = self._plans[family]
        before = dict(held)
        for name in random.sample(NAMES, random.randint(1, 3)):
            match random.choice(["put", "put", "put", "delete", "rename"]):
                case "put":
                    plan = random_plan(random, name, family)
                    held[plan.key] = plan
                case "delete":
                    self._move(held, name, None)
                case "rename":
                    self._move(held, name, random.choice(NAMES))
        touched = {key for key in {*before, *held} if before.get(key) != held.get(key)}
        variant = random.choice([0, 0, 0, 1, 2, 3])
        self._apply(family, variant, random.choice([touched, touched, None]))
        again = self._apply(family, variant, None)
        assert (again.transactions, again.repaired) == (0, False)

    @staticmethod
    def _move(held: dict[PortKey, ServicePlan], name: str, other: str | None) -> None:
        """Delete a Service, or give all that it has to one of another name."""
        for key in [key for key in held if key.name == name]:
            plan = held.pop(key)
            if other is not None:
                renamed = key._replace(name=other)
                held[renamed] = msgspec.structs.replace(plan, key=renamed)

    def end(self) -> None:
        """Delete all Services."""
        for family, held in self._plans.items():
            touched = set(held)
            held.clear()
            self._apply(family, 0, touched)

    def _apply(self, family: Family, variant: int, touched: set[PortKey] | None) -> Outcome:
        dataplane, settings_of = self._made[family]
        dataplane.configure(settings_of(configuration(self._mode, variant)))
        outcome: Outcome = dataplane.apply(self._plans[family], touched)
        assert outcome.refusals == []
        unserved = {key for key in outcome.rejected if self._mode is ProxyMode.USERSPACE}
        assert {key.protocol for key in unserved} <= {Protocol.SCTP}
        assert outcome.rejected.keys() == unserved
        return outcome


def by_iptables(backend: Backend, space: Namespace, stack: ExitStack, family: Family) -> Any:
    settings_of = partial(settings.iptables_settings, family=family, node=NODE, endpoints=0)
    tables = HostTables(Commands(), family, Command(backend, f"-{backend}", (1, 8, 9)))
    return IptablesDataplane(settings_of(configuration(ProxyMode.IPTABLES, 0)), tables), settings_of


def by_userspace(backend: Backend, space: Namespace, stack: ExitStack, family: Family) -> Any:
    settings_of = partial(settings.userspace_settings, family=family, node=NODE)
    tables = HostTables(Commands(), family, Command(backend, f"-{backend}", (1, 8, 9)))
    chosen = settings_of(configuration(ProxyMode.USERSPACE, 0))
    return UserspaceDataplane(chosen, tables, FakeForwarder()), settings_of


def by_nftables(space: Namespace, stack: ExitStack, family: Family) -> Any:
    settings_of = partial(settings.nftables_settings, family=family, node=NODE)
    table = Table(family, TABLE, stack.enter_context(KernelNftables()), OwnTransactions())
    stack.callback(table.close)
    return NftablesDataplane(settings_of(configuration(ProxyMode.NFTABLES, 0)), table), settings_of


def by_ipvs(space: Namespace, stack: ExitStack, family: Family) -> Any:
    settings_of = partial(settings.ipvs_settings, family=family, node=NODE)
    chosen = settings_of(configuration(ProxyMode.IPVS, 0))
    return ipvs_dataplane(space, chosen, stack), settings_of


def walk(mode: ProxyMode, make: Make, space: Namespace, random: Random) -> None:
    with ExitStack() as stack:
        made = Walk(mode, make, space, stack)
        for _ in range(STEPS):
            made.step(random)
        made.end()


@pytest.fixture
def space() -> Iterator[Namespace]:
    with closing(Namespace("walk")) as made:
        yield made


# A random generator cannot be shrunk; its seed repeats the walk.
FEW = tuned(max_examples=8, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.skipif(bool(unavailable(TOOLS)), reason=unavailable(TOOLS))
@pytest.mark.parametrize(
    ("mode", "make"),
    [
        pytest.param(ProxyMode.NFTABLES, by_nftables, id="nftables"),
        *(pytest.param(ProxyMode.IPTABLES, partial(by_iptables, each), id=f"iptables-{each}") for each in Backend),
        *(pytest.param(ProxyMode.USERSPACE, partial(by_userspace, each), id=f"userspace-{each}") for each in Backend),
    ],
)
@given(random=st.randoms(use_true_random=True))
@FEW
def test_no_change_is_refused(space: Namespace, mode: ProxyMode, make: Make, random: Random) -> None:
    space.call(walk, mode, make, space, random)


@pytest.mark.ipvs_kernel
@given(random=st.randoms(use_true_random=True))
@tuned(FEW, max_examples=2)  # in an emulated machine
def test_no_change_of_ipvs_is_refused(space: Namespace, random: Random) -> None:
    space.call(prepare_ipvs, Commands(), configuration(ProxyMode.IPVS, 0))
    space.call(walk, ProxyMode.IPVS, by_ipvs, space, random)
