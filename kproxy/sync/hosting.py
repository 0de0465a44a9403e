"""The host as the daemon finds and prepares it: its families, its addresses, its sysctls."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from kproxy import logs
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.errors import KernelError
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.commands import Commands, Runner
from kproxy.kernel.interfaces import AddressMonitor, node_ip, own_addresses
from kproxy.kernel.iptables import Command, HostTables
from kproxy.kernel.ipvs import KernelIpvs, Timeouts
from kproxy.model.plans import Family
from kproxy.sync import settings

__all__ = [
    "LiveAddresses",
    "apply_sysctls",
    "conntrack_settings",
    "count_in_nfacct",
    "families",
    "prepare_for_unprivileged",
    "prepare_ipvs",
    "protect_from_oom",
    "serve_localhost",
]

_log = logs.get("host")

AS_ROOT = "Set it on the host, or run kproxy once with --init-only in a privileged container"


class LiveAddresses:
    """This host's addresses, with a notification of their changes. The surroundings' HostAddresses."""

    def __init__(self) -> None:
        self._monitor = AddressMonitor()

    def addresses(self) -> tuple[str, ...]:
        return tuple(sorted(own_addresses()))

    def node_ips(self) -> tuple[str, ...]:
        return tuple(ip for family in Family if (ip := node_ip(family)))

    def changed(self) -> bool:
        return self._monitor.changed()

    def close(self) -> None:
        self._monitor.close()


def families(runner: Runner, command: Command | None) -> tuple[Family, ...]:
    """The families to program: both, unless this host has no IPv6. Raises KernelError when it has no IPv4 either.

    command: the iptables that has to work for them, None where none is used.
    """
    if command is not None:
        HostTables(runner, Family.IPV4, command).save()
    if not Path("/proc/net/if_inet6").exists():
        _log.info("This host has no IPv6; programming IPv4 only")
        return (Family.IPV4,)
    try:
        if command is not None:
            HostTables(runner, Family.IPV6, command).save()
    except KernelError as error:
        _log.warning("IPv6 rules cannot be had; programming IPv4 only until the next start", err=str(error))
        return (Family.IPV4,)
    return (Family.IPV4, Family.IPV6)


def conntrack_settings(config: KubeProxyConfiguration) -> sysctl.ConntrackSettings:
    """The `conntrack` section as the kernel takes it."""
    wanted = config.conntrack
    return sysctl.ConntrackSettings(
        max_per_core=wanted.max_per_core,
        min=wanted.min,
        tcp_established=int(wanted.tcp_established_timeout.seconds),
        tcp_close_wait=int(wanted.tcp_close_wait_timeout.seconds),
        tcp_be_liberal=wanted.tcp_be_liberal,
        udp=int(wanted.udp_timeout.seconds),
        udp_stream=int(wanted.udp_stream_timeout.seconds),
    )


def apply_sysctls(config: KubeProxyConfiguration) -> None:
    """The `conntrack` section, where the kernel differs from it. What cannot be had is logged: rules work without."""
    for problem in sysctl.apply_conntrack(sysctl.SystemSysctls(), conntrack_settings(config)):
        _log.warning(f"A conntrack setting could not be applied; the host keeps its own. {AS_ROOT}", err=problem)


def prepare_ipvs(runner: Runner, config: KubeProxyConfiguration) -> None:
    """Load IPVS and its scheduler, set the sysctls and timeouts of IPVS mode.

    Raises KernelError when the kernel has no IPVS, not this scheduler, or no connection tracking of IPVS's connections;
    other sysctls that cannot be had are logged.
    """
    scheduler = config.ipvs.scheduler or settings.DEFAULT_SCHEDULER
    _load_modules(runner, "ip_vs", f"ip_vs_{scheduler}")
    with KernelIpvs() as ipvs:
        if not ipvs.has_scheduler(scheduler):
            raise KernelError(
                f"ipvs.scheduler: this kernel has no scheduler {scheduler}, nor a module ip_vs_{scheduler}"
            )
        times = (config.ipvs.tcp_timeout, config.ipvs.tcp_fin_timeout, config.ipvs.udp_timeout)
        if any(times):
            ipvs.set_timeouts(Timeouts(*(int(time.seconds) for time in times)))
    sysctls = sysctl.SystemSysctls()
    sysctl.ensure(sysctls, sysctl.IPVS_CONNTRACK, 1)
    major, minor = (int(number) for number in re.findall(r"\d+", platform.release())[:2])
    for problem in sysctl.ensure_all(sysctls, sysctl.ipvs_sysctls(config.ipvs.strict_arp, (major, minor))):
        _log.warning(f"A setting of IPVS mode could not be applied; the host keeps its own. {AS_ROOT}", err=problem)


def _load_modules(runner: Runner, *names: str) -> None:
    """Best effort: what is built in needs none, and what is missing is noticed when it is used."""
    modprobe = runner.which("modprobe")
    if modprobe is None:
        return
    for name in names:
        if not (done := runner.run([modprobe, "--quiet", name])).ok:
            _log.v(2).info("Module not loaded", module=name, err=done.stderr.strip())


def prepare_for_unprivileged(config: KubeProxyConfiguration) -> None:
    """Beside the conntrack settings, set what the mode needs and a process with CAP_NET_ADMIN alone may not set."""
    if config.mode is ProxyMode.IPVS:
        prepare_ipvs(Commands(), config)
    elif config.mode in (ProxyMode.IPTABLES, ProxyMode.USERSPACE) and _loopback_takes_node_ports(config):
        serve_localhost()


def _loopback_takes_node_ports(config: KubeProxyConfiguration) -> bool:
    if not config.iptables.localhost_node_ports or "primary" in config.node_port_addresses:
        return False
    return settings.addresses_for_node_ports(config, Family.IPV4, settings.Host()).loopback


def serve_localhost() -> None:
    """Let packets to 127.0.0.1 be translated, which node ports on localhost need."""
    try:
        if sysctl.ensure(sysctl.SystemSysctls(), "net.ipv4.conf.all.route_localnet", 1):
            _log.info("Set net.ipv4.conf.all.route_localnet=1, so that node ports work on 127.0.0.1")
    except KernelError as error:
        _log.warning(f"Node ports will not work on 127.0.0.1. {AS_ROOT}", err=str(error))


def count_in_nfacct() -> bool:
    """Make kube-proxy's two counters where the kernel can have them; whether rules may count in them."""
    try:
        nfacct.counters()
        for name in (nfacct.INVALID_DROPPED, nfacct.LOCALHOST_ACCEPTED):
            nfacct.ensure(name)
    except KernelError as error:
        _log.v(2).info("No nfacct counters", err=str(error))
        return False
    return True


def protect_from_oom(score: int) -> None:
    """Set this process's oom_score_adj."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        _log.v(2).info("oom_score_adj could not be set", value=score, err=error.strerror)
