"""Whatever changes in whatever order, the node ends as after programming everything at once."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import KernelError
from kproxy.kernel.ipset import Change
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import PERSISTENT, RealServer, ServerKey, VirtualServer
from kproxy.model.plans import Protocol
from kproxy.modes.ipvs.names import EXTERNAL_IP, IPVS_IPS, NODE_PORT_TCP, set_name
from tests.ipvs_mode.rigs import FOREIGN, SETTINGS, Rig, clusters, real
from tests.plans import NODE_IP, Plans, changed

Edit = Callable[[Rig], None]
STRAY = ServerKey(Protocol.UDP, "203.0.113.5", 9)


def our_servers(rig: Rig) -> list[VirtualServer]:
    return [server for key, (server, _) in sorted(rig.servers().items()) if key != FOREIGN.key]


def on_first_server(verb: Verb, **fields: Any) -> Edit:
    def edit(rig: Rig) -> None:
        for server in our_servers(rig)[:1]:
            rig.ipvs.edit(Operation(verb, server._replace(**fields)))

    return edit


def on_reals(verb: Verb, weight: int) -> Edit:
    """A change to all real servers, or a stray one more."""

    def edit(rig: Rig) -> None:
        for server in our_servers(rig):
            reals = [real(77)] if verb is Verb.ADD_REAL else rig.reals(server.key)
            for key in reals:
                with contextlib.suppress(KernelError):
                    rig.ipvs.edit(Operation(verb, server, RealServer(key, weight)))

    return edit


def clear(rig: Rig) -> None:
    """ipvsadm -C, and the other one's owner starts anew."""
    for server in our_servers(rig):
        rig.ipvs.edit(Operation(Verb.DELETE_SERVER, server))


def stray_server(rig: Rig) -> None:
    """At an address that is ours, so it is taken for ours."""
    rig.addresses.edit([STRAY.address])
    with contextlib.suppress(KernelError):
        rig.ipvs.edit(Operation(Verb.ADD_SERVER, VirtualServer(STRAY, "rr")))


def stray_entries(rig: Rig) -> None:
    for short, entry in ((EXTERNAL_IP, "198.51.100.9,tcp:1"), (NODE_PORT_TCP, "30999"), (IPVS_IPS, "198.51.100.9")):
        if (name := set_name(short, rig.settings.family)) in rig.sets.names():
            rig.sets.edit(Change(name, entry, True))


def device_gone(rig: Rig) -> None:
    rig.addresses.remove()


def rules_gone(rig: Rig) -> None:
    rig.tables.flush("nat")
    rig.tables.flush("filter")


EDITS: dict[str, Edit] = {
    "ipvsadm -C": clear,
    "a virtual server is deleted": on_first_server(Verb.DELETE_SERVER),
    "a virtual server gets another scheduler": on_first_server(Verb.EDIT_SERVER, scheduler="lc"),
    "a virtual server becomes persistent": on_first_server(Verb.EDIT_SERVER, flags=PERSISTENT, timeout=7),
    "real servers are deleted": on_reals(Verb.DELETE_REAL, 0),
    "real servers get weight 0": on_reals(Verb.EDIT_REAL, 0),
    "real servers get weight 9": on_reals(Verb.EDIT_REAL, 9),
    "a stray real server": on_reals(Verb.ADD_REAL, 1),
    "a stray virtual server": stray_server,
    "ipset flush": lambda rig: rig.sets.flush(),
    "stray entries": stray_entries,
    "ip addr flush": lambda rig: rig.addresses.flush(),
    "a stray address": lambda rig: rig.addresses.edit(["198.51.100.9"]),
    "the device is deleted": device_gone,
    "rules are flushed": rules_gone,
}
# By what these take away a daemon that starts tells its virtual servers from others'.
TRACES = {"ipset flush", "ip addr flush", "the device is deleted"}


@given(data=st.data())
def test_changes_end_as_programming_everything_at_once(data: Any) -> None:
    rig = Rig()
    rig.apply({})
    held: Plans = {}
    for wanted in data.draw(st.lists(clusters(), min_size=1, max_size=4)):
        extra = data.draw(st.sets(st.sampled_from(sorted({*held, *wanted}))) if held or wanted else st.just(set()))
        lists = rig.ipvs.lists, rig.sets.lists, rig.addresses.lists
        outcome = rig.apply(wanted, changed(held, wanted) | extra)
        assert (outcome.rejected, outcome.refusals) == ({}, [])
        assert (rig.ipvs.lists, rig.sets.lists, rig.addresses.lists) == lists, "a change must not read the kernel"
        held = wanted
        rig.assert_holds(held)
    written = rig.written()
    again = rig.apply(held)
    assert (again.transactions, again.repaired, rig.written()) == (0, False, written)
    assert again.rules_total == outcome.rules_total


