"""The flags of `kproxy run`, kube-proxy's and kproxy's own: name, type, default, field and help; /flagz's view of them.

Types are named as in kube-proxy's help; `flag_values` parses them, and `settings` applies them to a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kproxy.cli import flag_values
from kproxy.config import minors


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    field: the path of its field in KubeProxyConfiguration; () when it has none.
    kept: it has an effect even with --config, where the file wins over all others.
    idle: accepted without an effect.
    """

    name: str
    type: str
    default: str
    help: str
    field: tuple[str, ...] = ()
    kept: bool = False
    idle: bool = False


def _flag(name: str, kind: str, default: str, text: str, field: str = "") -> Flag:
    return Flag(name, kind, default, text, tuple(field.split(".")) if field else ())


def _kept(name: str, kind: str, default: str, text: str, field: str = "") -> Flag:
    return replace(_flag(name, kind, default, text, field), kept=True)


def _idle(name: str, kind: str, default: str) -> Flag:
    return replace(_kept(name, kind, default, "No effect."), idle=True)


FLAGS: tuple[Flag, ...] = (
    # How to run
    _kept("config", "string", "", "Read the configuration from this file, which wins over most flags."),
    _kept("write-config-to", "string", "", "Write the configuration to this file and exit."),
    _kept("cleanup", "bool", "", "Remove everything that any proxy mode wrote, and exit."),
    _kept("init-only", "bool", "", "Do what needs full root privileges, and exit."),
    _kept("version", "version[=true]", "", "Print the version and exit."),
    _kept(
        "manifests", "folder", "", "Follow Services, EndpointSlices and Nodes in this folder, without an API server."
    ),
    _kept("iptables-backend", "string", "auto", "Which iptables to use: auto (as the node does), nft or legacy."),
    _kept(
        "emulate-version",
        "minor",
        str(minors.DEFAULT),
        f"The minor version of Kubernetes whose kube-proxy is followed: {minors.OLDEST} to {minors.NEWEST}, or newer.",
        "emulate_version",
    ),
    _kept(
        "hand-over-at-end",
        "bool",
        "",
        "At the end leave rules of iptables mode and nothing of nftables or ipvs mode; userspace mode always does.",
    ),
    _kept("hostname-override", "string", "", "The name of this Node; the host name by default.", "hostname_override"),
    _flag(
        "feature-gates",
        "mapStringBool",
        "",
        "name=true|false pairs; every gate of Kubernetes is known, few have an effect here.",
        "feature_gates",
    ),
    _flag("proxy-mode", "ProxyMode", "", "iptables (default), ipvs, nftables or userspace.", "mode"),
    _flag("bind-address", "ip", "0.0.0.0", "The node's own IP, when the Node object has none.", "bind_address"),
    _flag("bind-address-hard-fail", "bool", "", "Exit when a port cannot be bound.", "bind_address_hard_fail"),
    _flag("oom-score-adj", "int32", "-999", "This process's oom_score_adj, -1000 to 1000.", "oom_score_adj"),
    # The API server
    _flag("kubeconfig", "string", "", "How to reach the API server.", "client_connection.kubeconfig"),
    _kept("master", "string", "", "The API server's URL, in place of the kubeconfig's."),
    _flag("kube-api-burst", "int32", "10", "Burst of requests to the API server.", "client_connection.burst"),
    _flag(
        "kube-api-content-type",
        "string",
        "application/vnd.kubernetes.protobuf",
        "No effect: JSON is used.",
        "client_connection.content_type",
    ),
    _flag("kube-api-qps", "float32", "5", "Requests per second to the API server.", "client_connection.qps"),
    _flag("config-sync-period", "duration", "15m0s", "No effect: watches report every change.", "config_sync_period"),
    # Health and metrics
    _flag(
        "healthz-bind-address",
        "ipport",
        "0.0.0.0:10256",
        "Where /healthz and /livez are served; empty: nowhere.",
        "healthz_bind_address",
    ),
    _flag(
        "metrics-bind-address",
        "ipport",
        "127.0.0.1:10249",
        "Where /metrics is served; empty: nowhere.",
        "metrics_bind_address",
    ),
    _flag("profiling", "bool", "", "No effect: there are no profiling pages.", "enable_profiling"),
    _flag(
        "show-hidden-metrics-for-version",
        "string",
        "",
        "No effect: no metric is hidden.",
        "show_hidden_metrics_for_version",
    ),
    # Which traffic
    _flag(
        "cluster-cidr", "string", "", "The pods' CIDR, or one of each IP family, separated by a comma.", "cluster_cidr"
    ),
    _flag(
        "detect-local-mode",
        "LocalMode",
        "",
        "ClusterCIDR (default), NodeCIDR, BridgeInterface or InterfaceNamePrefix.",
        "detect_local_mode",
    ),
    _flag(
        "pod-bridge-interface", "string", "", "The pods' bridge, for BridgeInterface.", "detect_local.bridge_interface"
    ),
    _flag(
        "pod-interface-name-prefix",
        "string",
        "",
        "The prefix of pods' interfaces, for InterfaceNamePrefix.",
        "detect_local.interface_name_prefix",
    ),
    _flag(
        "nodeport-addresses",
        "strings",
        "",
        "The addresses that accept node ports: CIDRs, primary, localhost, all.",
        "node_port_addresses",
    ),
    # Modes
    _flag("masquerade-all", "bool", "", "Masquerade all traffic to cluster IPs.", "iptables.masquerade_all"),
    _flag(
        "iptables-masquerade-bit",
        "int32",
        "14",
        "The bit of the packet mark that asks for masquerading, 0 to 31.",
        "iptables.masquerade_bit",
    ),
    _flag(
        "iptables-localhost-nodeports",
        "bool",
        "true",
        "Let node ports answer on 127.0.0.1.",
        "iptables.localhost_node_ports",
    ),
    _flag("iptables-sync-period", "duration", "30s", "How often all rules are checked.", "iptables.sync_period"),
    _flag(
        "iptables-min-sync-period",
        "duration",
        "1s",
        "The least time between two syncs; 0: none.",
        "iptables.min_sync_period",
    ),
    _flag("ipvs-sync-period", "duration", "30s", "How often all virtual servers are checked.", "ipvs.sync_period"),
    _flag(
        "ipvs-min-sync-period",
        "duration",
        "1s",
        "The least time between two syncs; 0: none.",
        "ipvs.min_sync_period",
    ),
    _flag(
        "ipvs-scheduler",
        "string",
        "",
        "The scheduler: rr (default), lc, sh and others.",
        "ipvs.scheduler",
    ),
    _flag(
        "ipvs-exclude-cidrs",
        "strings",
        "",
        "CIDRs of other programs' virtual servers.",
        "ipvs.exclude_cidrs",
    ),
    _flag("ipvs-strict-arp", "bool", "", "Set arp_ignore to 1 and arp_announce to 2.", "ipvs.strict_arp"),
    _flag("ipvs-tcp-timeout", "duration", "", "Timeout of idle TCP connections; 0: the kernel's.", "ipvs.tcp_timeout"),
    _flag(
        "ipvs-tcpfin-timeout",
        "duration",
        "",
        "Timeout of TCP connections after a FIN; 0: the kernel's.",
        "ipvs.tcp_fin_timeout",
    ),
    _flag("ipvs-udp-timeout", "duration", "", "Timeout of UDP flows; 0: the kernel's.", "ipvs.udp_timeout"),
    _flag(
        "userspace-udp-idle-timeout",
        "duration",
        "250ms",
        "How long userspace mode keeps a UDP session without datagrams.",
        "userspace.udp_idle_timeout",
    ),
    _flag(
        "userspace-drain-timeout",
        "duration",
        "1m0s",
        "How long connections to a removed endpoint may go on in userspace mode.",
        "userspace.drain_timeout",
    ),
    _flag("proxy-port-range", "string", "", "The proxy ports of userspace mode, as in 30000-32000.", "port_range"),
    # Connection tracking
    _flag(
        "conntrack-max-per-core",
        "int32",
        "32768",
        "Tracked connections per CPU core; 0: the kernel's limit.",
        "conntrack.max_per_core",
    ),
    _flag(
        "conntrack-min",
        "int32",
        "131072",
        "The least number of tracked connections, for any number of cores.",
        "conntrack.min",
    ),
    _flag(
        "conntrack-tcp-be-liberal",
        "bool",
        "",
        "Treat TCP packets outside of the window as valid.",
        "conntrack.tcp_be_liberal",
    ),
    _flag(
        "conntrack-tcp-timeout-close-wait",
        "duration",
        "1h0m0s",
        "Timeout in CLOSE_WAIT; 0: the kernel's.",
        "conntrack.tcp_close_wait_timeout",
    ),
    _flag(
        "conntrack-tcp-timeout-established",
        "duration",
        "24h0m0s",
        "Timeout of idle TCP connections; 0: the kernel's.",
        "conntrack.tcp_established_timeout",
    ),
    _flag(
        "conntrack-udp-timeout",
        "duration",
        "",
        "Timeout of unanswered UDP flows; 0: the kernel's.",
        "conntrack.udp_timeout",
    ),
    _flag(
        "conntrack-udp-timeout-stream",
        "duration",
        "",
        "Timeout of answered UDP flows; 0: the kernel's.",
        "conntrack.udp_stream_timeout",
    ),
    # Logs
    _kept(
        "v", "Level", "", "How much is logged: 0, 2 (changes), 4 (details, tracebacks) up to 10.", "logging.verbosity"
    ),
    _kept("vmodule", "pattern=N,...", "", "The verbosity of single parts, as in sync=4,sources=2.", "logging.vmodule"),
    _kept("logging-format", "format", "text", "text or json.", "logging.format"),
    _kept("log-flush-frequency", "duration", "5s", "No effect: lines are never held back.", "logging.flush_frequency"),
    _kept(
        "log-json-info-buffer-size",
        "quantity",
        "",
        "No effect: lines are never held back.",
        "logging.options.json.info_buffer_size",
    ),
    _kept(
        "log-json-split-stream",
        "bool",
        "",
        "No effect: all goes to standard error.",
        "logging.options.json.split_stream",
    ),
    _kept(
        "log-text-info-buffer-size",
        "quantity",
        "",
        "No effect: lines are never held back.",
        "logging.options.text.info_buffer_size",
    ),
    _kept(
        "log-text-split-stream",
        "bool",
        "",
        "No effect: all goes to standard error.",
        "logging.options.text.split_stream",
    ),
    # kube-proxy inherits these from a library
    _idle("boot-id-file", "string", "/proc/sys/kernel/random/boot_id"),
    _idle("machine-id-file", "string", "/etc/machine-id,/var/lib/dbus/machine-id"),
)

BY_NAME = {flag.name: flag for flag in FLAGS}


# What Go prints for an unset value.
ZEROS = {"bool": "false", "version[=true]": "false", "int32": "0", "duration": "0s", "strings": "[]", "Level": "0"}
_PASSWORD = re.compile(r"(?<=://)[^/\s@]*@")


def flag_layer(texts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return every flag with its value in `texts` or its default, as Go prints it and without passwords in URLs.

    This is the command line only; the effective configuration is at /configz.
    """
    return {flag.name: _PASSWORD.sub("(hidden)@", _value(flag, texts.get(flag.name, ()))) for flag in FLAGS}


def _value(flag: Flag, given: Sequence[str]) -> str:
    if not given:
        return flag.default or ZEROS.get(flag.type, "")
    if flag.type == "bool":
        return "true" if flag_values.parse("bool", given) else "false"
    if flag.type == "strings":
        return f"[{','.join(flag_values.parse('strings', given))}]"
    return given[-1] if flag.type not in flag_values.REPEATABLE else ",".join(given)
