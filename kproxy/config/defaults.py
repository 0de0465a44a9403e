"""Replaces zero values, which Go cannot tell from absent ones, by kube-proxy's defaults."""

from __future__ import annotations

from msgspec.structs import replace

from kproxy.config.durations import MINUTE, SECOND, Duration
from kproxy.config.fields import IPVS, ClientConnection, IPTables, KubeProxyConfiguration, Logging, NFTables, ProxyMode
from kproxy.model.addresses import canonical_ip

HEALTHZ_PORT = 10256
METRICS_PORT = 10249
SYNC_PERIOD = Duration(30 * SECOND)
MIN_SYNC_PERIOD = Duration(1 * SECOND)
PRIMARY = ("primary",)
CONFIG_SYNC_PERIOD = Duration(15 * MINUTE)


def default(mode: ProxyMode = ProxyMode.IPTABLES) -> KubeProxyConfiguration:
    """The configuration of an empty file, in this MODE."""
    return complete(KubeProxyConfiguration(mode=mode), given=frozenset())


def complete(config: KubeProxyConfiguration, given: frozenset[str]) -> KubeProxyConfiguration:
    """CONFIG with defaults for its zero values.

    given: names of the top-level fields in the file; the healthz and metrics addresses, if not among them, follow the
    family of bindAddress. Sync periods get defaults in the section of the mode in use, as the others have no effect; in
    ipvs mode minSyncPeriod has none. In nftables mode the default of nodePortAddresses is the node's primary addresses.
    """
    bind = config.bind_address or "0.0.0.0"
    anywhere, loopback = ("[::]", "[::1]") if _is_ipv6(bind) else ("0.0.0.0", "127.0.0.1")
    healthz = config.healthz_bind_address if "healthzBindAddress" in given else ""
    metrics = config.metrics_bind_address if "metricsBindAddress" in given else ""
    name, section = _section(config)
    client, standard = config.client_connection, ClientConnection()
    return replace(
        config,
        bind_address=bind,
        healthz_bind_address=with_port(healthz or anywhere, HEALTHZ_PORT),
        metrics_bind_address=with_port(metrics or loopback, METRICS_PORT),
        logging=replace(config.logging, flush_frequency=config.logging.flush_frequency or Logging().flush_frequency),
        config_sync_period=config.config_sync_period or CONFIG_SYNC_PERIOD,
        node_port_addresses=config.node_port_addresses or (PRIMARY if config.mode is ProxyMode.NFTABLES else ()),
        client_connection=replace(
            client,
            content_type=client.content_type or standard.content_type,
            qps=client.qps or standard.qps,
            burst=client.burst or standard.burst,
        ),
        **{
            name: replace(
                section,
                sync_period=section.sync_period or SYNC_PERIOD,
                min_sync_period=section.min_sync_period
                or (Duration(0) if isinstance(section, IPVS) else MIN_SYNC_PERIOD),
            )
        },
    )


def without_unused(config: KubeProxyConfiguration) -> KubeProxyConfiguration:
    """CONFIG without the values that kube-proxy drops as it reads a file, and so does not write either.

    These are the sync periods of other modes' sections, masqueradeAll of the one that the mode does not use, and
    portRange, which userspace mode alone has.
    """
    iptables, ipvs, nftables = config.iptables, config.ipvs, config.nftables
    none = Duration(0)
    if iptables is not config.section:
        iptables = replace(iptables, sync_period=none, min_sync_period=none)
    if ipvs is not config.section:
        ipvs = replace(ipvs, sync_period=none, min_sync_period=none)
    if nftables is not config.section:
        nftables = replace(nftables, sync_period=none, min_sync_period=none, masquerade_all=False)
    else:
        iptables = replace(iptables, masquerade_all=False)
    ports = config.port_range if config.mode is ProxyMode.USERSPACE else ""
    return replace(config, iptables=iptables, ipvs=ipvs, nftables=nftables, port_range=ports)


def with_port(address: str, port: int) -> str:
    """ADDRESS, with PORT added if it is an IP alone; anything else is returned as it is and left to validation."""
    host = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    if canonical_ip(host) is None:
        return address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ipv6(address: str) -> bool:
    return ":" in (canonical_ip(address) or "")


def _section(config: KubeProxyConfiguration) -> tuple[str, IPTables | IPVS | NFTables]:
    name = config.mode.value if config.mode is not ProxyMode.USERSPACE else "iptables"
    return name, config.section
