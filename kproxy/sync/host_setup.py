"""The host as the daemon finds and prepares it: its families, its addresses, its sysctls."""

from __future__ import annotations

from pathlib import Path

from kproxy import logs
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.errors import KernelError
from kproxy.kernel import nfacct, sysctl
from kproxy.kernel.commands import Commands, Runner
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.kernel.iptables import Command, HostTables, unreadable_tables
from kproxy.kernel.sysctl import AS_ROOT
from kproxy.model.node_info import NodeInfo
from kproxy.model.plans import Family
from kproxy.modes import settings
from kproxy.modes.iptables.driver import serve_localhost
from kproxy.modes.ipvs.driver import prepare_ipvs

_log = logs.get("host")


def families(runner: Runner, command: Command | None) -> tuple[Family, ...]:
    """The families to program: both, unless this host has no IPv6. Raises KernelError when it has no IPv4 either.

    command: the iptables that has to work for them, None where none is used.
    """
    if command is not None:
        _check_tables(HostTables(runner, Family.IPV4, command))
    if not Path("/proc/net/if_inet6").exists():
        _log.info("This host has no IPv6; programming IPv4 only")
        return (Family.IPV4,)
    try:
        if command is not None:
            _check_tables(HostTables(runner, Family.IPV6, command))
    except KernelError as error:
        _log.warning("ip6tables does not work here; programming IPv4 only until the next start", err=str(error))
        return (Family.IPV4,)
    return (Family.IPV4, Family.IPV6)


def _check_tables(tables: HostTables) -> None:
    """Raises KernelError unless the tables can be read, or at least be written."""
    if unreadable_tables(tables.save()):
        tables.accept_restores()


def conntrack_settings(config: KubeProxyConfiguration) -> sysctl.ConntrackSettings:
    """The kernel settings that the `conntrack` section asks for."""
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
    """Write the kernel settings of the `conntrack` section that differ. Failures are logged: rules work without."""
    for problem in sysctl.apply_conntrack(sysctl.SystemSysctls(), conntrack_settings(config)):
        _log.warning(f"A conntrack setting could not be applied; its present value stays. {AS_ROOT}", err=problem)


def prepare_for_unprivileged(config: KubeProxyConfiguration) -> None:
    """Set what the mode needs, conntrack apart, and a process with CAP_NET_ADMIN alone may not set (--init-only)."""
    if config.mode is ProxyMode.IPVS:
        prepare_ipvs(Commands(), config)
    elif config.mode in (ProxyMode.IPTABLES, ProxyMode.USERSPACE) and _loopback_takes_node_ports(config):
        serve_localhost()


def _loopback_takes_node_ports(config: KubeProxyConfiguration) -> bool:
    asked = settings.addresses_for_node_ports(config, Family.IPV4, NodeInfo())
    return config.iptables.localhost_node_ports and asked.loopback


def count_in_nfacct() -> bool:
    """Create kube-proxy's two nfacct counters if the kernel has nfacct; returns whether rules may use them."""
    try:
        nfacct.counters()
        for name in NFACCT_COUNTERS:
            nfacct.ensure(name)
    except KernelError as error:
        _log.v(2).info("nfacct counters are not available", err=str(error))
        return False
    return True


def protect_from_oom(score: int) -> None:
    """Set this process's oom_score_adj."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        _log.v(2).info("oom_score_adj could not be set", value=score, err=error.strerror)
