"""Everything that IPVS mode programs for one family as one value, and as the texts that the kernel's tools load.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kproxy.kernel.constants import ADDRESS_BITS
from kproxy.kernel.virtual_servers import PERSISTENT, SOURCE_PORT, ServerKey
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family, PortKey, Protocol, ServicePlan, address_port
from kproxy.modes.iptables import render as iptables
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.fragments import Served, Settings
from kproxy.modes.ipvs.render import render_port
from kproxy.modes.ipvs.rules import render_base
from kproxy.modes.xtables.rules import Fragment as Rules

_PROTOCOLS = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """All objects of one family: virtual servers and addresses sorted, every set with its entries sorted, and the rules
    as iptables-save text."""

    family: Family
    served: tuple[Served, ...]
    sets: dict[str, tuple[str, ...]]
    addresses: tuple[str, ...]
    rules: str

    def json(self) -> dict[str, object]:
        """The object of --format json: rules, virtualServers, ipsets, kubeIpvs0."""
        return {
            "rules": self.rules,
            "virtualServers": [_values(served) for served in self.served],
            "ipsets": {name: list(entries) for name, entries in self.sets.items()},
            "kubeIpvs0": list(self.addresses),
        }

    def native(self) -> str:
        """The objects as text: four sections, each under a comment that names its tool, to be loaded in this order:

        `ipvsadm -R`, `ipset restore`, `ip -force -batch -`, `iptables-restore --noflush`. Both families share the
        device: with -force, `ip` goes on when the other family's text has created it already.
        """
        tool = "iptables-restore" if self.family is Family.IPV4 else "ip6tables-restore"
        sections = (
            ("ipvsadm -R", self._ipvsadm()),
            ("ipset restore", self._ipset()),
            ("ip -force -batch -", self._addresses()),
            (f"{tool} --noflush", self.rules.splitlines()),
        )
        return "".join(f"# {tool}\n" + "".join(f"{line}\n" for line in lines) for tool, lines in sections)

    def _ipvsadm(self) -> Iterator[str]:
        """The virtual servers as ipvsadm-save -n prints them."""
        for (key, scheduler, flags, timeout), reals in self.served:
            name = f"{_PROTOCOLS[key.protocol]} {address_port(key.address, key.port)}"
            persistent = f" -p {timeout}" if flags & PERSISTENT else ""
            hashed = f" -b {scheduler}-port" if flags & SOURCE_PORT else ""
            yield f"-A {name} -s {scheduler}{persistent}{hashed}"
            for (address, port), weight in reals:
                yield f"-a {name} -r {address_port(address, port)} -m -w {weight}"

    def _ipset(self) -> Iterator[str]:
        family = "inet" if self.family is Family.IPV4 else "inet6"
        for name, type_ in names.sets(self.family):
            size = "range 0-65535" if type_.startswith("bitmap:") else f"family {family} hashsize 1024 maxelem 65536"
            yield f"create {name} {type_} {size}"
            yield from (f"add {name} {entry}" for entry in self.sets[name])

    def _addresses(self) -> Iterator[str]:
        yield f"link add {SERVICE_DEVICE} type dummy"
        length = ADDRESS_BITS[self.family]
        yield from (f"address add {ip}/{length} dev {SERVICE_DEVICE}" for ip in self.addresses)


def outcome(plans: Iterable[tuple[PortKey, ServicePlan]], settings: Settings) -> Outcome:
    """Render all `plans`. Where two Services ask for the same address and port, the first by name gets it."""
    fragments = [(key, render_port(plan, settings)) for key, plan in sorted(plans)]
    served: dict[ServerKey, Served] = {}
    entries: dict[str, set[str]] = {name: set() for name, _ in names.sets(settings.family)}
    for _, fragment in fragments:
        for one in fragment.served:
            served.setdefault(one.server.key, one)
        for name, entry in fragment.entries:
            entries[name].add(entry)
    base = render_base(settings, {name for name, held in entries.items() if held})
    return Outcome(
        settings.family,
        tuple(served[key] for key in sorted(served)),
        {name: tuple(sorted(held)) for name, held in entries.items()},
        tuple(sorted({ip for _, fragment in fragments for ip in fragment.addresses})),
        iptables.text(base, ((key, Rules(shared=fragment.rules)) for key, fragment in fragments)),
    )


def _values(served: Served) -> dict[str, object]:
    server, reals = served
    return {
        "protocol": server.key.protocol.value,
        "address": server.key.address,
        "port": server.key.port,
        "scheduler": server.scheduler,
        "flags": server.flags,
        "timeout": server.timeout,
        "realServers": [f"{real.key} weight={real.weight}" for real in reals],
    }
