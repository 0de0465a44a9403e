"""What holds for the rules of any plan, whichever of its listeners could be had."""

from __future__ import annotations

import ipaddress
import random
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from kproxy.model.plans import Family, Protocol, ServicePlan
from kproxy.modes.iptables.render import text
from kproxy.modes.userspace.listeners import Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base, render_port
from kproxy.modes.xtables.rules import Fragment
from kproxy.trace.outcome import Fate, Probe
from tests.plans import build_plan
from tests.userspace.portal_plans import BY_CIDR, BY_INTERFACE, NODE, frontends, plan_of, portal, tracer

PLANS = plan_of("web", Protocol.TCP)
SETTINGS = st.sampled_from([BY_CIDR, BY_INTERFACE, Settings(Family.IPV4, NODE)])
PORTS = {Reach.CLUSTER: 40000, Reach.LOCAL: 40001}

# Who asks: source, interface.
POD, OUTSIDE, HOST = ("10.244.1.5", "veth5"), ("172.30.0.100", "eth0"), (NODE, "")


def shuffled(fragment: Fragment, seed: int) -> Fragment:
    """The order of rules in shared chains has no meaning."""
    rules = list(fragment.shared)
    random.Random(seed).shuffle(rules)
    return replace(fragment, shared=tuple(rules))


def led_to(plan: ServicePlan, kind: str, who: tuple[str, str], settings: Settings) -> Reach | None:
    """Which of the plan's listeners Service semantics asks for."""
    if kind == "cluster IP":
        reach = Reach.LOCAL if plan.internal_local else Reach.CLUSTER
    else:
        ranges = [ipaddress.ip_network(cidr) for cidr in plan.source_ranges]
        if kind == "load balancer IP" and ranges and not any(ipaddress.ip_address(who[0]) in cidr for cidr in ranges):
            return None
        anywhere = who is HOST or (who is POD and bool(settings.detect_local)) or not plan.external_local
        reach = Reach.CLUSTER if anywhere else Reach.LOCAL
    return reach if reach in listeners(plan) else None


@given(PLANS, SETTINGS, st.integers(0, 100))
@example(build_plan(node_port=30080, external_local=True, local=(1,)), BY_CIDR, 0)
def test_every_way_leads_where_the_policies_say(plan: ServicePlan, settings: Settings, seed: int) -> None:
    rules = tracer(plan, shuffled(render_port(portal(plan), settings), seed), settings)
    for kind, ip, port in frontends(plan):
        for who in (POD, OUTSIDE, HOST):
            ((verdict, _),) = rules.trace(Probe(who[0], ip, plan.protocol, port, who[1])).chances.items()
            reach = led_to(plan, kind, who, settings)
            assert verdict.endpoint == (f"{NODE}:{PORTS[reach]}" if reach else ""), (kind, who)


@given(PLANS, SETTINGS, st.sets(st.sampled_from(list(Reach))), st.integers(0, 100))
def test_what_comes_in_and_is_not_led_is_refused_or_dropped(
    plan: ServicePlan, settings: Settings, had: set[Reach], seed: int
) -> None:
    whole = portal(plan)
    found = Portal(plan, *(whole.port(reach) if reach in had else 0 for reach in Reach))
    rules = tracer(plan, shuffled(render_port(found, settings), seed), settings)
    for kind, ip, port in frontends(plan):
        for source, interface in (POD, OUTSIDE):
            ((verdict, _),) = rules.trace(Probe(source, ip, plan.protocol, port, interface)).chances.items()
            if verdict.fate is Fate.DELIVERED:
                continue
            some = any(found.port(reach) for reach in Reach) or not listeners(plan)
            assert verdict.fate is (Fate.DROPPED if plan.has_endpoints and some else Fate.REJECTED), (kind, source)


@given(PLANS, SETTINGS, st.sets(st.sampled_from(list(Reach))))
def test_rules_lead_only_to_listeners_of_their_own_plan(plan: ServicePlan, settings: Settings, had: set[Reach]) -> None:
    whole = portal(plan)
    found = Portal(plan, *(whole.port(reach) if reach in had else 0 for reach in Reach))
    fragment = render_port(found, settings)
    rules = [rule.rule for rule in fragment.shared if rule.table == "nat"]
    rules += [rule for _, lines in fragment.chains for rule in lines]
    ports = {int(n) for rule in rules for n in re.findall(rf"--to-ports (\d+)$|{NODE}:(\d+)$", rule) for n in n if n}
    assert ports <= {PORTS[reach] for reach in listeners(plan) if reach in had}
    assert all("REDIRECT" in rule or "DNAT" in rule or " -j KUBE-EXT-" in rule for rule in rules)
    if not listeners(plan):
        assert rules == []


@given(PLANS, SETTINGS)
def test_a_change_of_endpoints_alone_changes_no_rule(plan: ServicePlan, settings: Settings) -> None:
    moved: dict[str, Any] = {
        name: tuple(replace(endpoint, ip=f"10.244.9.{n}") for n, endpoint in enumerate(getattr(plan, name)))
        for name in ("cluster", "local", "reachable")
    }
    assert render_port(portal(replace(plan, **moved)), settings) == render_port(portal(plan), settings)


@given(st.lists(PLANS, max_size=1), PLANS, SETTINGS)
def test_rendering_is_a_function_of_the_portal(
    others: list[ServicePlan], plan: ServicePlan, settings: Settings
) -> None:
    before = render_port(portal(plan), settings)
    for other in others:
        render_port(portal(other), settings)
    assert render_port(portal(plan), settings) == before
    whole = text(render_base(settings), [(plan.key, before)])
    jumps = set(re.findall(r"-j (KUBE-\S+)$", whole, re.MULTILINE))
    assert jumps <= set(re.findall(r"^:(KUBE-\S+) ", whole, re.MULTILINE)), "every jump leads to a chain"
