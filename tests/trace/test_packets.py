"""What a trace of the live kernel predicts is what connections meet: in each mode, beside other programs' rules.

A state is a random choice of Services with random endpoints, in a random mode, family and backend, and random rules of
others. KPROXY_TRACE_STATES sets how many are tried, KPROXY_TRACE_SEED which: `make test-trace` tries 300.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
from msgspec import convert

from kproxy.cli.live_kernel import LiveKernel
from kproxy.config.files import from_text
from kproxy.kernel.legacy_tables import loaded
from kproxy.lab import probes
from kproxy.lab.clusters import (
    BALANCER,
    CLIENT,
    CLIENT_OTHER,
    CLUSTER_CIDRS,
    SERVICES,
    Cluster,
    build,
    gateway_of,
    node_address,
)
from kproxy.lab.namespaces import unavailable
from kproxy.lab.probes import Answered, Nothing
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import PODS, PORTS, End, Via, node_objects
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.model.plans import Family, Protocol
from kproxy.modes.preview import Preview, load
from kproxy.trace.live import LiveOutcome
from kproxy.trace.outcome import Branch, Fate, Probe

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]
STATES, SEED = int(os.environ.get("KPROXY_TRACE_STATES", 16)), int(os.environ.get("KPROXY_TRACE_SEED", 1))
MODES = ("iptables-nft", "iptables-legacy", "nftables", "userspace-nft", "userspace-legacy")
BUILT_IN = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
            "raw": ("PREROUTING", "OUTPUT"), "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
            "security": ("INPUT", "FORWARD", "OUTPUT")}  # fmt: skip
PROXY_PORTS = range(40000, 40080)
PROBES_AT_ONCE = 16
MOST_ATTEMPTS = 40  # after which three equal ends have all been met, except in one run of 10**7
CLIENTS = {"a": "veth11", "caller": "veth13", "client": "eth0", "client-other": "eth0", "node1": ""}
ENDS = (
    End("a"),
    End("b"),
    End("far"),
    End("b", ready=False, serving=True, terminating=True),
    End("far", zone="zone-1"),
)
FAR = PODS[-1]
PODS_IPS = {pod.ip(f) for pod in PODS for f in Family}
SERVED = {(pod.ip(f), port): pod.name for pod in PODS for f in Family for port in PORTS.get(pod.name, ())}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with build(PODS, PORTS) as found:
        own = [ip for f in Family for ip in (node_address(1, f), gateway_of(1, f))]
        found.servers.add(found.spaces["node1"], "forwarder", (*own, "127.0.0.1"), PROXY_PORTS)
        for network in (each for networks in SERVICES.values() for each in networks):  # where nobody has claimed them
            found.spaces["router"].run(["ip", "route", "add", "local", network, "dev", "lo"])
        yield found


class State:
    """One random state: its rules by the tool that loads them, and the probes to make."""

    def __init__(self, seed: int, mode: str = "") -> None:
        self.rng = rng = random.Random(seed)
        self.mode, self.family = mode or MODES[seed % len(MODES)], rng.choice(list(Family))
        plain = [each for each in SCENARIOS if not each.ingress and each.spec.get("sessionAffinity") is None]
        self.scenarios = rng.sample(plain, 5)
        changed = [rng.sample(ENDS, rng.randrange(4)) if rng.random() < 0.5 else s.ends for s in self.scenarios]
        of_services = (s.objects(tuple(ends)) for s, ends in zip(self.scenarios, changed, strict=True))
        objects = [*node_objects(), *(each for found in of_services for each in found)]
        kinds: dict[Kind, list[Object]] = {}
        for item in objects:
            kinds.setdefault(Kind(item["kind"]), []).append(convert(item, TYPES[Kind(item["kind"])]))
        own = [ip for f in Family for ip in (node_address(1, f), gateway_of(1, f))]
        config = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
                  "clusterCIDR": rng.choice([CLUSTER_CIDRS, CLUSTER_CIDRS, ""]),
                  **{mode: {"masqueradeAll": rng.random() < 0.2} for mode in ("iptables", "nftables")}}  # fmt: skip
        host = NodeInfo(ips=tuple(node_address(1, f) for f in Family), addresses=(*own, "127.0.0.1", "::1"))
        self.preview = Preview(load("node1", kinds)[0], from_text(json.dumps(config)), host)
        self.nft, self.iptables = foreign(rng, self.family)

    def commands(self) -> Iterator[tuple[list[str], str]]:
        """Each command that loads rules, and its input."""
        tool = "iptables" if self.family is Family.IPV4 else "ip6tables"
        backend = "legacy" if self.mode.endswith("legacy") else "nft"
        if self.mode == "ipvs":
            sections = self.preview.ipvs(self.family).native().split("# ")[1:]
            for command, _, given in (section.partition("\n") for section in sections):
                yield command.split(), given
            yield [f"{tool}-{backend}-restore", "--noflush"], self.iptables
            yield ["nft", "-f", "-"], self.nft
            return
        render = self.preview.nftables if self.mode == "nftables" else self.preview.iptables
        rules = self.preview.userspace(self.family).rules if "userspace" in self.mode else render(self.family)
        yield ["nft", "-f", "-"] if self.mode == "nftables" else [f"{tool}-{backend}-restore"], rules
        yield [f"{tool}-{backend}-restore", "--noflush"], self.iptables
        yield ["nft", "-f", "-"], self.nft

    def probes(self) -> Iterator[tuple[str, Probe]]:
        """Each client, and what it sends."""
        for scenario in self.scenarios:
            port = self.rng.choice(scenario.ports)
            for via in Via:
                if via is Via.LOCALHOST and self.rng.random() < 0.8:
                    continue
                number = scenario.port(via, port) + (self.rng.random() < 0.1) * 7
                names = ["node1"] if via is Via.LOCALHOST else self.rng.sample(list(CLIENTS), 2)
                for name in names:
                    yield name, self.probe(name, scenario.address(via, self.family), port.protocol, number)
        for pod in PODS[::3]:
            for name in ("caller", "client", "node1") if pod.node == 1 else ("caller", "node1"):
                yield name, self.probe(name, pod.ip(self.family), Protocol.TCP, self.rng.choice([8080, 9999]))

    def probe(self, name: str, ip: str, protocol: Protocol, port: int) -> Probe:
        f = self.family
        known = {"client": CLIENT[f], "client-other": CLIENT_OTHER[f], "node1": node_address(1, f)}
        own = known.get(name) or next(pod for pod in PODS if pod.name == name).ip(f)
        return Probe(own, ip, protocol, port, CLIENTS[name])


def foreign(rng: random.Random, family: Family) -> tuple[str, str]:
    """Random rules of others: for nft, and for iptables-restore. None of them is about replies."""
    ip, pods = ("ip", "10.244.1.0/24") if family is Family.IPV4 else ("ip6", "fd00:244:1::/64")
    one, client = PODS[0].ip(family), CLIENT[family]
    service = SCENARIOS[0].address(Via.CLUSTER_IP, family).rpartition(".1." if ip == "ip" else ":")[0]
    services = f"{service}.0.0/16" if ip == "ip" else "fd00:96::/64"
    icmp = "icmp" if ip == "ip" else "ipv6-icmp"
    matches = [
        (f"{ip} saddr {pods}", f"-s {pods}"), (f"{ip} daddr {pods}", f"-d {pods}"), (f"{ip} daddr {one}", f"-d {one}"),
        (f"{ip} daddr {services}", f"-d {services}"), (f"{ip} saddr != {client}", f"! -s {client}"),
        ("tcp dport 8080", "-p tcp -m tcp --dport 8080"), ("udp dport 1-1024", "-p udp -m udp --dport 1:1024"),
        ("tcp dport { 80, 9090, 9999 }", "-p tcp -m multiport --dports 80,9090,9999"),
        ("iifname \"veth*\"", "-i veth+"), ("oifname \"veth11\"", "-o veth11"), ("iif eth0", "-i eth0"),
        ("ct mark 0x1", "-m connmark --mark 0x1"), ("ct status dnat", "-m conntrack --ctstate DNAT"),
        ("mark and 0x4000 == 0x4000", "-m mark --mark 0x4000/0x4000"),
        ("fib daddr type local", "-m addrtype --dst-type LOCAL"), ("meta l4proto tcp", "-p tcp"),
        ("numgen random mod 4 < 1", "-m statistic --mode random --probability 0.25"),
    ]  # fmt: skip
    verdicts = [
        ("accept", "-j ACCEPT"), ("drop", "-j DROP"), ("return", "-j RETURN"), ("counter", ""),
        ("meta mark set meta mark or 0x4000", "-j MARK --set-xmark 0x4000/0x4000"),
        ("meta mark set 0x1", "-j MARK --set-xmark 0x1/0xffffffff"), ("jump own", "-j OWN"),
        ("ct mark set 0x1", "-j CONNMARK --set-mark 0x1"), ("reject", "-j REJECT"),
    ]  # fmt: skip
    nft, saved = [], []
    for number in range(rng.randrange(3)):
        hook = rng.choice(["prerouting", "input", "forward", "output", "postrouting"])
        usable = [m for m in matches if not ("oif" in m[0] and hook in ("prerouting", "input"))]
        usable = [m for m in usable if not ("iif" in m[0] and hook in ("output",))]
        refuses = [v for v in verdicts if v[0] != "reject" or hook in ("input", "forward", "output")]
        rules = [f"{rng.choice(usable)[0]} {rng.choice(refuses)[0]}" for _ in range(rng.randrange(1, 4))]
        family_ = rng.choice([ip, "inet"])
        priority, policy = rng.choice([-310, -190, -110, -50, 10, 110]), rng.choice(["accept", "accept", "drop"])
        if priority < -200:  # before connection tracking: replies are recognised by their destination
            policy, state = "accept", rng.choice(["", "ct state invalid ", "ct state new ", "ct mark 0x0 "])
            rules = [f"{ip} daddr {services} {state}{rng.choice(refuses)[0]}"]
        nft.append(
            f"table {family_} foreign{number} {{\n chain own {{\n  {rng.choice(usable)[0]} "
            f"{rng.choice(['drop', 'accept', 'return'])}\n }}\n"
            f" chain base {{\n  type filter hook {hook} priority {priority}; policy {policy};\n"
            f"  ct state established,related accept\n  meta l4proto {icmp} accept\n"
            + "".join(f"  {rule}\n" for rule in rules)
            + " }\n}\n"
        )
    if rng.random() < 0.4:
        to = one if ip == "ip" else f"[{one}]"
        extra = rng.choice([
            ("prerouting", rng.choice([-101, -99]), f"tcp dport {rng.choice([80, 9090])} dnat to {to}:8080"),
            ("output", rng.choice([-101, -99]), f"{ip} daddr {BALANCER[family]} dnat to {one}"),
            ("postrouting", rng.choice([99, 101]), f"{ip} saddr {pods} masquerade"),
            ("postrouting", rng.choice([99, 101]), f"{ip} daddr {one} snat to {gateway_of(1, family)}"),
        ])  # fmt: skip
        nft.append(f"table {ip} nat-of-others {{\n chain base {{\n  type nat hook {extra[0]} priority {extra[1]};\n"
                   f"  {extra[2]}\n }}\n}}\n")  # fmt: skip
    for table, chains in BUILT_IN.items():
        if table not in ("filter", "mangle", "raw"):
            continue
        if rng.random() < 0.6:
            continue
        chain = rng.choice(chains)
        usable = [m for m in matches if not ("-o" in m[1] and chain in ("PREROUTING", "INPUT"))]
        usable = [m for m in usable if not ("-i" in m[1] and chain in ("OUTPUT", "POSTROUTING"))]
        refuses = [v for v in verdicts if v[1] != "-j REJECT" or table == "filter"]
        policy = rng.choice(["ACCEPT", "ACCEPT", "DROP"])
        lines = [f"*{table}", f":{chain} {policy}", ":OWN -", f"-A OWN {rng.choice(usable)[1]} -j ACCEPT"]
        lines += [f"-A {chain} {rng.choice(usable)[1]} {rng.choice(refuses)[1]}" for _ in range(rng.randrange(1, 4))]
        first = f"-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A {chain} -p {icmp} -j ACCEPT"
        lines.insert(4, f"-A {chain} {first}")
        if table == "raw":  # before connection tracking: replies are recognised by their source
            lines[1], lines[4] = f":{chain} ACCEPT", f"-A {chain} -p {icmp} -j ACCEPT"
            lines[5:] = [f"-A {chain} -s {client} -d {services} {rng.choice(verdicts[:2])[1]}"]
        saved += [*lines, "COMMIT"]
    return "".join(nft), "".join(f"{line}\n" for line in saved)


def meeting(branch: Branch, probe: Probe) -> tuple[object, ...]:
    """What a client meets that takes this branch."""
    fate = branch.verdict.fate
    if fate in (Fate.DROPPED, Fate.REJECTED):
        return ("timed out" if fate is Fate.DROPPED else "refused",)
    ip, port = probe.destination, probe.port
    if branch.verdict.endpoint:
        ip, _, text = branch.verdict.endpoint.rpartition(":")
        ip, port = ip.strip("[]"), int(text)
        clients = CLIENT[probe.family], CLIENT_OTHER[probe.family]
        beyond = branch.source in clients and ip == FAR.ip(probe.family)  # answers do not pass this node
        if ip in PODS_IPS and (beyond or branch.source in (ip, "127.0.0.1", "::1")):  # no pod takes the latter
            return ("timed out",)
    local = ip in (node_address(1, probe.family), gateway_of(1, probe.family)) or ip in ("127.0.0.1", "::1")
    if pod := "forwarder" if local and port in PROXY_PORTS else SERVED.get((ip, port)):
        return pod, ip, port, branch.source
    if (ip, port) == (BALANCER[probe.family], 80):
        return "balancer", ip, port, branch.source
    return ("refused",)


def met(answer: probes.Outcome, probe: Probe) -> tuple[object, ...]:
    """What a client met. A UDP client waits for all but a refusal; a program of the node may get an error at once."""
    if isinstance(answer, Answered):
        return answer.pod, answer.reached, answer.reached_port, answer.source
    if answer is not Nothing.REFUSED and (probe.protocol is Protocol.UDP or answer is Nothing.CUT):
        return ("timed out",)
    return (answer.value,)


def clear(cluster: Cluster) -> None:
    """Remove all rules of node1, what IPVS mode has besides, and every connection."""
    node = cluster.spaces["node1"]
    cluster.servers.hang_up()
    node.run(["nft", "flush", "ruleset"])
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        tables = node.call(loaded, Family.IPV6 if tool[1] == "6" else Family.IPV4)
        empty = "".join(f"*{t}\n" + "".join(f":{c} ACCEPT\n" for c in BUILT_IN[t]) + "COMMIT\n" for t in tables)
        node.run([f"{tool}-restore"], empty)


def clear_ipvs(cluster: Cluster) -> None:
    for command in ("ipvsadm -C", "ipset destroy", "ip link del kube-ipvs0"):
        cluster.spaces["node1"].run(command.split())


def predicted(asked: list[Probe]) -> list[tuple[Probe, LiveOutcome]]:
    """What a trace of this namespace's kernel says. What the node sends has the source that its routes give."""
    with closing(LiveKernel()) as kernel:
        routes = [None if p.interface else kernel.host.route(p.destination) for p in asked]
        asked = [replace(p, source=r.source) if r and r.source else p for p, r in zip(asked, routes, strict=True)]
        return [(probe, kernel.trace(probe)) for probe in asked]


