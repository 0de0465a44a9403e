"""What this node's kernel holds, for commands that look at it. Nothing is written, and no module is loaded."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from kproxy.conntrack.stale_flows import Flow
from kproxy.conntrack.table import KernelConntrack
from kproxy.errors import KernelError
from kproxy.kernel import interfaces
from kproxy.kernel.commands import Commands
from kproxy.kernel.constants import ADDRESS_FAMILY
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.legacy_tables import loaded
from kproxy.kernel.sysctl import ROUTE_LOCALNET, SystemSysctls
from kproxy.kernel.virtual_servers import PERSISTENT, ServerKey, VirtualServer
from kproxy.model.node_info import family_of
from kproxy.model.plans import PROTOCOLS, Family, Protocol, address_port
from kproxy.netfilter.live_rules import HookedChain, Place
from kproxy.netfilter.ruleset import Ruleset
from kproxy.trace.hooks import Packet
from kproxy.trace.iptables_parser import ListedTables, Tables
from kproxy.trace.iptables_rules import set_entry
from kproxy.trace.live import NFT_FAMILY, Balancer, Live, LiveOutcome, trace_live
from kproxy.trace.outcome import AffinityEntry, Host, NotKnown, Probe, Route

_TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
TIMEOUT = 60.0
RECENT = Path("/proc/thread-self/net/xt_recent")
ANSWER_TIMEOUT = 2.0  # seconds; the second SYN is sent after one
CONNECTIONS_AT_ONCE = 64
IPVS = Path("/proc/thread-self/net/ip_vs")  # only while the module is loaded: asking by netlink would load it


class Met(NamedTuple):
    """What a connection met: connected, refused or no answer. endpoint: where connection tracking says that it went, ""
    if it has no entry: it was dropped on this node, or refused by whomever."""

    how: str
    endpoint: str


class RecentLists(Mapping[AffinityEntry, int]):
    """The lists of xt_recent, in which iptables mode keeps session affinity. Whether a client is in one is known, but
    not for how long: the kernel shows that in a unit that it does not name."""

    def __getitem__(self, entry: AffinityEntry) -> int:
        """Raises KeyError for a client that is not in the list, NotKnown for one that is."""
        try:
            listed = RECENT.joinpath(entry.where).read_text()
        except OSError:
            raise KeyError(entry) from None
        if f"src={ip_address(entry.client).exploded} " not in listed:
            raise KeyError(entry)
        raise NotKnown(f"how long ago list {entry.where} last saw {entry.client}")

    def __iter__(self) -> Iterator[AffinityEntry]:
        return iter(())

    def __len__(self) -> int:
        return 0


def connect(probe: Probe) -> tuple[socket.socket, str]:
    """A TCP connection as the probe says, or the attempt at one, and how it ended. Close the socket after use."""
    opened = socket.socket(ADDRESS_FAMILY[probe.family], socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    opened.settimeout(ANSWER_TIMEOUT)
    try:
        opened.bind(("", 0))  # a failure would leave it without a port
        opened.connect((probe.destination, probe.port))
    except ConnectionRefusedError:
        return opened, "refused"
    except OSError:
        return opened, "no answer"
    return opened, "connected"


class LiveKernel:
    """The rules of the network namespace of this thread. Close it after use."""

    def __init__(self) -> None:
        """Raises NetlinkError."""
        found = interfaces.interfaces()
        self._routes: dict[str, Route | None] = {}
        self._commands = Commands()
        self._rules = Ruleset()
        self._live: dict[Family, Live] = {}
        self.own = {family: ip for family in Family if (ip := interfaces.node_ip(family))}
        self._addresses = {each.name: [text.split("/")[0] for text in each.addresses] for each in found}
        self.host = Host(
            frozenset(ip for ips in self._addresses.values() for ip in ips),
            numbers={each.name: socket.if_nametoindex(each.name) for each in found},
            route=self._route,
            route_localnet=SystemSysctls().get(ROUTE_LOCALNET) == "1",
        )

        self._sets: KernelIpSets | None = None
        self._servers: dict[ServerKey, VirtualServer] | None = None
        self._balancers: dict[ServerKey, Balancer | None] = {}

    def close(self) -> None:
        self._rules.close()
        if self._sets:
            self._sets.close()

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

    def tracked(self, probe: Probe) -> list[Flow]:
        """The entries of connection tracking that packets of this client follow instead of the rules, by the port from
        which they come. Raises KernelError."""
        if not isinstance(probe.protocol, Protocol):
            return []
        return KernelConntrack().of_client(probe.protocol, probe.source, probe.destination, probe.port)

    def send(self, probe: Probe, count: int) -> Counter[Met]:
        """Open so many real connections, without sending anything by them. Raises KernelError."""
        with ExitStack() as undo, ThreadPoolExecutor(CONNECTIONS_AT_ONCE) as pool:
            tried = [(undo.enter_context(opened), how) for opened, how in pool.map(connect, [probe] * count)]
            entries = {
                flow.source_port: address_port(flow.reply_source, flow.reply_port) for flow in self.tracked(probe)
            }
            # The entry of a refused connection is gone, and its port may be another's by now.
            ends = ("" if how == "refused" else entries.get(opened.getsockname()[1], "") for opened, how in tried)
            return Counter(Met(how, end) for (_, how), end in zip(tried, ends, strict=True))

    def _read(self, family: Family) -> Live:
        tool = _TOOLS[family]
        usable = {
            name: [ip for ip in ips if family_of(ip) is family and not ip_address(ip).is_link_local]
            for name, ips in self._addresses.items()
        }
        host = replace(self.host, interfaces={name: ips[0] for name, ips in usable.items() if ips})
        legacy = self._saved(f"{tool}-legacy-save") if loaded(family) else ""
        by_nft = ListedTables(
            family,
            lambda table, chain: self._listed(f"{tool}-nft", table, chain),
            lambda table: self._rules.chain_names(Place(NFT_FAMILY[family], table)),
        )
        return Live(
            family,
            host,
            self._rules,
            by_nft,
            Tables(legacy, family),
            self._in_set,
            RecentLists(),
            self._balancer if IPVS.exists() else None,
        )

    def _listed(self, command: str, table: str, chain: str) -> list[str] | None:
        if self._commands.which(command) is None:
            return None
        done = self._commands.run([command, "-t", table, "-S", chain], timeout=TIMEOUT)
        return done.stdout.decode(errors="replace").splitlines() if done.ok else None

    def _in_set(self, name: str, directions: tuple[str, ...], packet: Packet) -> bool:
        self._sets = self._sets or KernelIpSets()
        header = self._sets.header(name)
        family = Family.IPV6 if ":" in packet.destination else Family.IPV4
        return header.family in (None, family) and self._sets.has(name, set_entry(header.type, directions, packet))

    def _balancer(self, packet: Packet) -> Balancer | None:
        key = ServerKey(PROTOCOLS[packet.protocol.upper()], packet.destination, packet.port)
        if key not in self._balancers:
            with KernelIpvs() as ipvs:
                if self._servers is None:
                    self._servers = ipvs.virtual_servers()
                found = self._servers.get(key)
                reals = ipvs.reals(key) if found else {}
            known = tuple((real.address, real.port, state.weight) for real, state in sorted(reals.items()))
            persistence = found.timeout if found and found.flags & PERSISTENT else 0
            self._balancers[key] = Balancer(str(key), found.scheduler, known, persistence) if found else None
        return self._balancers[key]

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
