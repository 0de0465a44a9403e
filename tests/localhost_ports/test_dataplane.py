"""The listeners on loopback beside a mode's dataplane: whose they are, and what goes wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.containment import Containment
from kproxy.errors import KernelError
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan
from kproxy.modes.base import Outcome
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach, Statistics
from kproxy.modes.userspace.localhost_ports import HOUSEKEEPING, LocalhostDataplane
from tests.fakes.clocks import ManualClock
from tests.fakes.forwarder import FakeForwarder
from tests.nftables.plans import any_plan, build_plan

V4, V6 = Family.IPV4, Family.IPV6
Plans = Mapping[PortKey, ServicePlan]


class Rules:
    """The mode's own dataplane, which writes nothing. fails: raise KernelError instead."""

    def __init__(self, family: Family) -> None:
        self.family, self.fails, self.written = family, False, 0

    def apply(self, wanted: Plans, touched: Collection[PortKey] | None) -> Outcome:
        if self.fails:
            raise KernelError("no rules can be written")
        self.written += 1
        return Outcome()

    def drifted(self) -> bool:
        return False

    def housekeeping(self) -> float | None:
        return None

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        return ("rules",)


class Rig:
    """Both parts of one family's dataplane, what they count, and the stage that contains their failures."""

    def __init__(self, family: Family = V4, forwarder: FakeForwarder | None = None) -> None:
        self.family, self.forwarder, self.rules = family, forwarder or FakeForwarder(), Rules(family)
        self.containment = Containment(ManualClock())
        self.number, self.failures = 0, 0
        self.dataplane = LocalhostDataplane(
            self.rules, self.forwarder, self, self.containment.stage("localhost-ports", "")
        )
        self.dataplane.serves = True
        self.plans: dict[PortKey, ServicePlan] = {}

    def localhost_listeners(self, family: Family, number: int) -> None:
        self.number = number

    def localhost_listener_failed(self, family: Family) -> None:
        self.failures += 1

    def want(self, *plans: ServicePlan, full: bool = False) -> dict[PortKey, str]:
        """Exactly these plans; returns what is refused."""
        before, self.plans = self.plans, {plan.key: plan for plan in plans}
        changed = {key for key in {*before, *self.plans} if before.get(key) != self.plans.get(key)}
        return self.dataplane.apply(self.plans, None if full else changed).rejected

    def retry(self, refused: Collection[PortKey]) -> dict[PortKey, str]:
        """What a proxier does with refused ports."""
        return self.dataplane.apply(self.plans, refused).rejected

    @property
    def open(self) -> dict[int, Listener]:
        """What listens, by node port; each is there once."""
        found = {
            (key.node_port, listener) for (of, key), listener in self.forwarder.listeners.items() if of is self.family
        }
        assert len({port for port, _ in found}) == len(found)
        return dict(found)


WEB, API = build_plan("web", node_port=30080), build_plan("api", node_port=30081, cluster=(3,))
AT_WEB = ListenerKey(WEB.key, Reach.CLUSTER, 30080)


def wanted(plans: Collection[ServicePlan]) -> dict[int, Listener]:
    """By the definition: the first claimant of each TCP node port, with the endpoints of its external policy."""
    owners: dict[int, ServicePlan] = {}
    for plan in sorted(plans, key=lambda plan: plan.key, reverse=True):
        if plan.node_port and plan.protocol is Protocol.TCP:
            owners[plan.node_port] = plan
    reach = {port: plan.local if plan.external_local else plan.cluster for port, plan in owners.items()}
    return {
        port: Listener(plan.family, reach[port], plan.affinity_seconds)
        for port, plan in owners.items()
        if reach[port] and plan.has_endpoints
    }


@given(
    st.lists(st.tuples(st.lists(st.sampled_from("abcd"), unique=True), st.booleans(), st.booleans()), max_size=6),
    st.data(),
)
def test_after_any_changes_each_port_leads_to_its_owners_endpoints(
    steps: list[tuple[list[str], bool, bool]], data: st.DataObject
) -> None:
    rig = Rig()
    for names, full, serves in steps:
        plans = [data.draw(any_plan(name, V4)) for name in names]
        kept = [plan for key, plan in rig.plans.items() if key.name not in names]
        rig.dataplane.serves = serves
        assert rig.want(*plans, *kept, full=full) == {}
        assert rig.open == (wanted(rig.plans.values()) if serves else {})
        assert rig.number == len(rig.open)
    assert rig.failures == 0


def test_what_is_not_wanted_starts_no_process() -> None:
    rig = Rig()
    rig.dataplane.serves = False
    rig.want(WEB, full=True)
    rig.dataplane.serves = True
    rig.want(build_plan("dns", protocol=Protocol.UDP, node_port=30053), full=True)
    assert (rig.forwarder.updates, rig.dataplane.names(WEB), rig.dataplane.housekeeping()) == ([], ("rules",), None)
    rig.want(WEB)
    assert rig.dataplane.names(WEB) == ("rules", "listener 127.0.0.1:30080")
    for serves in (False, True):  # the list of addresses changes, and no plan
        rig.dataplane.serves = serves
        rig.want(WEB)
        assert rig.open == (wanted([WEB]) if serves else {})


