"""What this node's kernel holds, for commands that look at it. Nothing is written, and no module is loaded."""

from __future__ import annotations

import socket

from kproxy.errors import KernelError
from kproxy.kernel import interfaces
from kproxy.kernel.commands import Commands
from kproxy.kernel.legacy_tables import loaded
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family
from kproxy.netfilter.live_rules import HookedChain
from kproxy.netfilter.ruleset import Ruleset
from kproxy.trace.live import NFT_FAMILY, Live, LiveOutcome, trace_live
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
        self.host = Host(
            interfaces.own_addresses(),
            {each.name: text.split("/")[0] for each in found for text in each.addresses[:1]},
            {each.name: socket.if_nametoindex(each.name) for each in found},
            self._route,
        )

    def close(self) -> None:
        self._rules.close()

    def trace(self, probe: Probe) -> LiveOutcome:
        """Where the packet goes. Raises KernelError, also when the rules change while they are read."""
        if probe.family not in self._live:
            self._live[probe.family] = self._read(probe.family)
        outcome = trace_live(self._live[probe.family], probe)
        self.check_unchanged()
        return outcome

    def check_unchanged(self) -> None:
        """Raises KernelError if the rules changed since reading began."""
        if self._rules.changed():
            raise KernelError("the rules changed while they were read; try again")

    def iptables(self, family: Family) -> tuple[str, str]:
        """What iptables-nft-save and iptables-legacy-save print, "" for a backend that is not there."""
        tool = _TOOLS[family]
        return self._saved(f"{tool}-nft-save"), self._saved(f"{tool}-legacy-save") if loaded(family) else ""

    def base_chains(self, family: Family) -> list[HookedChain]:
        """The base chains of nf_tables that packets of a family pass. Raises NetlinkError."""
        return [c for c in self._rules.base_chains() if c.place.family in ("inet", NFT_FAMILY[family])]

    def _read(self, family: Family) -> Live:
        nft, legacy = self.iptables(family)
        return Live(family, self.host, self._rules, nft, legacy)

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
