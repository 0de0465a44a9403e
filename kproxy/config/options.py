"""The daemon's options: the outcome of command line and configuration file together."""

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
    """Everything that the daemon needs to know at its start.

    config: complete and valid, the flags applied.
    node_name: the Node that this host is, lower-cased.
    manifests: folders to follow instead of an API server; empty for the API server.
    kubeconfig, master: as in `sources.credentials.ClientSettings`.
    config_file: the file that `config` came from, None for none.
    iptables_backend: auto, nft or legacy.
    mode_given: whether flags or file name a mode.
    hand_over_at_end: leave rules of iptables mode at the end, in place of the mode's own.
    init_only: do what needs full privileges, then end.
    warnings: one line each, to be logged.
    flags: the text of every flag by name, given or default.
    reread: applies the same flags to the file as it is by then; raises InvalidConfig. None without a file.
    """

    config: KubeProxyConfiguration
    node_name: str
    manifests: tuple[Path, ...] = ()
    kubeconfig: str = ""
    master: str = ""
    config_file: Path | None = None
    iptables_backend: str = "auto"
    hand_over_at_end: bool = False
    init_only: bool = False
    warnings: tuple[str, ...] = ()
    mode_given: bool = True
    flags: Mapping[str, str] = field(default_factory=dict, compare=False)
    reread: Callable[[], Options] | None = field(default=None, compare=False)


def node_name(override: str) -> str:
    """The name of this host's Node: OVERRIDE, else the host name; lower-cased, as the kubelet registers it."""
    name = (override.strip() or socket.gethostname().strip()).lower()
    if not name:
        raise InvalidConfig(["hostnameOverride: must be set, because this host has no name"])
    return name


def set_up(logging: Logging) -> None:
    """Put the `logging` section of a configuration into effect. May be called again."""
    # The first of two entries for one name wins: those of the flags stand before those of the file.
    modules = {m.file_pattern: m.verbosity for m in reversed(logging.vmodule)}
    logs.setup(logging.format, logging.verbosity, modules)
