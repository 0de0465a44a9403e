"""Validates the values of a configuration, and finds those that have no effect.

Every check is a small generator of (field, reason) pairs; `problems` runs them all, so that the output names everything
that has to be corrected. The rules are kube-proxy's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec

from kproxy.config import gates, minors
from kproxy.config.durations import Duration
from kproxy.config.field_docs import FIELD_DOCS, leaves, value_at
from kproxy.config.fields import IPVS, DetectLocalMode, IPTables, KubeProxyConfiguration, NFTables, ProxyMode
from kproxy.config.minors import KubernetesMinor
from kproxy.model.addresses import canonical_cidr, canonical_ip

Problem = tuple[str, str]

OLDEST_HIDING = KubernetesMinor(36)
"""The minor from which on showHiddenMetricsForVersion of older ones is taken."""
NODE_PORT_KEYWORDS = ("primary", "localhost", "all")
DETECTED_BY = {
    "clusterCIDR": DetectLocalMode.CLUSTER_CIDR,
    "detectLocal.bridgeInterface": DetectLocalMode.BRIDGE_INTERFACE,
    "detectLocal.interfaceNamePrefix": DetectLocalMode.INTERFACE_NAME_PREFIX,
}
LONGEST_INTERFACE = 15  # IFNAMSIZ - 1
_INTERFACE = re.compile(r"[^\s/:\"'*!\\\x00-\x1f\x7f]+")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]+)?")
_QUANTITY = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE])?")
_RANGE = re.compile(r"([0-9]{1,5})([-+][0-9]{1,5})?")


def problems(config: KubeProxyConfiguration) -> list[Problem]:
    """The problems of CONFIG, as (path of the field, reason), in the order of the fields."""
    return [problem for problem in _found(config) if not _unused(config, problem[0])]


def passed_over(config: KubeProxyConfiguration) -> list[Problem]:
    """What is wrong with CONFIG and does no harm.

    That is the problems of fields that the mode, or the way to detect local traffic, does not use: kube-proxy does not
    check these, so a file that it starts with has to work here as well; they become problems once they are used. And
    it is gates that no minor knows, when the minor that is followed is newer than those that are known.
    """
    found = [(path, reason, use) for path, reason in _found(config) if (use := _unused(config, path))]
    lines = [(path, f"{reason}; {use} does not use it") for path, reason, use in found]
    if config.port_range and config.mode is not ProxyMode.USERSPACE and "portRange" not in dict(lines):
        lines.append(("portRange", f"mode {config.mode} does not use it"))
    if config.emulate_version > minors.NEWEST:
        lines += [
            (f"featureGates.{name}", f"{reason}; the gates of Kubernetes {minors.NEWEST} and older are known")
            for name, reason in gates.unknown(config.feature_gates)
        ]
    return lines


def _found(config: KubeProxyConfiguration) -> Iterator[Problem]:
    checks = (_mode, _gates, _client, _logging, _addresses, _sections, _detect_local, _cidrs, _node_ports, _limits)
    for check in checks:
        yield from check(config)


def _unused(config: KubeProxyConfiguration, path: str) -> str:
    """The setting that makes the field PATH unused; "" when it is used."""
    if path == "portRange":
        return "" if config.mode is ProxyMode.USERSPACE else f"mode {config.mode}"
    section, _, name = path.partition(".")
    periods = name in ("syncPeriod", "minSyncPeriod") and getattr(config, section) is not config.section
    if periods or (section in ("ipvs", "nftables", "userspace") and section != config.mode):
        return f"mode {config.mode}"
    used = DETECTED_BY.get(path)
    return f"detectLocalMode {config.detect_local_mode}" if used and used is not config.detect_local_mode else ""


# ---------------------------------------------------------------- checks


def _mode(config: KubeProxyConfiguration) -> Iterator[Problem]:
    if config.mode is ProxyMode.IPVS and not config.gate_enabled(gates.KUBE_PROXY_IPVS):
        yield "mode", f'must not be "{ProxyMode.IPVS}" while the feature gate {gates.KUBE_PROXY_IPVS} is off'


def _gates(config: KubeProxyConfiguration) -> Iterator[Problem]:
    for name, reason in gates.problems(config.feature_gates, config.emulate_version):
        yield f"featureGates.{name}", reason


def _client(config: KubeProxyConfiguration) -> Iterator[Problem]:
    yield from _not_negative("clientConnection.burst", config.client_connection.burst)
    if not math.isfinite(config.client_connection.qps):
        yield "clientConnection.qps", f"must be a finite number, is {config.client_connection.qps}"


def _logging(config: KubeProxyConfiguration) -> Iterator[Problem]:
    logging = config.logging
    yield from _not_negative("logging.verbosity", logging.verbosity)
    yield from _not_negative("logging.flushFrequency", logging.flush_frequency)
    for i, module in enumerate(logging.vmodule):
        yield from _not_negative(f"logging.vmodule[{i}].verbosity", module.verbosity)
        if not module.file_pattern or re.search(r"[=,\s]", module.file_pattern):
            shown = _quoted(module.file_pattern)
            yield f"logging.vmodule[{i}].filePattern", f"must be a name without '=', ',' or spaces, is {shown}"
    for form in ("text", "json"):
        size = str(getattr(logging.options, form).info_buffer_size)
        if not is_quantity(size):
            path = f"logging.options.{form}.infoBufferSize"
            yield path, f"must be a quantity such as 0, 64Ki or 1M, is {_quoted(size)}"


def _addresses(config: KubeProxyConfiguration) -> Iterator[Problem]:
    if not _is_ip(config.bind_address):
        yield "bindAddress", f"must be an IP address, is {_quoted(config.bind_address)}"
    yield from _ip_port("healthzBindAddress", config.healthz_bind_address)
    yield from _ip_port("metricsBindAddress", config.metrics_bind_address)


def _ip_port(field: str, value: str) -> Iterator[Problem]:
    if not value:  # not served
        return
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not _is_ip(host[1:-1] if bracketed else host) or bracketed != (":" in host):
        yield field, f'must be IP:port, such as "0.0.0.0:10256" or "[::]:10256", is {_quoted(value)}'
    elif not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        yield field, f"must have a port from 1 to 65535, is {_quoted(value)}"


def _sections(config: KubeProxyConfiguration) -> Iterator[Problem]:
    for name in ("iptables", "ipvs", "nftables"):
        section = getattr(config, name)
        yield from _periods(name, section, in_use=section is config.section)
        if not isinstance(section, IPVS) and not 0 <= section.masquerade_bit <= 31:
            yield f"{name}.masqueradeBit", f"must be from 0 to 31, is {section.masquerade_bit}"
    ipvs = config.ipvs  # whether there is such a scheduler, the kernel is asked when the mode starts
    for i, cidr in enumerate(ipvs.exclude_cidrs):
        yield from _cidr(f"ipvs.excludeCIDRs[{i}]", cidr)
    yield from _not_negative("ipvs.tcpTimeout", ipvs.tcp_timeout)
    yield from _not_negative("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout)
    yield from _not_negative("ipvs.udpTimeout", ipvs.udp_timeout)
    if config.userspace.udp_idle_timeout <= 0:
        yield "userspace.udpIdleTimeout", f"must be greater than 0, is {config.userspace.udp_idle_timeout}"
    yield from _not_negative("userspace.drainTimeout", config.userspace.drain_timeout)


def _periods(name: str, section: IPTables | IPVS | NFTables, in_use: bool) -> Iterator[Problem]:
    longest, least = section.sync_period, section.min_sync_period
    if in_use and longest <= 0:
        yield f"{name}.syncPeriod", f"must be greater than 0, is {longest}"
    else:
        yield from _not_negative(f"{name}.syncPeriod", longest)
    yield from _not_negative(f"{name}.minSyncPeriod", least)
    if longest > 0 and least > longest:
        yield f"{name}.minSyncPeriod", f"must not be longer than {name}.syncPeriod ({longest}), is {least}"


def _detect_local(config: KubeProxyConfiguration) -> Iterator[Problem]:
    mode, detect = config.detect_local_mode, config.detect_local
    for field, value, needed, room in (
        ("bridgeInterface", detect.bridge_interface, DetectLocalMode.BRIDGE_INTERFACE, 0),
        # In a rule a prefix is followed by a wildcard, which needs one of the characters.
        ("interfaceNamePrefix", detect.interface_name_prefix, DetectLocalMode.INTERFACE_NAME_PREFIX, 1),
    ):
        path = f"detectLocal.{field}"
        if not value:
            if mode is needed:
                yield path, f"must be set, because detectLocalMode is {mode}"
        elif not _INTERFACE.fullmatch(value):
            yield path, f"must be the name of an interface, is {_quoted(value)}"
        elif len(value.encode()) > LONGEST_INTERFACE - room:
            yield path, f"must be at most {LONGEST_INTERFACE - room} bytes long, is {_quoted(value)}"


def _cidrs(config: KubeProxyConfiguration) -> Iterator[Problem]:
    cidrs = config.cluster_cidrs
    wrong = [problem for cidr in cidrs for problem in _cidr("clusterCIDR", cidr)]
    yield from wrong
    families = {":" in (canonical_cidr(cidr) or "") for cidr in cidrs}
    if not wrong and len(families) < len(cidrs):
        pair = "one CIDR, or one of IPv4 and one of IPv6 (10.244.0.0/16,fd00:244::/48)"
        yield "clusterCIDR", f"must be {pair}, is {_quoted(config.cluster_cidr)}"


def _node_ports(config: KubeProxyConfiguration) -> Iterator[Problem]:
    asked = config.node_port_addresses
    minor = config.emulate_version
    if minor.combines_keywords:
        keywords: tuple[str, ...] = NODE_PORT_KEYWORDS
    else:
        keywords = ("primary",)
        if "primary" in asked and len(asked) > 1:
            shown = _quoted(", ".join(asked))
            yield "nodePortAddresses", f"must hold nothing else when it holds primary, in {minor}, is {shown}"
            return
    for i, text in enumerate(asked):
        if text not in keywords:
            yield from _cidr(f"nodePortAddresses[{i}]", text, other=f"{', '.join(map(_quoted, keywords))} or ")


def _limits(config: KubeProxyConfiguration) -> Iterator[Problem]:
    if not -1000 <= config.oom_score_adj <= 1000:
        yield "oomScoreAdj", f"must be from -1000 to 1000, is {config.oom_score_adj}"
    conntrack = config.conntrack
    for field in msgspec.structs.fields(conntrack):
        if field.type is not bool:
            yield from _not_negative(f"conntrack.{field.encode_name}", getattr(conntrack, field.name))
    # No metric is hidden here, so what an older minor takes stays valid, and a file survives an upgrade.
    minor, shown = config.emulate_version, config.show_hidden_metrics_for_version
    valid = [str(KubernetesMinor(m).previous) for m in range(min(minor, OLDEST_HIDING), minor + 1)]
    if shown and shown not in valid:
        yield "showHiddenMetricsForVersion", f"must be {_quoted(valid[-1])}, the version before, is {_quoted(shown)}"
    if config.config_sync_period <= 0:
        yield "configSyncPeriod", f"must be greater than 0, is {config.config_sync_period}"
    if config.port_range and not (_RANGE.fullmatch(config.port_range) and _ports(config)):
        yield "portRange", f"must be a range of ports such as 30000-30100, is {_quoted(config.port_range)}"


def _ports(config: KubeProxyConfiguration) -> bool:
    """Whether portRange is valid."""
    try:
        return bool(config.proxy_ports)
    except ValueError:
        return False


# ---------------------------------------------------------------- single values


def _not_negative(field: str, value: int | Duration) -> Iterator[Problem]:
    if value < 0:
        yield field, f"must not be negative, is {value}"


def is_quantity(text: str) -> bool:
    """Whether TEXT is a quantity as Kubernetes writes it. Source: k8s.io/apimachinery, resource.Quantity."""
    return bool(_QUANTITY.fullmatch(text))


def _cidr(field: str, value: str, other: str = "") -> Iterator[Problem]:
    if not (_ADDRESS.fullmatch(value) and canonical_cidr(value)):
        yield field, f"must be {other}a CIDR such as 10.0.0.0/8 or fd00::/64, is {_quoted(value)}"


def _is_ip(value: str) -> bool:
    return bool(_ADDRESS.fullmatch(value) and canonical_ip(value))


def _quoted(value: str) -> str:
    return f'"{value}"'


# ---------------------------------------------------------------- without effect


def ignored(config: KubeProxyConfiguration) -> list[str]:
    """The paths of fields that CONFIG sets and that have no effect in kproxy: Windows', profiling's, buffering's."""
    standard = KubeProxyConfiguration()
    found = [
        path
        for path, attributes, _ in leaves()
        if FIELD_DOCS[path].idle and value_at(config, attributes) != value_at(standard, attributes)
    ]
    return sorted(
        [*found, *(f"featureGates.{gate}" for gate in gates.idle(config.feature_gates, config.emulate_version))]
    )