def test_a_mode_that_never_listened_does_not_reset_the_count_of_the_one_that_does() -> None:
    rig = Rig()
    rig.number = 7
    rig.dataplane.ended()
    assert rig.number == 7
    rig.want(WEB)
    rig.dataplane.ended()
    assert rig.number == 0


def test_the_process_ends_with_the_last_listener_of_both_families_and_its_connections() -> None:
    forwarder = FakeForwarder()
    four, six = Rig(V4, forwarder), Rig(V6, forwarder)
    four.want(WEB)
    six.want(build_plan(family=V6, node_port=30080))
    forwarder.counted = Statistics(connections=1)
    six.want()
    assert (six.dataplane.housekeeping(), forwarder.running) == (None, True)
    four.want()
    assert (four.dataplane.housekeeping(), forwarder.running) == (HOUSEKEEPING, True)
    forwarder.counted = Statistics()
    forwarder.busy = True
    assert four.dataplane.housekeeping() == HOUSEKEEPING
    forwarder.busy = False
    assert (four.dataplane.housekeeping(), forwarder.running) == (None, False)
    four.want(WEB)
    assert (four.open, forwarder.running) == (wanted([WEB]), True)


# ---------------------------------------------------------------- trouble


def refuse(rig: Rig) -> Callable[[], None]:
    rig.forwarder.refuse(V4, AT_WEB, "Address already in use")
    return lambda: rig.forwarder.permit(V4, AT_WEB)


def no_forwarder(rig: Rig) -> Callable[[], None]:
    return instead(rig, KernelError("no process can be started"))


def a_bug(rig: Rig) -> Callable[[], None]:
    return instead(rig, ZeroDivisionError("division by zero"))


def instead(rig: Rig, error: Exception) -> Callable[[], None]:
    real = rig.forwarder.update

    def update(*_: Any) -> Any:
        raise error

    rig.forwarder.update = update  # type: ignore[method-assign, assignment]
    return lambda: setattr(rig.forwarder, "update", real)


def busy(rig: Rig) -> Callable[[], None]:
    rig.forwarder.busy = True
    return lambda: setattr(rig.forwarder, "busy", False)


TROUBLE: dict[Callable[[Rig], Callable[[], None]], tuple[set[str], str, int]] = {
    refuse: ({"web"}, "default/web:http: node port not served on 127.0.0.1:30080: Address already in use", 0),
    no_forwarder: ({"web", "api"}, "no process can be started", 0),
    busy: ({"web", "api"}, "the forwarder is busy", 0),
    a_bug: ({"web", "api"}, "unexpected error", 1),
}


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda trouble: trouble.__name__)
def test_what_cannot_be_opened_costs_itself_alone_and_is_tried_again(
    trouble: Callable[[Rig], Callable[[], None]],
) -> None:
    whom, why, bugs = TROUBLE[trouble]
    rig = Rig()
    mend = trouble(rig)
    for attempt in (1, 2):
        refused = rig.want(WEB, API) if attempt == 1 else rig.retry([WEB.key, API.key])
        assert {key.name for key in refused} == whom
        assert all(text.endswith(why) for text in refused.values()), refused
        assert rig.open == wanted([plan for plan in (WEB, API) if plan.key not in refused])
        assert (rig.failures, rig.rules.written) == (attempt * len(whom), attempt), "each attempt counts"
        assert sum(rig.containment.counts().values()) == attempt * bugs
    mend()
    assert rig.retry(refused) == {}
    assert rig.open == wanted([WEB, API])
    assert rig.containment.failing() == []


def test_lost_listeners_are_noticed_and_opened_again() -> None:
    rig = Rig()
    rig.want(WEB, API)
    rig.forwarder.die()
    assert rig.dataplane.drifted()
    assert rig.want(WEB, API, full=True) == {}
    assert rig.open == wanted([WEB, API])
    assert not rig.dataplane.drifted()


def test_listeners_follow_while_rules_cannot_be_written() -> None:
    rig = Rig()
    rig.want(WEB)
    rig.rules.fails = True
    with pytest.raises(KernelError):
        rig.want(API)
    assert rig.open == wanted([API])


def test_a_port_that_another_service_takes_over_is_closed_before_it_is_opened() -> None:
    rig = Rig()
    rig.want(WEB)
    heir = build_plan("heir", node_port=30080, cluster=(4,))
    earlier = len(rig.forwarder.updates)
    rig.want(heir)
    made = Counter(listener is None for _, changes in rig.forwarder.updates[earlier:] for listener in changes.values())
    assert (made, rig.forwarder.updates[earlier][1]) == ({True: 1, False: 1}, {AT_WEB: None})
    rig.want(heir, build_plan("annex", node_port=30080, cluster=()))
    assert rig.open == {}, "the first by name has the port, in the rules as well, and has no endpoints"


@pytest.mark.parametrize("call", ["alive", "end_unused"])
def test_a_bug_while_nothing_changes_costs_nothing(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.want(WEB)
    rig.want(*([WEB] if call == "alive" else []))
    monkeypatch.setattr(rig.forwarder, call, lambda *_: 1 // 0)
    asked = rig.dataplane.drifted if call == "alive" else rig.dataplane.housekeeping
    assert asked() == (False if call == "alive" else HOUSEKEEPING)
    assert len(rig.containment.failing()) == 1
    monkeypatch.undo()
    assert asked() == (False if call == "alive" else None)
    assert rig.containment.failing() == []
