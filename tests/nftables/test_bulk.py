"""The elements of many ports encoded at once are those of the ports one by one, whatever the portions."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.model.plans import Endpoint, Family, ServicePlan
from kproxy.modes.nftables import names
from kproxy.modes.nftables.delta import elements
from kproxy.modes.nftables.fragments import Settings
from kproxy.modes.nftables.render import lay_out, render_base, render_port
from kproxy.modes.nftables.table_state import TableState
from kproxy.netfilter.element_codec import Encoded, coder
from kproxy.netfilter.objects import Element, Set, SetKind, Type
from tests.nftables.plans import any_plans, any_settings, build_plan, settings

STATES = st.sampled_from(Family).flatmap(lambda f: st.tuples(any_plans(f), any_settings(f)))


@given(STATES, st.integers(1, 4))
def test_portions_add_up_to_the_layout(state: tuple[list[ServicePlan], Settings], size: int) -> None:
    plans, chosen = state
    held = TableState(chosen)
    held.plans = {plan.key: plan for plan in plans}
    found: dict[str, list[Element]] = {}
    chains, sets = set(), set()
    ports = held.fragments()
    while some := dict(islice(ports, size)):
        needs = held.ownership.admit(some)
        chains.update(needs.chains)
        sets.update(needs.sets)
        for name, members in elements(needs, held.sets).items():
            assert members
            found.setdefault(name, []).extend(members)
            if name in held.sets:
                assert coder(held.sets[name]).encode(members) == coder(held.sets[name]).encode(list(members))
    layout = lay_out(render_base(chosen), [(p.key, render_port(p, chosen)) for p in plans])
    base = render_base(chosen)
    for element in base.elements:
        found.setdefault(element.set, []).append(element)
    assert {name: set(members) for name, members in found.items()} == {
        name: set(members) for name, members in layout.elements.items() if members
    }
    assert all(len(set(members)) == len(members) for members in found.values())
    assert chains | set(base.chains) == set(layout.chains.values())
    assert sets | set(base.sets) == set(layout.sets.values())


def test_an_invalid_endpoint_leaves_values_so_that_it_can_be_named() -> None:
    plan = build_plan(cluster=(1, 2))
    wrong = Endpoint("10.244.0.999", 80)
    held = TableState(settings())
    held.plans = {plan.key: replace(plan, cluster=(*plan.cluster, wrong))}
    needs = held.ownership.admit(dict(held.fragments()))
    members = elements(needs, held.sets)[names.ENDPOINTS]
    assert not isinstance(members, Encoded)
    assert [element.data for element in members][-1] == ("10.244.0.999", 80)


SLOTS = Set("endpoints", (Type.IPV4, Type.PROTO, Type.PORT, Type.SLOT), SetKind.MAP, (Type.IPV4, Type.PORT))
PAIRS = Set("pairs", (Type.IPV4, Type.IPV4))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(Set("x", (Type.IPV4, Type.PORT), SetKind.MAP, (Type.IPV4, Type.PORT)), id="no slot"),
        pytest.param(Set("x", (Type.IPV4, Type.SLOT), SetKind.VERDICTS), id="verdicts"),
        pytest.param(Set("x", (Type.IPV4, Type.SLOT), SetKind.MAP, (Type.PORT, Type.PORT)), id="no address"),
        pytest.param(SLOTS, id="a key of another length"),
    ],
)
def test_slots_are_for_maps_of_endpoints(spec: Set) -> None:
    with pytest.raises(ValueError, match=spec.name):
        coder(spec).slots(("10.96.0.1",), [Endpoint("10.244.0.1", 80)])


@pytest.mark.parametrize("end", [Endpoint("10.244.0.1", 70000), Endpoint("fd00::1", 80), Endpoint("", 80)], ids=str)
def test_invalid_endpoints_are_refused(end: Endpoint) -> None:
    with pytest.raises(ValueError, match="endpoints"):
        coder(SLOTS).slots(("10.96.0.1", "tcp", 80), [end])


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        pytest.param(Set("pairs", (Type.IPV4, Type.PORT)), "10.0.0.1", id="fields of two types"),
        pytest.param(Set("pairs", (Type.IPV4,), interval=True), "10.0.0.1", id="ranges"),
        pytest.param(PAIRS, "fd00::1", id="another family"),
    ],
)
def test_repeated_keys_are_for_plain_sets_of_one_type(spec: Set, value: str) -> None:
    with pytest.raises(ValueError, match="pairs"):
        coder(spec).repeated([value])


def test_encoded_elements_are_decoded_on_access() -> None:
    code = coder(SLOTS)
    key, ends = ("10.96.0.1", "tcp", 80), [Endpoint("10.244.0.1", 8080), Endpoint("10.244.0.2", 8080)]
    values = [Element("endpoints", (*key, slot), (end.ip, end.port)) for slot, end in enumerate(ends)]
    members = Encoded(SLOTS, code.slots(key, ends))
    assert list(members) == values
    assert (len(members), members[1], list(members[1:])) == (2, values[1], values[1:])
    assert code.encode(members, keys_only=True) == code.encode(values, keys_only=True)
