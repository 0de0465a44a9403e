"""`kproxy trace`: where a packet goes, by which rules and with which probability. Writes nothing to the kernel."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import click

from kproxy.cli.exits import DONE
from kproxy.cli.live_kernel import Met
from kproxy.cli.options import CONTEXT, Inputs, with_inputs
from kproxy.config.fields import ProxyMode
from kproxy.conntrack.stale_flows import Flow
from kproxy.errors import InvalidInput
from kproxy.model.addresses import canonical_ip
from kproxy.model.node_info import family_of
from kproxy.model.plans import PROTOCOLS, Family, Protocol, ServicePlan, address_port
from kproxy.trace.live import LiveOutcome
from kproxy.trace.outcome import Branch, Fate, Host, Outcome, Probe, Step

NODE = "node"
MOST_PORTS = 5
WIDTH = 100
_SERVICE = re.compile(r"([^/\s]+)/([^/:\s]+)(?::(\S+))?")
_COMMENT = re.compile(r'--comment (?:"([^"]*)"|(\S+))|comment "([^"]*)"')
_JUMP = re.compile(r"(?:jump|goto|-j|-g) (?!ACCEPT|DROP|REJECT|RETURN|MARK|DNAT|MASQUERADE|REDIRECT)(\S+)")
_PORTALS = {"KUBE-PORTALS-CONTAINER", "KUBE-PORTALS-HOST", "KUBE-NODEPORT-CONTAINER", "KUBE-NODEPORT-HOST"}
_FATES = {Fate.DELIVERED: "forwarded", Fate.REJECTED: "rejected", Fate.DROPPED: "dropped"}


class Target(NamedTuple):
    """An address and port that is asked for. name: what it is, "" for one that was given as such."""

    ip: str
    port: int
    protocol: Protocol
    name: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """The rules that are traced. own: the node's address by family. tracked: the entries of connection tracking."""

    host: Host
    own: Mapping[Family, str]
    trace: Callable[[Probe], LiveOutcome]
    plans: Sequence[ServicePlan] = ()
    tracked: Callable[[Probe], Sequence[Flow]] = lambda probe: ()
    send: Callable[[Probe, int], Mapping[Met, int]] = lambda probe, count: {}


class Traced(NamedTuple):
    """A target, the packet to it, and what becomes of it. flows: the entries of connection tracking for its client.
    sent: what real connections met."""

    target: Target
    probe: Probe
    found: LiveOutcome
    flows: Sequence[Flow] = ()
    sent: Mapping[Met, int] = {}


