"""What a new configuration asks of a daemon that runs. Pure.

Most fields are looked at whenever they are needed, so the new values only have to be put in the place of the old ones.
Here are the fields for which that is not enough.
"""

from __future__ import annotations

from operator import attrgetter

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.options import Options

__all__ = ["changed_fields", "needs_new_client", "needs_new_driver", "unchangeable"]

MADE_WITH = {
    ProxyMode.IPVS: (
        "ipvs.scheduler",
        "ipvs.exclude_cidrs",
        "ipvs.strict_arp",
        "ipvs.tcp_timeout",
        "ipvs.tcp_fin_timeout",
        "ipvs.udp_timeout",
    ),
    ProxyMode.USERSPACE: (
        "port_range",
        "userspace.udp_idle_timeout",
        "userspace.drain_timeout",
    ),
}
"""What a mode's driver reads only when it is made."""


def needs_new_driver(old: KubeProxyConfiguration, new: KubeProxyConfiguration) -> bool:
    """Whether the driver in use has to give way to another one, as it does where the daemon is started again."""
    return old.mode is not new.mode or any(_differs(path, old, new) for path in MADE_WITH.get(old.mode, ()))


def needs_new_client(old: KubeProxyConfiguration, new: KubeProxyConfiguration) -> bool:
    """Whether the cluster has to be asked in another way."""
    paths = ("client_connection.kubeconfig", "client_connection.qps", "client_connection.burst")
    return any(_differs(path, old, new) for path in paths)


def unchangeable(old: Options, new: Options) -> list[str]:
    """What stays as it is until the next start although it changed, a line each."""
    if old.node_name == new.node_name:
        return []
    return [f'hostnameOverride: the node stays "{old.node_name}" until a restart, is now "{new.node_name}"']


def changed_fields(old: object, new: object, path: str = "") -> list[str]:
    """The paths of all fields that differ, by the names of the file; OLD and NEW are values as `encode` makes them."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [path] if old != new else []
    return [
        found
        for name in sorted(old.keys() | new.keys())
        for found in changed_fields(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))
    ]


def _differs(path: str, old: KubeProxyConfiguration, new: KubeProxyConfiguration) -> bool:
    value = attrgetter(path)
    return bool(value(old) != value(new))
