"""Objects that other tools flush or delete are noticed and added again."""

from __future__ import annotations

import pytest

from kproxy.model.plans import Family, ServicePlan
from tests.ipvs.nodes import Node
from tests.ipvs.readers import by_gnlpy, by_pyroute2, gnlpy_client, shown, wanted

pytestmark = pytest.mark.ipvs_kernel

EDITS = (
    "gnlpy flush",
    "ipset flush",
    "ipset flush KUBE-CLUSTER-IP",
    "ip address flush dev kube-ipvs0",
    "ip link delete kube-ipvs0",
)
PACE = 10  # seconds; there are fewer sets than that in use


@pytest.fixture(scope="module")
def plans(node: Node) -> dict[Family, list[ServicePlan]]:
    return {family: node.all_kinds(family) for family in Family}


def test_other_tools_read_what_was_asked_for(node: Node, plans: dict[Family, list[ServicePlan]]) -> None:
    for family in Family:
        assert node.serve(family, *plans[family]).rejected == {}
    assert shown(node.space) == wanted(node.wanted())
    held = {
        (*server.key, server.scheduler, server.flags, server.timeout): {(*each.key, each.weight, 0) for each in reals}
        for outcome in node.wanted()
        for server, reals in outcome.served
    }
    assert by_pyroute2(node.space) == by_gnlpy(node.space) == held
    for family in Family:
        assert node.check(family).transactions == 0


@pytest.mark.parametrize("edit", EDITS)
def test_what_others_break_is_noticed_and_repaired(
    node: Node, plans: dict[Family, list[ServicePlan]], edit: str
) -> None:
    for family in Family:
        node.serve(family, *plans[family])
        assert not node.notices(family, 2)
    if edit.startswith("gnlpy"):
        with gnlpy_client(node.space) as client:
            client.flush()
    else:
        node.space.run(edit.split())
    assert shown(node.space) != wanted(node.wanted())
    for family in Family:
        broken = not (edit.endswith("CLUSTER-IP") and family is Family.IPV6)
        assert node.notices(family, PACE) == broken
        assert node.check(family).repaired == broken
    assert shown(node.space) == wanted(node.wanted())
    for family in Family:
        assert not node.notices(family, 2)
        assert set(node.ask(plans[family][0], 2)) <= {"a", "b", "c"}