@click.command("trace", context_settings=CONTEXT)
@click.argument("source", metavar="FROM")
@click.argument("to", metavar="TO")
@click.option("--interface", default="", help="By which interface the packet comes in.  [default: by the routes]")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "sctp"]), help="Of TO.  [default: tcp, or the Service's]")
@click.option(
    "--send", "count", type=click.IntRange(1, 1000), help="Also open so many connections. FROM is `node`, by TCP."
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@with_inputs
def command(
    source: str, to: str, interface: str, protocol: str | None, count: int | None, form: str, inputs: Inputs
) -> int:
    """Show where a packet goes, by the rules that this node holds now, whoever wrote them.

    FROM is an IP address, or `node` for the node itself. TO is IP:PORT, [IPv6]:PORT, or NAMESPACE/NAME[:PORT], which
    stands for every address of that Service. With --mode, and the cluster of -f or the kubeconfig, the rules are those
    that would be programmed.
    """
    if count and (source != NODE or inputs.mode_given):
        raise InvalidInput(
            "--send: needs FROM `node`, and no --mode: the connections are this node's, by its live rules"
        )
    subject = _rendered(inputs) if inputs.mode_given else _live(inputs, needs_cluster="/" in to)
    asked = PROTOCOLS.get((protocol or "").upper())
    traces = []
    for target in _targets(to, asked, subject):
        if probe := _probe(source, interface, target, subject):
            if count and probe.protocol is not Protocol.TCP:
                raise InvalidInput(f"--send: only TCP connections are opened, {to} is {probe.protocol}")
            flows, found = subject.tracked(probe), subject.trace(probe)
            traces.append(Traced(target, probe, found, flows, subject.send(probe, count) if count else {}))
    if not traces:
        raise InvalidInput(f"{source} and {to} have no IP family in common")
    host = subject.host
    click.echo(_json(traces, host) if form == "json" else "\n".join(_text(each, host) for each in traces), nl=False)
    return DONE


# ---------------------------------------------------------------- what is traced


def _live(inputs: Inputs, needs_cluster: bool) -> Subject:
    """The kernel of this node. Raises NetlinkError, KernelError."""
    from kproxy.cli.live_kernel import LiveKernel

    kernel = LiveKernel()
    click.get_current_context().call_on_close(kernel.close)
    plans = [p for f in inputs.preview()[0].families.values() for p in f.plans.values()] if needs_cluster else []
    return Subject(kernel.host, kernel.own, kernel.trace, plans, kernel.tracked, kernel.send)


def _rendered(inputs: Inputs) -> Subject:
    """What the node would program for the cluster. Raises as Inputs.preview, and InvalidInput."""
    from kproxy.trace.iptables import IptablesTracer
    from kproxy.trace.nftables import NftablesTracer

    preview, _ = inputs.preview()
    host = Host(frozenset(preview.node.addresses))
    tracers: dict[Family, Any] = {}
    for family in Family:
        match inputs.config.mode:
            case ProxyMode.IPTABLES:
                tracers[family] = IptablesTracer(preview.iptables(family), family, host)
            case ProxyMode.NFTABLES:
                tracers[family] = NftablesTracer(preview.nftables_layout(family), host)
            case mode:
                raise InvalidInput(f"--mode: rules of mode {mode} cannot be traced before they are programmed")
    plans = [plan for plans in preview.families.values() for plan in plans.plans.values()]
    own = {family: preview.node.ip(family) for family in Family}
    return Subject(host, own, lambda probe: LiveOutcome(tracers[probe.family].trace(probe)), plans)


def _targets(to: str, protocol: Protocol | None, subject: Subject) -> Iterator[Target]:
    """What TO stands for. Raises InvalidInput."""
    if found := _SERVICE.fullmatch(to):
        yield from _frontends(found[1], found[2], found[3], protocol, subject)
        return
    ip, _, port = to.rpartition(":")
    ip = ip[1:-1] if ip.startswith("[") and ip.endswith("]") else "" if ":" in ip else ip
    address = canonical_ip(ip)
    if address is None or not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise InvalidInput(f"TO: must be IP:PORT, [IPv6]:PORT or NAMESPACE/NAME[:PORT], is {to!r}")
    yield Target(address, int(port), protocol or Protocol.TCP)


def _frontends(
    namespace: str, name: str, port: str | None, protocol: Protocol | None, subject: Subject
) -> Iterator[Target]:
    plans = [p for p in subject.plans if (p.key.namespace, p.key.name) == (namespace, name)]
    if not plans:
        raise InvalidInput(f"there is no Service {namespace}/{name} with a cluster IP")
    chosen = [p for p in plans if port in (None, p.key.port, str(p.port)) and protocol in (None, p.protocol)]
    if not chosen:
        there = ", ".join(sorted({f"{p.key.port or p.port}/{p.protocol}" for p in plans}))
        raise InvalidInput(f"Service {namespace}/{name} has no such port: it has {there}")
    for plan in chosen:
        yield Target(plan.cluster_ip, plan.port, plan.protocol, f"{plan.key}, cluster IP")
        for what, ips in (("external IP", plan.external_ips), ("load balancer IP", plan.load_balancer_ips)):
            yield from (Target(ip, plan.port, plan.protocol, f"{plan.key}, {what}") for ip in ips)
        if plan.node_port and (own := subject.own.get(plan.family)):
            yield Target(own, plan.node_port, plan.protocol, f"{plan.key}, node port")


def _probe(source: str, interface: str, target: Target, subject: Subject) -> Probe | None:
    """The packet, None if the two are of different families. Raises InvalidInput."""
    family = family_of(target.ip)
    if source == NODE:
        route = subject.host.route(target.ip)
        ip = (route.source if route else "") or subject.own.get(family) or ""
        return Probe(ip, target.ip, target.protocol, target.port) if ip else None
    ip = canonical_ip(source) or ""
    if not ip:
        raise InvalidInput(f"FROM: must be an IP address or {NODE!r}, is {source!r}")
    if family_of(ip) is not family:
        return None
    if not interface and not subject.host.owns(ip):
        route = subject.host.route(ip)
        interface = route.interface if route else "unknown"
    return Probe(ip, target.ip, target.protocol, target.port, interface)


# ---------------------------------------------------------------- what is shown


def reason(step: Step) -> str:
    """Why a rule is there, in plain words: by its comment or that of the element that matched, else by what it does."""
    if step.element:
        return step.element
    if found := _COMMENT.search(step.rule):
        return next(filter(None, found.groups()), "")
    rule = step.rule.lower()
    for word, why in _REASONS:
        if word in rule:
            return why
    return ""


_REASONS = (
    ("policy drop", "what no rule accepted is dropped"),
    ("masquerade", "the source becomes an address of the node"),
    ("dnat", "to an endpoint"),
    ("redirect", "to a port of the node"),
    ("reject", "the sender is told"),
    ("drop", "without an answer"),
    ("mark", "remembered by a mark"),
    ("accept", "nothing more in this table"),
)


def fate_of(branch: Branch, probe: Probe, host: Host) -> str:
    """forwarded, rejected, dropped, delivered (to the node itself), or unclaimed: no Service's, and routed on."""
    if branch.verdict.fate is Fate.UNTOUCHED:
        return "delivered" if host.owns(probe.destination) else "unclaimed"
    return _FATES[branch.verdict.fate]


def _json(traces: Iterable[Traced], host: Host) -> str:
    return json.dumps({"traces": [_as_json(each, host) for each in traces]}, indent=2) + "\n"


def _followed(flows: Sequence[Flow]) -> dict[str, list[int]]:
    """The client's ports whose packets follow an entry, by the endpoint that the entry leads to."""
    found: dict[str, list[int]] = {}
    for flow in flows:
        found.setdefault(address_port(flow.reply_source, flow.reply_port), []).append(flow.source_port)
    return {endpoint: sorted(ports) for endpoint, ports in sorted(found.items())}


def _compared(traced: Traced, host: Host) -> list[tuple[Met, int, Fraction]]:
    """What connections met, how many of them, and the probability of it; also what was predicted and met none."""
    left: dict[str, Fraction] = {}
    for branch in traced.found.outcome.branches:
        fate = fate_of(branch, traced.probe, host)
        end = branch.verdict.endpoint or address_port(traced.probe.destination, traced.probe.port)
        key = {"rejected": "refused", "dropped": "no answer"}.get(fate, end)
        left[key] = left.get(key, Fraction()) + branch.probability
    rows = []
    for met, count in sorted(traced.sent.items()):
        rows.append((met, count, left.get(met.endpoint or met.how, Fraction())))
    known = {met.endpoint or met.how for met in traced.sent}
    unmet = [
        (Met(key, "") if key in ("refused", "no answer") else Met("connected", key)) for key in left if key not in known
    ]
    return rows + [(met, 0, left[met.endpoint or met.how]) for met in unmet]


def _as_json(traced: Traced, host: Host) -> dict[str, object]:
    target, probe, found, flows, sent = traced
    return {
        "probe": {
            "from": probe.source,
            "to": address_port(probe.destination, probe.port),
            "port": target.name,
            "protocol": probe.protocol.lower(),
            "interface": probe.interface,
        },
        "conntrack": [{"endpoint": end, "sourcePorts": ports} for end, ports in _followed(flows).items()] or None,
        "outcomes": outcome_values(found.outcome, probe, host),
        "sent": [
            {"met": met.how, "endpoint": met.endpoint or None, "count": count, "predicted": str(predicted)}
            for met, count, predicted in _compared(traced, host)
        ]
        if sent
        else None,
        "unknown": [{**_step(step), "why": why} for step, why in found.unknown],
    }


def outcome_values(outcome: Outcome, probe: Probe, host: Host) -> list[dict[str, object]]:
    """The branches of an outcome for JSON."""
    return [
        {
            "probability": str(branch.probability),
            "fate": fate_of(branch, probe, host),
            "endpoint": branch.verdict.endpoint or None,
            "source": branch.source,
            "masqueraded": branch.verdict.masqueraded,
            "steps": [{**_step(step), "why": reason(step)} for step in branch.steps],
        }
        for branch in outcome.branches
    ]


def _step(step: Step) -> dict[str, str]:
    return {"table": step.table, "chain": step.chain, "rule": step.rule}


def _text(traced: Traced, host: Host) -> str:
    """The way as a tree: a line for each rule that matched, forks with their probability, and the ends."""
    target, probe, found, flows, sent = traced
    name = f" ({target.name})" if target.name else ""
    way = f"comes in by {probe.interface}" if probe.interface else "sent by the node"
    to = address_port(probe.destination, probe.port)
    lines = [f"{probe.source} → {to}/{probe.protocol.lower()}{name}, {way}"]
    for endpoint, ports in _followed(flows).items():
        shown = ", ".join(map(str, ports[:MOST_PORTS])) + (
            f" and {len(ports) - MOST_PORTS} more" * (len(ports) > MOST_PORTS)
        )
        why = "connection tracking has an entry: these packets pass no rule that translates"
        lines += _wrapped(f"from port {shown}: follows its connection to {endpoint}", "  = ", why)
    for step, why in found.unknown:
        lines += _wrapped(f"depends on {step.table} {step.chain}: {step.rule}", "  ! ", f"not known: {why}")
    lines += outcome_lines(found.outcome, probe, host, "  ")
    if sent:
        lines.append(f"  sent {sum(sent.values())} connections:")
        for met, count, predicted in _compared(traced, host):
            where = f" {'from' if met.how == 'no answer' else 'to'} {met.endpoint}"
            lines += _wrapped(f"{count} {met.how}{where * bool(met.endpoint)} (predicted: {predicted})", "    ")
    return "".join(f"{line}\n" for line in lines)


def outcome_lines(outcome: Outcome, probe: Probe, host: Host, indent: str) -> list[str]:
    """An outcome as a tree, one line a rule that matched."""
    branches = [(b.probability, telling(b.steps), b) for b in outcome.branches]
    return _tree(branches, Fraction(1), indent, probe, host)


def _tree(
    branches: Sequence[tuple[Fraction, list[Step], Branch]], whole: Fraction, indent: str, probe: Probe, host: Host
) -> list[str]:
    """The lines for branches that share everything before their remaining steps. whole: their probability together."""
    groups: dict[Step | str, list[tuple[Fraction, list[Step], Branch]]] = {}
    for probability, steps, branch in branches:
        key = steps[0] if steps else _end(branch, probe, host)
        groups.setdefault(key, []).append((probability, steps, branch))
    lines: list[str] = []
    for key, members in groups.items():
        part = sum((probability for probability, _, _ in members), Fraction())
        share = f"{part / whole} " if len(groups) > 1 else ""
        inner = f"{indent}  " if len(groups) > 1 else indent
        if isinstance(key, str):
            lines += _wrapped(f"{share}{key}", f"{indent}⇒ ")
            continue
        mark = f"{indent}├ " if len(groups) > 1 else f"{indent}│ "
        lines += _wrapped(f"{share}{key.table} {key.chain}: {key.rule}", mark, reason(key))
        rest = [(probability, steps[1:], branch) for probability, steps, branch in members]
        lines += _tree(rest, part, inner, probe, host)
    return lines


def telling(steps: Sequence[Step]) -> list[Step]:
    """The steps without jumps to chains in which nothing matched."""
    kept: list[Step] = []
    for step in reversed(steps):
        jump = _JUMP.search(step.rule)
        if not jump or (kept and kept[-1].chain == jump[1]):
            kept.append(step)
    return kept[::-1]


def _wrapped(text: str, indent: str, why: str = "") -> list[str]:
    after = " " * len(indent)
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{after}  ", break_long_words=False)
    return lines + textwrap.wrap(why, WIDTH, initial_indent=f"{after}  · ", subsequent_indent=f"{after}    ")


def _end(branch: Branch, probe: Probe, host: Host) -> str:
    fate, output = fate_of(branch, probe, host), f" by {branch.output}" if branch.output else ""
    match fate:
        case "forwarded":
            seen = f", which sees {branch.source}" if branch.source else ""
            taken = ", the forwarder of userspace mode" if any(s.chain in _PORTALS for s in branch.steps) else ""
            return f"forwarded to {branch.verdict.endpoint}{taken}{output}{seen}"
        case "delivered":
            return "delivered to the node itself: no Service's"
        case "unclaimed":
            return f"no Service's: routed on{output}"
    last = branch.steps[-1] if branch.steps else None
    return f"{fate} by {last.table} {last.chain}" if last else fate
