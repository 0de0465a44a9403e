"""Nothing is removed before its replacement is there, and no packet is accepted that nothing serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kproxy.kernel.ipset import Change
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.model.plans import Family
from kproxy.modes.ipvs.names import CLUSTER_IP, LB, set_name
from kproxy.modes.ipvs.render import render_port
from tests.fakes.iptables import FakeTables
from tests.ipvs_mode.rigs import SETTINGS, Rig, clusters, server
from tests.plans import Plans, build_plan, by_key, changed


class Witness(Rig):
    """Notes every single write, and looks at the whole node at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.broken: list[str] = []
        self.stay: Plans = {}
        self.ipvs.refuse = self._operation
        self.sets.refuse = self._change
        self.addresses.refuse = self._address
        tables = Noting(self)
        tables.refuse = self.tables.refuse
        self.tables = tables
        self.restarted()

    def _operation(self, operation: Operation) -> int:
        return self.see(operation.verb.value)

    def _change(self, change: Change) -> int:
        return self.see("add entry" if change.add else "delete entry")

    def _address(self, address: str) -> int:
        return self.see("add address")

    def see(self, what: str) -> int:
        self.log.append(what)
        self.broken += [f"{what}: {why}" for why in self._problems()]
        return 0

    def _problems(self) -> Iterator[str]:
        """Whoever asks for a Service that does not change is served all the time."""
        servers, entries, bound = self.servers(), self.entries(), self.addresses.held(Family.IPV4)
        for each in self.stay.values():
            fragment = render_port(each, self.settings)
            for served in fragment.served:
                held = servers.get(served.server.key)
                if held is None or any(r.key not in held[1] or held[1][r.key].weight == 0 for r in served.reals):
                    yield f"{served.server.key} does not serve"
            if any(address not in bound for address in fragment.addresses):
                yield f"addresses of {each.key} are off"
            if any(entry.entry not in entries[entry.set] for entry in fragment.entries):
                yield f"entries of {each.key} are out"
        # What is bound takes packets in: something must answer.
        for address in bound:
            if not any(key.address == address for key in servers):
                yield f"{address} is bound and not served"


class Noting(FakeTables):
    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness

    def restore(self, text: bytes | str) -> None:
        self._witness.see("rules")
        super().restore(text)


def test_a_service_is_added_from_the_inside_out() -> None:
    rig = Witness()
    rig.apply({})
    rig.log.clear()
    first = build_plan(load_balancer_ips=("203.0.113.5",))
    rig.apply(by_key(first), [first.key])
    assert list(dict.fromkeys(rig.log)) == [
        "add entry",
        "add virtual server",
        "add real server",
        "add address",
        "rules",
    ]


def test_a_service_is_deleted_from_the_outside_in() -> None:
    rig = Witness()
    rig.apply(by_key(build_plan()))
    rig.log.clear()
    bound: list[bool] = []

    def look(operation: Operation) -> int:
        bound.append(build_plan().cluster_ip in rig.addresses.held(Family.IPV4))
        return rig.see(operation.verb.value)

    rig.ipvs.refuse = look
    rig.apply({}, [build_plan().key])
    assert list(dict.fromkeys(rig.log)) == ["rules", "delete virtual server", "delete entry"]
    assert bound == [False], "the address goes before its server"
    assert rig.addresses.removed == [build_plan().cluster_ip]


@given(data=st.data(), full=st.booleans())
def test_what_does_not_change_is_served_all_the_time(data: Any, full: bool) -> None:
    rig = Witness()
    held: Plans = {}
    for wanted in data.draw(st.lists(clusters(), min_size=2, max_size=3)):
        different = changed(held, wanted)
        first = {k: p for k, p in wanted.items() if k not in different}
        # Two Services may ask for one external address: whoever is first has it, and may change.
        rig.stay = {k: p for k, p in first.items() if not p.external_ips and not p.load_balancer_ips}
        rig.apply(wanted, None if full else different)
        held = wanted
    assert rig.broken == []


def test_an_edited_server_is_not_made_anew() -> None:
    rig = Witness()
    rig.apply(by_key(build_plan()))
    rig.log.clear()
    sticky = build_plan(affinity_seconds=60)
    rig.apply(by_key(sticky), [sticky.key])
    assert rig.log == ["edit virtual server"]
    assert rig.servers()[server(sticky)][0].timeout == 60


def test_a_replaced_endpoint_is_there_before_the_old_one_stops() -> None:
    rig = Witness()
    rig.apply(by_key(build_plan(cluster=(1,))))
    other = build_plan(cluster=(2,))
    rig.apply(by_key(other), [other.key])
    operations = [(op.verb, op.real.weight) for op in rig.ipvs.applied[-2:] if op.real]
    assert operations == [(Verb.ADD_REAL, 1), (Verb.EDIT_REAL, 0)]


def test_an_entry_that_moves_is_in_its_new_set_first() -> None:
    rig = Rig()
    old, new = build_plan(external_ips=("203.0.113.5",)), build_plan(load_balancer_ips=("203.0.113.5",))
    rig.apply(by_key(old))
    before = len(rig.sets.applied)
    rig.apply(by_key(new), [new.key])
    assert [(change.set, change.add) for change in rig.sets.applied[before:]] == [
        (set_name(LB, Family.IPV4), True),
        ("KUBE-EXTERNAL-IP", False),
    ]
    assert set_name(CLUSTER_IP, SETTINGS.family) in rig.entries()
