"""What kube-proxy 1.36 would have programmed for a lab's cluster, written from plans.

iptables mode's rules are kproxy's own, as those are equal to kube-proxy's (tests/parity). nftables mode's table has
kube-proxy's layout, read off the cases in tests/parity and data/nft-list-ruleset.txt, for what a lab's cluster needs:
no source ranges, no Service without endpoints. IPVS mode's state is kproxy's own as well, equal by tests/parity, and
loaded by the kernel's own tools, which know nothing of kproxy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from kproxy.lab.namespaces import Namespace
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Endpoint, Family, ServicePlan
from kproxy.modes.ipvs.native import Outcome

CLUSTER_CIDR = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:244::/32"}
WORD = {Family.IPV4: "ip", Family.IPV6: "ip6"}

BASE = """\
add table {ip} kube-proxy {{ comment "rules for kube-proxy" ; }}
add chain {ip} kube-proxy filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110 ; }}
add chain {ip} kube-proxy filter-output-pre-dnat {{ type filter hook output priority -110 ; }}
add chain {ip} kube-proxy filter-input {{ type filter hook input priority 0 ; }}
add chain {ip} kube-proxy filter-forward {{ type filter hook forward priority 0 ; }}
add chain {ip} kube-proxy filter-output {{ type filter hook output priority 0 ; }}
add chain {ip} kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}
add chain {ip} kube-proxy nat-output {{ type nat hook output priority -100 ; }}
add chain {ip} kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}
add chain {ip} kube-proxy nodeport-endpoints-check
add chain {ip} kube-proxy service-endpoints-check
add chain {ip} kube-proxy firewall-check
add chain {ip} kube-proxy services
add chain {ip} kube-proxy masquerading
add chain {ip} kube-proxy cluster-ips-check
add chain {ip} kube-proxy reject-chain
add set {ip} kube-proxy hairpin-connections {{ type {t} . {t} . inet_proto . inet_service ; }}
add set {ip} kube-proxy cluster-ips {{ type {t} ; }}
add set {ip} kube-proxy nodeport-ips {{ type {t} ; }}
add map {ip} kube-proxy no-endpoint-services {{ type {t} . inet_proto . inet_service : verdict ; }}
add map {ip} kube-proxy no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; }}
add map {ip} kube-proxy firewall-ips {{ type {t} . inet_proto . inet_service : verdict ; }}
add map {ip} kube-proxy service-ips {{ type {t} . inet_proto . inet_service : verdict ; }}
add map {ip} kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; }}
add rule {ip} kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule {ip} kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule {ip} kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule {ip} kube-proxy filter-input ct state new jump service-endpoints-check
add rule {ip} kube-proxy filter-forward ct state new jump service-endpoints-check
add rule {ip} kube-proxy filter-forward ct state new jump cluster-ips-check
add rule {ip} kube-proxy filter-output ct state new jump service-endpoints-check
add rule {ip} kube-proxy filter-output ct state new jump cluster-ips-check
add rule {ip} kube-proxy nat-prerouting jump services
add rule {ip} kube-proxy nat-output jump services
add rule {ip} kube-proxy nat-postrouting jump masquerading
add rule {ip} kube-proxy nodeport-endpoints-check {ip} daddr @nodeport-ips meta l4proto . th dport vmap \
@no-endpoint-nodeports
add rule {ip} kube-proxy service-endpoints-check {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule {ip} kube-proxy firewall-check {ip} daddr . meta l4proto . th dport vmap @firewall-ips
add rule {ip} kube-proxy services {ip} daddr @cluster-ips {ip} saddr != {cidr} mark set mark or 0x00004000
add rule {ip} kube-proxy services {ip} daddr . meta l4proto . th dport vmap @service-ips
add rule {ip} kube-proxy services {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule {ip} kube-proxy masquerading mark and 0x00004000 != 0 mark set mark xor 0x00004000 masquerade fully-random
add rule {ip} kube-proxy masquerading ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport \
@hairpin-connections masquerade fully-random
add rule {ip} kube-proxy cluster-ips-check {ip} daddr @cluster-ips reject
add rule {ip} kube-proxy reject-chain reject
"""


def nftables(family: Family, plans: Iterable[ServicePlan], node_ip: str) -> str:
    """kube-proxy's table, for `nft -f`, in the place of one that is there."""
    ip = WORD[family]
    lines = [
        f"add table {ip} kube-proxy\ndelete table {ip} kube-proxy\n",
        BASE.format(ip=ip, t="ipv4_addr" if ip == "ip" else "ipv6_addr", cidr=CLUSTER_CIDR[family]),
    ]
    lines.append(f"add element {ip} kube-proxy nodeport-ips {{ {node_ip} }}\n")
    for plan in plans:
        lines += [f"add {line}\n" for line in _port(plan, ip)]
    return "".join(lines)


def ipvs(space: Namespace, outcomes: Mapping[Family, Outcome]) -> dict[Family, str]:
    """Load kube-proxy's sysctls, virtual servers, sets and the addresses of its device, which stays down; what is left
    is the iptables rules of each family."""
    space.run(["ip", "link", "add", SERVICE_DEVICE, "type", "dummy"])
    for outcome in outcomes.values():
        servers, sets, addresses, _ = (part.partition("\n")[2] for part in outcome.native().split("# ")[1:])
        space.run(["ipvsadm", "-R"], servers)
        space.run(["ipset", "restore"], sets)
        space.run(["ip", "-batch", "-"], addresses.partition("\n")[2])  # without the line that makes the device
    for name in ("vs/conntrack", "vs/expire_nodest_conn", "vs/expire_quiescent_template", "ip_forward"):
        space.run(["sysctl", "-qw", f"net/ipv4/{name}=1"])
    return {family: outcome.rules for family, outcome in outcomes.items()}


def _port(plan: ServicePlan, ip: str) -> Iterator[str]:
    proto, table = plan.protocol.lower(), f"{ip} kube-proxy"
    tail = f"{_hash(plan)}-{plan.key.namespace}/{plan.key.name}/{proto}/{plan.key.port}"
    service, local, external = (f"{kind}-{tail}" for kind in ("service", "local", "external"))
    yield f"element {table} cluster-ips {{ {plan.cluster_ip} }}"
    for end in plan.reachable:
        if end.local:
            yield f"element {table} hairpin-connections {{ {end.ip} . {end.ip} . {proto} . {end.port} }}"
    yield from _balancer(table, service, proto, plan.cluster)
    yield f"element {table} service-ips {{ {plan.cluster_ip} . {proto} . {plan.port} : goto {service} }}"
    if not plan.externally_accessible:
        return
    yield f"chain {table} {external}"
    if plan.external_local:
        yield from _balancer(table, local, proto, plan.local)
        yield f"rule {table} {external} {ip} saddr {CLUSTER_CIDR[plan.family]} goto {service}"
        yield f"rule {table} {external} fib saddr type local mark set mark or 0x00004000"
        yield f"rule {table} {external} fib saddr type local goto {service}"
        yield f"rule {table} {external} goto {local}"
    else:
        yield f"rule {table} {external} mark set mark or 0x00004000"
        yield f"rule {table} {external} goto {service}"
    for address in (*plan.external_ips, *plan.load_balancer_ips):
        yield f"element {table} service-ips {{ {address} . {proto} . {plan.port} : goto {external} }}"
    if plan.node_port:
        yield f"element {table} service-nodeports {{ {proto} . {plan.node_port} : goto {external} }}"


def _balancer(table: str, chain: str, proto: str, ends: tuple[Endpoint, ...]) -> Iterator[str]:
    yield f"chain {table} {chain}"
    slots = ", ".join(f"{slot} : {end.ip} . {end.port}" for slot, end in enumerate(ends))
    word = table.split()[0]
    yield (
        f"rule {table} {chain} meta l4proto {proto} dnat {word} addr . port to numgen random mod {len(ends)} "
        f"map {{ {slots} }}"
    )


def _hash(plan: ServicePlan) -> str:
    """Eight letters that tell ports apart; kube-proxy's own hash has no meaning for packets."""
    return hashlib.sha256(f"{plan.key}{plan.protocol}".encode()).hexdigest()[:8].upper()
