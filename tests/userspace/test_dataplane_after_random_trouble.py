"""Whatever changes and fails in whatever order, one good apply ends where a fresh node would have ended."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import KernelError
from kproxy.kernel.iptables import Backend
from kproxy.model.plans import Family, PortKey, Protocol
from kproxy.modes.iptables.render import text
from kproxy.modes.userspace.apply import UserspaceDataplane
from kproxy.modes.userspace.listeners import Listener, ListenerKey, Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base, render_port
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.iptables import FakeTables
from tests.plans import Plans, changed
from tests.userspace.portal_plans import BY_CIDR, BY_INTERFACE, plans

V4 = Family.IPV4
PLANS = plans(list(Protocol))
DOORS = st.builds(
    lambda name, protocol, reach: ListenerKey(PortKey("default", name, "http", protocol), reach),
    st.sampled_from("abc"),
    st.sampled_from(Protocol),
    st.sampled_from(Reach),
)
EDITS = (
    "*nat\n:KUBE-PORTALS-CONTAINER - [0:0]\nCOMMIT\n",
    "*nat\n-F PREROUTING\n-F OUTPUT\nCOMMIT\n",
    "*filter\n:KUBE-PROXY-PORTS - [0:0]\n-F INPUT\nCOMMIT\n",
    "*nat\n:KUBE-EXT-STALESTALESTALE2 - [0:0]\n-A KUBE-EXT-STALESTALESTALE2 -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n",
)

Doors = dict[ListenerKey, Listener]


def lines(saved: str) -> list[str]:
    """What a saved text holds, but for the order of rules."""
    return sorted(line for line in saved.splitlines() if line and line[0] in "*:-")


def rendered(wanted: Plans, forwarder: FakeForwarder, settings: Settings, backend: Backend) -> list[str]:
    """What the tables of a fresh node hold after everything was written at once, at the ports that listen now."""
    portals = {
        key: Portal(plan, *(forwarder.ports.get((V4, ListenerKey(key, reach)), 0) for reach in Reach))
        for key, plan in wanted.items()
    }
    tables = FakeTables(V4, backend)
    tables.restore(text(render_base(settings), ((key, render_port(p, settings)) for key, p in portals.items())))
    return lines(tables.save())


def wanted_doors(wanted: Plans, refused: set[ListenerKey]) -> Doors:
    found = {ListenerKey(key, r): new for key, plan in wanted.items() for r, new in listeners(plan).items()}
    return {key: new for key, new in found.items() if key not in refused}


def held_doors(forwarder: FakeForwarder) -> Doors:
    return {key: listener for (_, key), listener in forwarder.listeners.items()}


@given(data=st.data(), backend=st.sampled_from(list(Backend)))
def test_changes_end_where_writing_everything_ends(data: Any, backend: Backend) -> None:
    tables, forwarder = FakeTables(V4, backend), FakeForwarder()
    dataplane = UserspaceDataplane(BY_CIDR, tables, forwarder)
    dataplane.apply({}, None)
    held: Plans = {}
    for wanted in data.draw(st.lists(PLANS, min_size=1, max_size=4)):
        reads = tables.saves
        outcome = dataplane.apply(wanted, changed(held, wanted))
        held = wanted
        assert tables.saves == reads, "a change must not read the kernel"
        assert outcome.refusals == []
        assert {key.protocol for key in outcome.rejected} <= {Protocol.SCTP}
        assert held_doors(forwarder) == wanted_doors(wanted, set())
        assert lines(tables.save()) == rendered(wanted, forwarder, BY_CIDR, backend)
    assert dataplane.apply(held, None).transactions == 0


@given(data=st.data(), backend=st.sampled_from(list(Backend)))
def test_trouble_is_healed_by_the_next_full_apply(data: Any, backend: Backend) -> None:
    tables, forwarder = FakeTables(V4, backend), FakeForwarder()
    dataplane = UserspaceDataplane(BY_CIDR, tables, forwarder)
    tables.fail_at = data.draw(st.sets(st.integers(1, 8), max_size=3))
    held: Plans = {}
    failed = True
    settings = BY_CIDR
    for wanted in data.draw(st.lists(PLANS, min_size=1, max_size=4)):
        match data.draw(st.sampled_from(["", "die", "edit", "refuse", "refuse rules", "permit", "settings"])):
            case "die":
                forwarder.die()
            case "edit":
                with contextlib.suppress(KernelError):
                    tables.restore(data.draw(st.sampled_from(EDITS)))
            case "refuse":
                forwarder.refuse(V4, data.draw(DOORS))
            case "refuse rules":
                name = data.draw(st.sampled_from("abc"))
                tables.refuse = lambda table, chain, rule, name=name: f"default/{name}:" in rule  # type: ignore[misc]
            case "permit":
                tables.refuse = lambda table, chain, rule: False
                forwarder.permit(V4, data.draw(DOORS))
            case "settings":
                settings = BY_INTERFACE if settings is BY_CIDR else BY_CIDR
                dataplane.configure(settings)
        full = failed or data.draw(st.booleans())
        try:
            dataplane.apply(wanted, None if full else changed(held, wanted))
        except KernelError:
            failed = True
        else:
            failed = False
            assert forwarder.alive(V4)
        held = wanted
    tables.fail_at, tables.refuse = set(), lambda table, chain, rule: False
    refused = set(wanted_doors(held, set())) - set(held_doors(forwarder))
    for key in refused:
        forwarder.permit(V4, key)
    outcome = dataplane.apply(held, None)
    assert {key.protocol for key in outcome.rejected} <= {Protocol.SCTP}
    assert held_doors(forwarder) == wanted_doors(held, set())
    assert lines(tables.save()) == rendered(held, forwarder, settings, backend)
    assert not dataplane.drifted()


@given(wanted=PLANS, refused=st.sets(DOORS, max_size=4), again=st.booleans())
def test_ports_are_refused_by_the_listeners_that_they_miss(
    wanted: Plans, refused: set[ListenerKey], again: bool
) -> None:
    tables, forwarder = FakeTables(), FakeForwarder()
    dataplane = UserspaceDataplane(BY_CIDR, tables, forwarder)
    for key in refused:
        forwarder.refuse(V4, key)
    outcome = dataplane.apply(wanted, None)
    if again:
        outcome = dataplane.apply(wanted, [])
    missing = {door.key for door in wanted_doors(wanted, set()) if door in refused}
    sctp = {key for key, plan in wanted.items() if key.protocol is Protocol.SCTP and plan.has_endpoints}
    assert outcome.rejected.keys() == missing | sctp
    assert held_doors(forwarder) == wanted_doors(wanted, refused)
    assert lines(tables.save()) == rendered(wanted, forwarder, BY_CIDR, Backend.NFT)
    led = {int(number) for number in re.findall(r"--to-ports (\d+)", tables.save())}
    assert led <= set(forwarder.ports.values())
