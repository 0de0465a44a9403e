"""What the command line and the configuration file say together: all that the daemon is told at its start.

The `logging` section put into effect.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kproxy import logs
from kproxy.config.fields import KubeProxyConfiguration, Logging
from kproxy.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.

    config: complete and valid, the flags applied.
    node_name: the Node that this host is, lower-cased.
    manifests: folders to follow in place of an API server; empty means the API server.
    kubeconfig, master: "" means the file's, else the pod's own service account.
    config_file: the file that `config` came from, None without.
    iptables_backend: auto, nft or legacy.
    init_only: do what needs full privileges, then end.
    warnings: one line each, to be logged.
    flags: every flag by name, as it was given or its default, as text.
    reread: reads the same flags and the file, as it is then, once more; raises InvalidConfig. None without a file.
    """

    config: KubeProxyConfiguration
    node_name: str
    manifests: tuple[Path, ...] = ()
    kubeconfig: str = ""
    master: str = ""
    config_file: Path | None = None
    iptables_backend: str = "auto"
    init_only: bool = False
    warnings: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict, compare=False)
    reread: Callable[[], Options] | None = field(default=None, compare=False)


def node_name(override: str) -> str:
    """The name of this host's Node: OVERRIDE, else the host name, lower-cased as the kubelet registers it."""
    name = (override.strip() or socket.gethostname().strip()).lower()
    if not name:
        raise InvalidConfig(["hostnameOverride: must be set, because this host has no name"])
    return name


def set_up(logging: Logging) -> None:
    """Log as LOGGING says. May be called again."""
    # The first of two entries for one name wins: those of the flags stand before those of the file.
    modules = {m.file_pattern: m.verbosity for m in reversed(logging.vmodule)}
    logs.setup(logging.format, logging.verbosity, modules)
