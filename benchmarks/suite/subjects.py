"""Which proxies are measured, how each is started, and the configuration that all of them get. Pure."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cluster import NODE
from benchmarks.suite.network import CLUSTER_CIDR, NODE_ADDRESS
from benchmarks.suite.results import Subject

MODES = ("iptables", "iptables-nft", "iptables-legacy", "ipvs", "nftables", "userspace")
PLACEHOLDERS = ("config", "kubeconfig", "node", "mode")
OURS = "kproxy"
_SHORT = "10ms"


@dataclass(frozen=True, slots=True)
class Launch:
    """A subject, and its command as words in which PLACEHOLDERS stand in braces."""

    subject: Subject
    template: tuple[str, ...]


def backend(mode: str) -> str:
    """Which iptables a mode asks for: nft, legacy, or auto where it does not say or does not care."""
    return mode.partition("-")[2] or "auto"


def split(command: str) -> tuple[str, ...]:
    """The words of a baseline's command. Raises ValueError, which says why it is none."""
    found = tuple(shlex.split(command))
    if not found:
        raise ValueError("it is empty")
    for word in found:
        for _, name, _, _ in string.Formatter().parse(word):
            if name is not None and name not in PLACEHOLDERS:
                raise ValueError(f"{{{name}}} means nothing; known are {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}")
    return found


def launches(modes: Sequence[str], baselines: Sequence[str], python: str) -> list[Launch]:
    """kproxy and then each baseline, each in every mode. `python`: the interpreter that runs kproxy.

    A baseline is a command, or NAME=COMMAND to be called so; else it is called as its program is. Raises ValueError.
    """
    found = [_ours(mode, python) for mode in modes]
    names = {OURS}
    for text in baselines:
        name, command = _named(text)
        template = split(command)
        name = _unused(name or template[0].rpartition("/")[2], names)
        names.add(name)
        found += [
            Launch(Subject(f"{name} {mode}", mode, shlex.join(template), baseline=True), template) for mode in modes
        ]
    return found


def words(template: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The command itself. values: of each of the PLACEHOLDERS."""
    return [word.format_map(values) for word in template]


def configuration(mode: str, kubeconfig: str, keep_periods: bool) -> dict[str, Any]:
    """A KubeProxyConfiguration. keep_periods: whether minSyncPeriod stays as the proxy has it by default.

    With the default of a second most of a change's latency would be waiting, and the same for every proxy.
    """
    period = {} if keep_periods else {"minSyncPeriod": _SHORT}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode.partition("-")[0],
        "hostnameOverride": NODE,
        "clusterCIDR": CLUSTER_CIDR,
        "nodePortAddresses": [f"{NODE_ADDRESS}/32"],
        "clientConnection": {"kubeconfig": kubeconfig},
        "conntrack": {"maxPerCore": 0, "min": 0},  # the host's limits are not the benchmark's to change
        **({name: dict(period) for name in ("iptables", "ipvs", "nftables")} if period else {}),
    }


def _ours(mode: str, python: str) -> Launch:
    template = (python, "-m", "kproxy", "run", "--config", "{config}", "--iptables-backend", backend(mode))
    return Launch(Subject(f"{OURS} {mode}", mode, shlex.join(("python", *template[1:]))), template)


def _named(text: str) -> tuple[str, str]:
    name, mark, command = text.partition("=")
    if mark and name and all(c.isalnum() or c in "._-" for c in name):
        return name, command
    return "", text


def _unused(name: str, taken: set[str]) -> str:
    number, found = 2, name
    while found in taken:
        number, found = number + 1, f"{name} {number}"
    return found