def fault(cluster: Cluster, name: str, probe: Probe, found: LiveOutcome) -> str:
    """Connect until every end that is possible was met. Returns what is wrong, "" for nothing."""
    ends = Counter[tuple[object, ...]]()
    for branch in found.outcome.branches:
        ends[meeting(branch, probe)] += branch.probability  # type: ignore[assignment]
    ask = probes.udp if probe.protocol is Protocol.UDP else probes.tcp
    timeout, most = 5.0 if ("timed out",) not in ends else 0.3 if len(ends) == 1 else 0.8, MOST_ATTEMPTS
    if ("timed out",) in ends:
        most //= 4
    space, own = cluster.spaces[name.partition("-")[0]], probe.source if name != "node1" else ""
    seen: set[tuple[object, ...]] = set()
    # IPVS takes real servers in turn, or remembers where a client went: what a client meets is not independent of what
    # it met before, so that it may never meet some.
    in_turn = any(step.table == "ipvs" for branch in found.outcome.branches for step in branch.steps)
    for _ in range(most):
        answer = met(space.call(ask, probe.destination, probe.port, timeout, own), probe)
        if answer not in ends:
            return f"{answer}, not {ends}"
        seen.add(answer)
        if seen == ends.keys():
            break
    if found.unknown:
        return f"not known: {found.unknown}"
    missing = {end for end, share in ends.items() if end not in seen and (1 - share) ** most < 1e-5}
    return f"of {ends} only {seen}" if missing and not in_turn else ""


