"""Compares this node's kernel with what a mode needs. Nothing is written, and no module is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.conntrack.stale_flows import LiveFrontends
from kproxy.conntrack.table import KernelConntrack
from kproxy.errors import KernelError
from kproxy.kernel import host_checks, interfaces
from kproxy.kernel.commands import Commands
from kproxy.kernel.ipset import KernelIpSets
from kproxy.kernel.iptables import Tables, available
from kproxy.kernel.ipvs import KernelIpvs
from kproxy.kernel.service_device import KernelAddresses
from kproxy.model.node_info import SERVICE_DEVICE, family_of
from kproxy.model.plans import Family, Frontend, PortKey, Protocol, ServicePlan, address_port, frontends
from kproxy.modes import settings
from kproxy.modes.differences import Difference, Kind
from kproxy.modes.iptables import render as iptables
from kproxy.modes.ipvs import differences as ipvs_differences
from kproxy.modes.ipvs import kernel_state
from kproxy.modes.ipvs.fragments import Fragment as IpvsFragment
from kproxy.modes.ipvs.ownership import Ownership
from kproxy.modes.ipvs.render import render_port as render_ipvs
from kproxy.modes.ipvs.rules import render_base as render_ipvs_base
from kproxy.modes.nftables import differences as nftables_differences
from kproxy.modes.nftables import names
from kproxy.modes.nftables.table_state import TableState
from kproxy.modes.preview import Preview
from kproxy.modes.userspace import differences as userspace_differences
from kproxy.modes.userspace.apply import carried
from kproxy.modes.userspace.render import PORTALS_CONTAINER
from kproxy.modes.userspace.render import render_base as render_userspace_base
from kproxy.modes.userspace.render import render_port as render_portal
from kproxy.modes.xtables import differences as xtables_differences
from kproxy.modes.xtables.reading import read
from kproxy.modes.xtables.rules import Base, Fragment
from kproxy.modes.xtables.saved import Saved
from kproxy.netfilter.iptables_compat import host_tables
from kproxy.netfilter.kernel import KernelNftables
from kproxy.netfilter.live_rules import Place
from kproxy.netfilter.ruleset import Ruleset
from kproxy.sync.active_mode import find_iptables
from kproxy.trace.nft_text import rule_text

Plans = Mapping[PortKey, ServicePlan]
LISTENING = {Protocol.TCP: "0A", Protocol.UDP: "07"}  # the states TCP_LISTEN and TCP_CLOSE


class LiveDifferences:
    """The differences of both families. Use it as a context manager.

    running: the modes that visibly program this node. notes: a line for each thing that was not compared.
    """

    def __init__(self, config: KubeProxyConfiguration, preview: Preview, backend: str) -> None:
        """backend: of iptables, auto, nft or legacy. Raises KernelError."""
        if not host_checks.may_administer_network():
            raise KernelError(f"the rules cannot be read: {host_checks.NEEDED}")
        self.running: list[ProxyMode] = []
        self.notes: list[str] = []
        self._config, self._preview, self._backend = config, preview, backend
        self._commands = Commands()
        self._interfaces = {each.name: each for each in interfaces.interfaces()}
        self._stack = ExitStack()
        self._nft = self._stack.enter_context(KernelNftables())
        self._retired: dict[Family, list[Frontend]] = defaultdict(list)
        self._portals: dict[PortKey, tuple[int, ...]] = {}

    def __enter__(self) -> LiveDifferences:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def differences(self) -> list[Difference]:
        """All differences. Raises InvalidConfig, KernelError."""
        self._tables = self._find_tables()
        families = [Family.IPV4, *([Family.IPV6] if Path("/proc/net/if_inet6").exists() else [])]
        found: list[Difference] = []
        for family in families:
            found += self._rules(family)
            found += self._left(family)
            found += self._flows(family)
        found += self._device_left()
        return found

    # ---------------------------------------------------------------- what the mode needs

    def _find_tables(self) -> dict[str, dict[Family, Tables]]:
        """The iptables tables to look at, by backend: the mode's own, in nftables mode all that there are."""
        if self._config.mode is not ProxyMode.NFTABLES:
            commands = [find_iptables(self._commands, self._backend)]
        else:
            try:
                commands = [*available(self._commands).values()]
            except KernelError:
                commands = []
        self._random_fully = all(command.random_fully for command in commands)
        return {
            command.name(Family.IPV4): {family: host_tables(self._commands, family, command) for family in Family}
            for command in commands
        }

    def _rules(self, family: Family) -> Iterable[Difference]:
        plans = self._preview.families[family].plans
        if self._config.mode is ProxyMode.NFTABLES:
            return self._nftables(family, plans)
        (tables,) = self._tables.values()
        match self._config.mode:
            case ProxyMode.IPTABLES:
                return self._iptables(family, plans, tables[family])
            case ProxyMode.IPVS:
                return self._ipvs(family, plans, tables[family])
            case _:
                return self._userspace(family, plans, tables[family])

    def _features(self, saved: Saved) -> settings.Features:
        counts = any("--nfacct-name" in saved.block("filter", chain) for chain in saved.chains("filter"))
        return settings.Features(nfacct=counts, random_fully=self._random_fully)

    def _xtables(
        self, saved: Saved, base: Base, family: Family, fragments: Mapping[PortKey, Fragment]
    ) -> list[Difference]:
        found, comparison = xtables_differences.differences(saved, base, family, fragments)
        self._retired[family] += comparison.abandoned
        self.notes += [f"table {table} cannot be read whole: {why}" for table, why in saved.unreadable.items()]
        return found

    def _iptables(self, family: Family, plans: Plans, tables: Tables) -> list[Difference]:
        node, size = self._preview.node, self._preview.families[family].endpoints
        saved = read(tables, iptables.render_base(settings.iptables_settings(self._config, family, node, size)))
        wanted = settings.iptables_settings(self._config, family, node, size, self._features(saved))
        self._runs(saved)
        fragments = {key: iptables.render_port(plan, wanted) for key, plan in plans.items()}
        return self._xtables(saved, iptables.render_base(wanted), family, fragments)

    def _nftables(self, family: Family, plans: Plans) -> list[Difference]:
        features = settings.Features(random_fully=True)
        wanted = settings.nftables_settings(self._config, family, self._preview.node, features)
        state = TableState(wanted)
        state.replace(plans)
        listing = self._nft.listing(family, names.TABLE, state.sizes())
        if listing is not None and listing.generation is None:
            raise KernelError("the rules changed while they were read; try again")
        if listing is not None:
            self._run(ProxyMode.NFTABLES)
            large = [name for name, held in listing.sets.items() if held.elements is None]
            self.notes += [f"the set {name} has too many elements to be compared" for name in large]
        found, delta = nftables_differences.differences(state, wanted, listing, lambda chain: _texts(family, chain))
        if delta is not None:
            self._retired[family] += state.abandoned(delta)
        return found

    def _ipvs(self, family: Family, plans: Plans, tables: Tables) -> list[Difference]:
        features = settings.Features(random_fully=self._random_fully)
        wanted = settings.ipvs_settings(self._config, family, self._preview.node, features)
        ownership, fragments = Ownership(), {key: render_ipvs(plan, wanted) for key, plan in plans.items()}
        for key, fragment in fragments.items():
            ownership.put(key, IpvsFragment(), fragment)
        base = render_ipvs_base(wanted, ownership.filled)
        saved = read(tables, base)
        self._runs(saved)
        with ExitStack() as stack:
            ipvs = stack.enter_context(KernelIpvs()) if host_checks.has_ipvs() else None
            sets = stack.enter_context(KernelIpSets()) if host_checks.has_ipset() else None
            addresses = stack.enter_context(KernelAddresses())
            held = sets.held([spec.name for spec in kernel_state.specs(family)]) if sets else {}
            state = kernel_state.read(wanted, ipvs, sets, addresses, ownership.servers, ownership.addresses)
        has_device = SERVICE_DEVICE in self._interfaces
        found, retired = ipvs_differences.differences(state, ownership, wanted, held, has_device)
        self._retired[family] += retired
        rules = {key: Fragment(shared=fragment.rules) for key, fragment in fragments.items()}
        return [*found, *self._xtables(saved, base, family, rules)]

    def _userspace(self, family: Family, plans: Plans, tables: Tables) -> list[Difference]:
        wanted = settings.userspace_settings(self._config, family, self._preview.node)
        base = render_userspace_base(wanted)
        saved = read(tables, base)
        self._runs(saved)
        portals = userspace_differences.portals(saved, plans, wanted)
        self._portals |= {key: userspace_differences.proxy_ports(portal) for key, portal in portals.items()}
        fragments = {key: render_portal(portal, wanted) for key, portal in portals.items()}
        found = self._xtables(saved, base, family, fragments)
        unheard = userspace_differences.unheard(portals, _listening())
        return [*map(userspace_differences.without_unknown, found), *unheard]

    # ---------------------------------------------------------------- what other modes left

    def _run(self, mode: ProxyMode) -> None:
        if mode not in self.running:
            self.running.append(mode)

    def _runs(self, saved: Saved) -> None:
        """Note which mode's iptables rules there are."""
        if saved.has("nat", PORTALS_CONTAINER):
            self._run(ProxyMode.USERSPACE)
        elif any("--match-set KUBE-" in saved.block("nat", chain) for chain in ("KUBE-SERVICES", "KUBE-NODE-PORT")):
            self._run(ProxyMode.IPVS)
        elif saved.has("nat", "KUBE-SERVICES"):
            self._run(ProxyMode.IPTABLES)

    def _left(self, family: Family) -> Iterator[Difference]:
        """What other modes left of one family, but for iptables rules in a mode that has such rules itself."""
        mode = self._config.mode
        for table in (names.TABLE, names.KUBE_PROXY_TABLE):
            if (table, mode) == (names.TABLE, ProxyMode.NFTABLES) or not self._nft.chain_names(family, table):
                continue
            self._run(ProxyMode.NFTABLES)
            by = "kube-proxy's nftables mode wrote" if table == names.KUBE_PROXY_TABLE else "nftables mode left"
            ip = "ip" if family is Family.IPV4 else "ip6"
            yield Difference("", Kind.EXTRA, f"table {ip} {table}, which {by}")
        if mode is ProxyMode.NFTABLES:
            for command, tables in self._tables.items():
                try:
                    saved = read(tables[family], Base())
                except KernelError as error:
                    self.notes.append(f"{command} ({family.value}) was not compared: {error}")
                    continue
                self._runs(saved)
                if number := xtables_differences.left_chains(saved):
                    yield Difference(
                        "", Kind.EXTRA, f"{number} chains ({command}, {family.value}), which another mode left"
                    )

    def _device_left(self) -> Iterator[Difference]:
        if device := self._interfaces.get(SERVICE_DEVICE):
            self._run(ProxyMode.IPVS)
            if self._config.mode is not ProxyMode.IPVS:
                what = f"device {SERVICE_DEVICE} with {len(device.addresses)} addresses, which ipvs mode left"
                yield Difference("", Kind.EXTRA, what)

    # ---------------------------------------------------------------- conntrack

    def _flows(self, family: Family) -> Iterator[Difference]:
        """The UDP and SCTP flows that go on to where no endpoint of their Service is."""
        if not host_checks.has_conntrack():
            return
        plans, node = self._preview.families[family].plans, self._preview.node
        own = [ip for ip in node.addresses if family_of(ip) is family]
        answering = {
            key: carried(plan, ports, own) if (ports := self._portals.get(key)) else plan for key, plan in plans.items()
        }
        live = LiveFrontends()
        live.update(answering, answering)
        owners = {frontend: key for key, plan in plans.items() for frontend in frontends(plan)}
        retired = self._retired[family]
        protocols = live.protocols() | {frontend.protocol for frontend in retired}
        flows = KernelConntrack().flows(family, protocols) if protocols else []
        for flow in live.stale(flows, retired, settings.node_port_ips(self._config, family, node)):
            exact = Frontend(flow.destination, flow.destination_port, flow.protocol)
            key = owners.get(exact) or owners.get(exact._replace(ip="")) or ""
            client, to, end = (
                address_port(*each)
                for each in (
                    (flow.source, flow.source_port),
                    (flow.destination, flow.destination_port),
                    (flow.reply_source, flow.reply_port),
                )
            )
            yield Difference(str(key), Kind.CONNTRACK, f"{flow.protocol} {client} → {to}, answered by {end}")


def _texts(family: Family, chain: str) -> list[str]:
    """The rules that a chain of our table holds. Raises NetlinkError."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    with closing(Ruleset()) as ruleset:
        return [rule_text(rule, ip) for rule in ruleset.rules(Place(ip, names.TABLE), chain)]


def _listening() -> Collection[tuple[Protocol, int]]:
    """What is listened on in this network namespace, of both families. Source: proc_net_tcp (kernel documentation)."""
    found: set[tuple[Protocol, int]] = set()
    for protocol, state in LISTENING.items():
        for suffix in ("", "6"):
            path = Path(f"/proc/thread-self/net/{protocol.lower()}{suffix}")
            for line in path.read_text().splitlines()[1:] if path.exists() else ():
                _, local, _, in_state, *_ = line.split()
                if in_state == state:
                    found.add((protocol, int(local.rpartition(":")[2], 16)))
    return found
