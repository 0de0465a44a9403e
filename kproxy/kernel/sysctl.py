"""Kernel parameters: read, and written only where they differ.

Decides: what of the `conntrack` section of the configuration and of route_localnet has to be written, as kube-proxy
does. Leaves out: reporting; every function returns what went wrong as lines for the log.
Names are dotted as sysctl(8) writes them and stand for files below /proc/sys; a name that begins with / is a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kproxy.errors import KernelError

ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"
CONNTRACK = "net.netfilter.nf_conntrack_"
IPVS_CONNTRACK = "net.ipv4.vs.conntrack"
HASHSIZE = "/sys/module/nf_conntrack/parameters/hashsize"
ENTRIES_PER_BUCKET = 4


class Sysctls(Protocol):
    """The parameters of the running kernel, of this network namespace where they are per namespace."""

    def get(self, name: str) -> str | None:
        """The value without its newline, None when this kernel has no such parameter (or its module is not loaded)."""

    def set(self, name: str, value: str) -> None:
        """Write a value. Raises KernelError, which names the parameter and says why."""


class SystemSysctls:
    """The files of /proc/sys and /sys."""

    def get(self, name: str) -> str | None:
        """As Sysctls.get."""
        try:
            return Path(path_of(name)).read_text().strip()
        except OSError:
            return None

    def set(self, name: str, value: str) -> None:
        """As Sysctls.set."""
        try:
            with open(path_of(name), "r+") as file:  # never creates one
                file.write(value)
        except OSError as error:
            raise KernelError(f"{name} cannot be set to {value}: {error.strerror}") from None


def path_of(name: str) -> str:
    """The file of parameter NAME. Slashes may stand for the dots, for an interface with a dot in its own name."""
    if name.startswith("/"):
        return name
    return f"/proc/sys/{name if '/' in name else name.replace('.', '/')}"


def ensure(sysctls: Sysctls, name: str, value: int) -> bool:
    """Set NAME to VALUE unless it has it; whether it was set. Raises KernelError."""
    if sysctls.get(name) == str(value):
        return False
    sysctls.set(name, str(value))
    return True


def ensure_all(sysctls: Sysctls, wanted: Iterable[tuple[str, int]]) -> list[str]:
    """Set each where it differs; one line for each that cannot be."""
    problems: list[str] = []
    for name, value in wanted:
        try:
            ensure(sysctls, name, value)
        except KernelError as error:
            problems.append(str(error))
    return problems


@dataclass(frozen=True, slots=True)
class ConntrackSettings:
    """The `conntrack` section of KubeProxyConfiguration. Times in seconds; 0 leaves the kernel's value alone.

    max_per_core, min: how many entries the table may hold for each CPU core, and at least; max_per_core 0 leaves it.
    """

    max_per_core: int = 0
    min: int = 0
    tcp_established: int = 0
    tcp_close_wait: int = 0
    tcp_be_liberal: bool = False
    udp: int = 0
    udp_stream: int = 0


def conntrack_max(settings: ConntrackSettings, cores: int) -> int:
    """How many entries the table should hold, 0 to leave it as it is."""
    return max(settings.max_per_core * cores, settings.min) if settings.max_per_core > 0 else 0


def apply_conntrack(sysctls: Sysctls, settings: ConntrackSettings, cores: int = 0) -> list[str]:
    """Bring the kernel to SETTINGS; what could not be had, one line each.

    cores: how many CPU cores to count with, 0 for those that this process may use.
    """
    limit = conntrack_max(settings, cores or len(os.sched_getaffinity(0)))
    wanted = [
        ("max", limit),
        ("tcp_timeout_established", settings.tcp_established),
        ("tcp_timeout_close_wait", settings.tcp_close_wait),
        ("tcp_be_liberal", int(settings.tcp_be_liberal)),
        ("udp_timeout", settings.udp),
        ("udp_timeout_stream", settings.udp_stream),
    ]
    problems = ensure_all(sysctls, ((CONNTRACK + name, value) for name, value in wanted if value > 0))
    return problems + _grow_hash_table(sysctls, limit)


def ipvs_sysctls(strict_arp: bool, kernel: tuple[int, int]) -> list[tuple[str, int]]:
    """What IPVS mode needs, as kube-proxy sets it. kernel: the first two numbers of its version.

    conntrack: without it netfilter does not know IPVS's connections, and their packets cannot be masqueraded.
    expire_nodest_conn, expire_quiescent_template: a connection whose real server is gone ends, and a persistent client
    of one that gets no more connections goes to another.
    conn_reuse_mode: before Linux 5.9 a value of 1 cost a second for each reused client port.
    arp_ignore, arp_announce: with strict ARP the node does not answer for the addresses of kube-ipvs0.
    Source: Documentation/networking/ipvs-sysctl.rst.
    """
    wanted = [
        (IPVS_CONNTRACK, 1),
        ("net.ipv4.vs.expire_nodest_conn", 1),
        ("net.ipv4.vs.expire_quiescent_template", 1),
        ("net.ipv4.ip_forward", 1),
    ]
    if kernel < (5, 9):
        wanted.append(("net.ipv4.vs.conn_reuse_mode", 0))
    if strict_arp:
        wanted += [("net.ipv4.conf.all.arp_ignore", 1), ("net.ipv4.conf.all.arp_announce", 2)]
    return wanted


def _grow_hash_table(sysctls: Sysctls, limit: int) -> list[str]:
    """Never more than four entries a bucket, else every lookup gets slow. The table is only ever made larger."""
    buckets, held = limit // ENTRIES_PER_BUCKET, sysctls.get(HASHSIZE)
    if not buckets or held is None or (held.isdigit() and int(held) >= buckets):
        return []
    return ensure_all(sysctls, [(HASHSIZE, buckets)])


AS_ROOT = "Set it on the host, or run kproxy once with --init-only in a privileged container"