def faults_in(state: State, cluster: Cluster) -> tuple[list[str], Counter[Fate]]:
    node = cluster.spaces["node1"]
    try:
        node.sysctl({"ipv4/conf/all/route_localnet": "01"[state.rng.random() < 0.8]})
        for argv, given in state.commands():
            node.run(argv, given)
        asked = list(state.probes())
        found = node.call(predicted, [probe for _, probe in asked])
        with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
            names = [name for name, _ in asked]
            wrong = list(pool.map(lambda n, f: fault(cluster, n, *f), names, found))
    finally:
        clear(cluster)
    fates = Counter(branch.verdict.fate for _, each in found for branch in each.outcome.branches)
    return [f"{name}: {probe}: {why}" for name, (probe, _), why in zip(names, found, wrong, strict=True) if why], fates


def test_connections_meet_what_a_trace_predicts(cluster: Cluster) -> None:
    faults, fates = [], Counter[Fate]()
    for seed in range(SEED * 10_000, SEED * 10_000 + STATES):
        state = State(seed)
        wrong, ended = faults_in(state, cluster)
        faults += [f"{seed} ({state.mode}): {each}" for each in wrong]
        fates += ended
    assert faults[:5] == []
    assert set(fates) == set(Fate)


@pytest.mark.ipvs_kernel
def test_connections_meet_what_a_trace_of_ipvs_predicts(cluster: Cluster) -> None:
    cluster.spaces["node1"].sysctl({"ipv4/vs/conntrack": "1"})
    faults, fates = [], Counter[Fate]()
    for seed in range(2):
        state = State(seed, "ipvs")
        wrong, ended = faults_in(state, cluster)
        fates += ended
        clear_ipvs(cluster)
        faults += [f"{seed}: {each}" for each in wrong]
    assert faults[:5] == []
    assert fates[Fate.DELIVERED] > 10
