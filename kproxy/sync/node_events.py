"""What a start, or a change of the mode, tells operators beside the log: Events on this node's Node. Pure.

Reasons and actions are kube-proxy's where it has such an Event, so that alerts go on working.
Source: KEP-5343 (the default mode), KEP-5495 (ipvs mode).
"""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.config import gates, minors
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.events.series import Notice

STARTING = "Starting"
IPVS_DEPRECATION = "IPVSDeprecation"
MODE_UNSET = "ProxyModeUnset"
INVALID_CONFIGURATION = "InvalidConfiguration"
_START = "StartKubeProxy"

_IPVS = (
    f"kube-proxy's ipvs mode is deprecated: it is off by default in Kubernetes {minors.NFTABLES_DEFAULT} (feature gate "
    f"{gates.KUBE_PROXY_IPVS}) and removed in {minors.IPVS_REMOVED}. kproxy keeps supporting it; from then on there is "
    "no way back to kube-proxy in this mode"
)
_UNSET = (
    "no proxy mode is configured, so iptables is used; kube-proxy's default becomes nftables in Kubernetes "
    f"{minors.NFTABLES_DEFAULT}. Set mode, or --proxy-mode, to keep iptables"
)


def starting(node: str, version: str, config: KubeProxyConfiguration) -> Notice:
    """The Event of a start. version: kproxy's."""
    note = f"kproxy {version}, in place of kube-proxy {config.emulate_version}, in {config.mode} mode"
    return Notice("Node", "", node, STARTING, _START, note, type="Normal")


def mode_warnings(node: str, config: KubeProxyConfiguration, mode_given: bool) -> Iterator[Notice]:
    """The warnings about the mode in use, as the minor that is followed gives them.

    mode_given: whether flags or file name a mode.
    """
    if config.mode is ProxyMode.IPVS:
        yield Notice("Node", "", node, IPVS_DEPRECATION, _START, _IPVS)
    if not mode_given and config.emulate_version.warns_of_unset_mode:
        yield Notice("Node", "", node, MODE_UNSET, _START, _UNSET)


def refused_configuration(node: str, problems: str) -> Notice:
    """The Event of a changed configuration file that was refused. problems: in one line."""
    note = f"the changed configuration is refused: {problems}"
    return Notice("Node", "", node, INVALID_CONFIGURATION, "Reload", note)