@given(data=st.data(), edits=st.lists(st.sampled_from(sorted(EDITS)), max_size=4))
def test_edits_and_failures_are_repaired_by_the_next_check(data: Any, edits: list[str]) -> None:
    rig = Rig()
    failures = st.sets(st.integers(1, 8), max_size=3)
    for kernel in (rig.ipvs, rig.sets, rig.addresses, rig.tables):
        kernel.fail_at = data.draw(failures)
    held: Plans = {}
    todo = list(edits)
    for wanted in data.draw(st.lists(clusters(), min_size=1, max_size=4)):
        for _ in range(data.draw(st.integers(0, len(todo)))):
            EDITS[todo.pop()](rig)
        if not TRACES.intersection(edits) and data.draw(st.booleans()):
            rig.restarted()
        rig.clock.advance(data.draw(st.sampled_from([0.0, 3.0, 1000.0])))
        touched = data.draw(st.sampled_from([None, changed(held, wanted)]))
        with contextlib.suppress(KernelError):
            rig.apply(wanted, touched)
        if data.draw(st.booleans()):
            with contextlib.suppress(KernelError):
                rig.dataplane.housekeeping()
        held = wanted
    for edit in todo:
        EDITS[edit](rig)
    for kernel in (rig.ipvs, rig.sets, rig.addresses, rig.tables):
        kernel.fail_at = set()
    rig.apply(held)
    assert not rig.apply(held).rejected
    # Once its address was taken off by others, nothing tells that the stray one is at an address of ours.
    rig.assert_holds(held, foreign=[STRAY])
    written = rig.written()
    again = rig.apply(held)
    assert (again.transactions, again.repaired, rig.written()) == (0, False, written)


@given(data=st.data())
def test_only_refused_objects_are_missing_and_they_are_added_when_accepted(data: Any) -> None:
    rig = Rig()
    bad_reals = data.draw(st.sets(st.integers(1, 5), max_size=2))
    bad_server = data.draw(st.sampled_from([None, "10.96.0.98", "203.0.113.5", NODE_IP]))
    addresses = {real(number).address for number in bad_reals}
    rig.ipvs.refuse = lambda op: (
        errno.EINVAL
        if op.verb is Verb.ADD_REAL and op.real and op.real.key.address in addresses
        else errno.ENOMEM
        if op.verb is Verb.ADD_SERVER and op.server.key.address == bad_server
        else 0
    )
    held: Plans = {}
    for wanted in data.draw(st.lists(clusters(), min_size=1, max_size=3)):
        outcome = rig.apply(wanted, data.draw(st.sampled_from([None, changed(held, wanted)])))
        held = wanted
        ownership = rig.dataplane._ownership
        refused = {
            key: served
            for key in ownership.servers
            if (served := ownership.served(key))
            and (key.address == bad_server or any(each.key.address in addresses for each in served.reals))
        }
        # A virtual server or real server that stands already is not asked for again, so it is not refused either.
        for key, why in outcome.rejected.items():
            assert any(key in ownership.ports(server) and str(server) in why for server in refused)
            assert "\n" not in why
    rig.ipvs.refuse = lambda op: 0
    assert not rig.apply(held).rejected
    rig.assert_holds(held)


@given(data=st.data())
def test_new_settings_rewrite_what_depends_on_them(data: Any) -> None:
    variants = [
        SETTINGS,
        replace(SETTINGS, scheduler="mh"),
        replace(SETTINGS, masquerade_all=True),
        replace(SETTINGS, node_addresses=frozenset({NODE_IP}), node_port_ips=(NODE_IP,)),
        replace(SETTINGS, node_port_ips=()),
    ]
    rig = Rig()
    wanted = data.draw(clusters())
    for settings in data.draw(st.lists(st.sampled_from(variants), min_size=1, max_size=4)):
        rig.settings = settings
        rig.dataplane.configure(settings)
        rig.apply(wanted, ())
        rig.assert_holds(wanted)
