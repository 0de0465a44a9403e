"""The fields of KubeProxyConfiguration v1alpha1, with the defaults of kube-proxy.

The values are those of the file: a sync period of zero stands for "the default of the mode", which `defaults.complete`
fills in. Properties of `KubeProxyConfiguration` resolve what depends on the mode in use.
Source: https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, field

from kproxy.config import gates, minors
from kproxy.config.durations import HOUR, MILLISECOND, MINUTE, SECOND, Duration, NumericDuration
from kproxy.config.minors import KubernetesMinor

GROUP = "kubeproxy.config.k8s.io"
API_VERSION = f"{GROUP}/v1alpha1"
KIND = "KubeProxyConfiguration"

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class ProxyMode(StrEnum):
    """How Services are implemented. userspace is kproxy's own; kube-proxy dropped it in 1.26."""

    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"
    USERSPACE = "userspace"


class DetectLocalMode(StrEnum):
    """How traffic from this node's pods is recognised."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class LoggingFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class ClientConnection(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How the API server is reached. qps and burst limit requests; contentType has no meaning here (always JSON)."""

    kubeconfig: str = ""
    accept_content_types: str = ""
    content_type: str = "application/vnd.kubernetes.protobuf"
    qps: float = 5.0
    burst: Int32 = 10


class IPTables(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """iptables mode; masqueradeBit and masqueradeAll hold in ipvs and userspace mode as well."""

    masquerade_bit: Int32 = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    sync_period: Duration = Duration(0)
    min_sync_period: Duration = Duration(0)


class IPVS(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """ipvs mode; a timeout of zero leaves the kernel's."""

    sync_period: Duration = Duration(0)
    min_sync_period: Duration = Duration(0)
    scheduler: str = ""
    exclude_cidrs: tuple[str, ...] = field(name="excludeCIDRs", default=())
    strict_arp: bool = field(name="strictARP", default=False)
    tcp_timeout: Duration = Duration(0)
    tcp_fin_timeout: Duration = Duration(0)
    udp_timeout: Duration = Duration(0)


class NFTables(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    masquerade_bit: Int32 = 14
    masquerade_all: bool = False
    sync_period: Duration = Duration(0)
    min_sync_period: Duration = Duration(0)


class Userspace(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """userspace mode, which kube-proxy does not have: kproxy's own section, not written while it has its defaults.

    udp_idle_timeout: how long a UDP session without datagrams is kept. drain_timeout: how long the connections of an
    endpoint that leaves may go on before they are reset; 0: not at all.
    """

    udp_idle_timeout: Duration = Duration(250 * MILLISECOND)
    drain_timeout: Duration = Duration(MINUTE)


class Conntrack(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Kernel settings of connection tracking; zero leaves the kernel's."""

    max_per_core: Int32 = 32768
    min: Int32 = 131072
    tcp_established_timeout: Duration = Duration(24 * HOUR)
    tcp_close_wait_timeout: Duration = Duration(HOUR)
    tcp_be_liberal: bool = False
    udp_timeout: Duration = Duration(0)
    udp_stream_timeout: Duration = Duration(0)


class DetectLocal(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    bridge_interface: str = ""
    interface_name_prefix: str = ""


class Winkernel(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Windows only: read, so that a shared file can be used, and without meaning here."""

    network_name: str = ""
    source_vip: str = ""
    enable_dsr: bool = field(name="enableDSR", default=False)
    root_hns_endpoint_name: str = ""
    forward_health_check_vip: bool = False


class OutputOptions(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Buffering of log output, which kproxy does not do."""

    split_stream: bool = False
    info_buffer_size: str | int = "0"


class LoggingOptions(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    text: OutputOptions = OutputOptions()
    json: OutputOptions = OutputOptions()


class VModule(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The verbosity of one part of kproxy, named as in its log lines ("sync", "source", ...)."""

    file_pattern: str = ""
    verbosity: Int32 = 0


class Logging(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    format: LoggingFormat = LoggingFormat.TEXT
    flush_frequency: NumericDuration = NumericDuration(5 * SECOND)
    verbosity: Int32 = 0
    vmodule: tuple[VModule, ...] = field(name="vmodule", default=())
    options: LoggingOptions = LoggingOptions()


class KubeProxyConfiguration(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The configuration as a whole. An empty healthz or metrics address means: not served.

    emulate_version: kproxy's own field, not written while it has its default: the minor whose kube-proxy is followed.
    """

    api_version: str = API_VERSION
    kind: str = KIND
    emulate_version: KubernetesMinor = minors.DEFAULT
    feature_gates: dict[str, bool] = field(default_factory=dict)
    client_connection: ClientConnection = ClientConnection()
    logging: Logging = Logging()
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"
    healthz_bind_address: str = "0.0.0.0:10256"
    metrics_bind_address: str = "127.0.0.1:10249"
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: ProxyMode = ProxyMode.IPTABLES
    iptables: IPTables = IPTables()
    ipvs: IPVS = IPVS()
    nftables: NFTables = NFTables()
    userspace: Userspace = Userspace()
    winkernel: Winkernel = Winkernel()
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    detect_local: DetectLocal = DetectLocal()
    cluster_cidr: str = field(name="clusterCIDR", default="")
    node_port_addresses: tuple[str, ...] = ()
    oom_score_adj: Int32 = -999
    conntrack: Conntrack = Conntrack()
    config_sync_period: Duration = Duration(15 * MINUTE)
    port_range: str = ""
    windows_run_as_service: bool = False

    @property
    def section(self) -> IPTables | IPVS | NFTables:
        """The section whose sync periods are used: the mode's own, or iptables' for a mode that has none."""
        sections: dict[str, IPVS | NFTables] = {ProxyMode.IPVS: self.ipvs, ProxyMode.NFTABLES: self.nftables}
        return sections.get(self.mode, self.iptables)

    @property
    def sync_period(self) -> Duration:
        """How often everything is checked."""
        return self.section.sync_period

    @property
    def min_sync_period(self) -> Duration:
        """The least time between two syncs; 0 means that every change is written at once."""
        return self.section.min_sync_period

    @property
    def masquerade_all(self) -> bool:
        return self._marking.masquerade_all

    @property
    def masquerade_bit(self) -> int:
        """The bit of the packet mark, 0 to 31."""
        return self._marking.masquerade_bit

    def gate_enabled(self, name: str) -> bool:
        """Whether the feature gate NAME, one of `gates.EFFECTIVE`, is on: as featureGates say, else by the minor."""
        return gates.enabled(name, self.feature_gates, self.emulate_version)

    @property
    def external_ips(self) -> bool:
        """Whether Services' external IPs are served."""
        return self.gate_enabled(gates.ALLOW_EXTERNAL_IPS)

    @property
    def streamed_lists(self) -> bool:
        """Whether lists of the API server are streamed, where it does that."""
        return self.gate_enabled(gates.WATCH_LIST_CLIENT)

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        """The pods' CIDRs, at most one of each IP family."""
        return tuple(self.cluster_cidr.split(",")) if self.cluster_cidr else ()

    @property
    def proxy_ports(self) -> tuple[int, int]:
        """The first and last proxy port of userspace mode; (0, 0) where the kernel may choose.

        portRange is written first-last, first+count or as one port. Raises ValueError when it is none of these.
        """
        first, sign, rest = self.port_range.replace("+", "-+").partition("-")
        low = int(first or 0)
        high = low + int(rest[1:]) if rest.startswith("+") else int(rest) if sign else low
        if not 0 <= low <= high <= 65535 or (high and not low):
            raise ValueError(f"{self.port_range} is not a range of ports")
        return low, high

    @property
    def _marking(self) -> IPTables | NFTables:
        return self.nftables if self.mode is ProxyMode.NFTABLES else self.iptables
