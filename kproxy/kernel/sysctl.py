"""Kernel parameters: which ones kproxy sets, reading them, and writing those that differ.

Decides: the parameters for the `conntrack` section of the configuration and for IPVS mode, as kube-proxy sets them.
Leaves out: logging; what cannot be set is returned as lines for the log.
Names are dotted as in sysctl(8) and stand for files below /proc/sys; a name that begins with / is a file.
"""

from __future__ import annotations

import os
import re
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
AS_ROOT = "Set it on the host, or run kproxy once with --init-only in a privileged container"
"""What to do about a parameter that kproxy may not set, for the log."""


class Sysctls(Protocol):
    """The parameters of the running kernel, of this network namespace where they are per namespace."""

    def get(self, name: str) -> str | None:
        """The value without its newline, None when this kernel has no such parameter (or its module is not loaded)."""

    def set(self, name: str, value: str) -> None:
        """Write a value. Raises KernelError, whose message names the parameter and the reason."""


class SystemSysctls:
    """The files of /proc/sys and /sys."""

    def get(self, name: str) -> str | None:
        try:
            return Path(path_of(name)).read_text(errors="replace").strip()
        except OSError:
            return None

    def set(self, name: str, value: str) -> None:
        try:
            with open(path_of(name), "r+") as file:  # unlike "w", this never creates a file
                file.write(value)
        except OSError as error:
            raise KernelError(f"{name} cannot be set to {value}: {error.strerror}") from None


def path_of(name: str) -> str:
    """The file of parameter `name`. It may have slashes for its dots, as for an interface whose name has a dot."""
    if name.startswith("/"):
        return name
    return f"/proc/sys/{name if '/' in name else name.replace('.', '/')}"


def ensure(sysctls: Sysctls, name: str, value: int) -> bool:
    """Set `name` to `value` unless that is its value; returns whether it was set. Raises KernelError."""
    if sysctls.get(name) == str(value):
        return False
    sysctls.set(name, str(value))
    return True


def ensure_all(sysctls: Sysctls, wanted: Iterable[tuple[str, int]]) -> list[str]:
    """Set each parameter whose value differs; returns a line for each that cannot be set."""
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
    """The number of entries that the conntrack table should hold, 0 to leave it as it is."""
    return max(settings.max_per_core * cores, settings.min) if settings.max_per_core > 0 else 0


def apply_conntrack(sysctls: Sysctls, settings: ConntrackSettings, cores: int = 0) -> list[str]:
    """Set the parameters that `settings` ask for; returns a line for each that cannot be set.

    cores: the number of CPU cores to multiply by, 0 for those that this process may use.
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
    """The parameters of IPVS mode and their values, as kube-proxy sets them. kernel: the first two numbers of its
    version.

    conntrack: without it netfilter does not track IPVS's connections, and their packets cannot be masqueraded.
    expire_nodest_conn, expire_quiescent_template: a connection ends when its real server is gone, and a persistent
    client of a real server with weight 0 is scheduled anew.
    conn_reuse_mode: before Linux 5.9 a value of 1 delayed each reused client port by a second.
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
    """Keep the hash table at four entries a bucket or fewer, else every lookup gets slow. It is never made smaller."""
    buckets, held = limit // ENTRIES_PER_BUCKET, sysctls.get(HASHSIZE)
    if not buckets or held is None or (re.fullmatch("[0-9]{1,20}", held) and int(held) >= buckets):
        return []
    return ensure_all(sysctls, [(HASHSIZE, buckets)])
