"""What this node's kernel holds, for commands that look at it. Nothing is written, and no module is loaded."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address

from kproxy.conntrack.stale_flows import Flow
from kproxy.conntrack.table import KernelConntrack
from kproxy.errors import KernelError
from kproxy.kernel import interfaces
from kproxy.kernel.commands import Commands
from kproxy.kernel.legacy_tables import loaded
from kproxy.kernel.sysctl import ROUTE_LOCALNET, SystemSysctls
from kproxy.model.node_info import SERVICE_DEVICE, family_of
from kproxy.model.plans import Family
from kproxy.netfilter.ruleset import Ruleset
from kproxy.trace.live import Live, LiveOutcome, trace_live
from kproxy.trace.outcome import Host, Probe, Route

_TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
TIMEOUT = 60.0


class LiveKernel:
    """The rules of the network namespace of this thread. Close it after use."""

    def __init__(self) -> None:
        """Raises NetlinkError."""
        found = [each for each in interfaces.interfaces() if each.name != SERVICE_DEVICE]
        self._routes: dict[str, Route | None] = {}
        self._commands = Commands()
        self._rules = Ruleset()
        self._live: dict[Family, Live] = {}
        self.own = {family: ip for family in Family if (ip := interfaces.node_ip(family))}
        self._addresses = {each.name: [text.split("/")[0] for text in each.addresses] for each in found}
        self.host = Host(
            interfaces.own_addresses(),
            numbers={each.name: socket.if_nametoindex(each.name) for each in found},
            route=self._route,
            route_localnet=SystemSysctls().get(ROUTE_LOCALNET) == "1",
        )

    def close(self) -> None:
        self._rules.close()

    def trace(self, probe: Probe) -> LiveOutcome:
        """Where the packet goes. Raises KernelError, also when the rules change while they are read."""
        if probe.family not in self._live:
            self._live[probe.family] = self._read(probe.family)
        outcome = trace_live(self._live[probe.family], probe)
        if self._rules.changed():
            raise KernelError("the rules changed while they were read; try again")
        return outcome

    def tracked(self, probe: Probe) -> list[Flow]:
        """The entries of connection tracking that packets of this client follow instead of the rules, by the port from
        which they come. Raises KernelError."""
        return KernelConntrack().of_client(probe.protocol, probe.source, probe.destination, probe.port)

    def _read(self, family: Family) -> Live:
        tool = _TOOLS[family]
        usable = {
            name: [ip for ip in ips if family_of(ip) is family and not ip_address(ip).is_link_local]
            for name, ips in self._addresses.items()
        }
        host = replace(self.host, interfaces={name: ips[0] for name, ips in usable.items() if ips})
        legacy = self._saved(f"{tool}-legacy-save") if loaded(family) else ""
        return Live(family, host, self._rules, self._saved(f"{tool}-nft-save"), legacy)

    def _saved(self, command: str) -> str:
        """What a command prints; nothing where it is not installed: then the tables are read by netlink alone."""
        if self._commands.which(command) is None:
            return ""
        done = self._commands.run([command], timeout=TIMEOUT)
        return done.stdout.decode(errors="replace") if done.ok else ""

    def _route(self, ip: str) -> Route | None:
        if ip not in self._routes:
            found = interfaces.route(ip)
            self._routes[ip] = Route(*found) if found else None
        return self._routes[ip]
