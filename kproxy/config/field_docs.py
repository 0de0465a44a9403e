"""Documents each field of KubeProxyConfiguration in a line, for the reference and for warnings about idle fields.

Tests hold the table to the fields, and each field that is not idle to an effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import msgspec

from kproxy.config.fields import KubeProxyConfiguration


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """Documents one field. text: what it does. idle: it is read and checked, and has no effect."""

    text: str
    idle: bool = False


def _idle(text: str) -> FieldDoc:
    return FieldDoc(text, idle=True)


_JSON = "the API server is asked for JSON"
_UNBUFFERED = "log lines go to standard error at once"
_WINDOWS = "Windows only"
_ZERO = "0: the kernel's"
_PERIOD = "how often everything is compared with the kernel; 0: 30s"
_LEAST = "how far two syncs are apart at least; 0: 1s"

FIELD_DOCS: Mapping[str, FieldDoc] = {
    "apiVersion": FieldDoc("must be kubeproxy.config.k8s.io/v1alpha1"),
    "kind": FieldDoc("must be KubeProxyConfiguration"),
    "emulateVersion": FieldDoc(
        "kproxy's own: the minor version of Kubernetes whose kube-proxy is followed, where defaults differ"
    ),
    "featureGates": FieldDoc(
        "every gate of Kubernetes 1.30 and later is taken; few have an effect (see below); unknown gates, and values "
        "that a locked gate does not have, are errors"
    ),
    "clientConnection.kubeconfig": FieldDoc("how the API server is reached; empty: the pod's service account"),
    "clientConnection.acceptContentTypes": _idle(_JSON),
    "clientConnection.contentType": _idle(_JSON),
    "clientConnection.qps": FieldDoc("requests to the API server a second; negative: no limit"),
    "clientConnection.burst": FieldDoc("requests to the API server that may come at once"),
    "logging.format": FieldDoc("text or json"),
    "logging.flushFrequency": _idle(_UNBUFFERED),
    "logging.verbosity": FieldDoc("0: what an operator needs; 2: every sync; 4: details and tracebacks; up to 10"),
    "logging.vmodule": FieldDoc("the verbosity of single parts (filePattern: sync, source, iptables, ...)"),
    "logging.options.text.splitStream": _idle(_UNBUFFERED),
    "logging.options.text.infoBufferSize": _idle(_UNBUFFERED),
    "logging.options.json.splitStream": _idle(_UNBUFFERED),
    "logging.options.json.infoBufferSize": _idle(_UNBUFFERED),
    "hostnameOverride": FieldDoc(
        "the name of this node's Node object; empty: the host name, lower-cased. A change takes effect at the next "
        "start"
    ),
    "bindAddress": FieldDoc(
        "the node's own IP in its family, before the Node object's; its family decides the two addresses below where "
        "they are empty. Nothing is bound to it"
    ),
    "healthzBindAddress": FieldDoc("where /healthz and /livez are served; without a port: 10256"),
    "metricsBindAddress": FieldDoc("where metrics and status pages are served; without a port: 10249"),
    "bindAddressHardFail": FieldDoc("end at the start when one of the two cannot be bound, instead of trying again"),
    "enableProfiling": _idle("there are no profiling pages"),
    "showHiddenMetricsForVersion": _idle("no metric is hidden; must be empty or the minor before"),
    "mode": FieldDoc("iptables, ipvs, nftables or userspace"),
    "iptables.masqueradeBit": FieldDoc("the bit of the packet mark that asks for masquerading; in ipvs mode as well"),
    "iptables.masqueradeAll": FieldDoc("masquerade all traffic to cluster IPs; in ipvs mode as well"),
    "iptables.localhostNodePorts": FieldDoc("let node ports answer on loopback; in userspace mode as well"),
    "iptables.syncPeriod": FieldDoc(f"{_PERIOD}; in userspace mode as well"),
    "iptables.minSyncPeriod": FieldDoc(f"{_LEAST}; in userspace mode as well"),
    "ipvs.syncPeriod": FieldDoc(_PERIOD),
    "ipvs.minSyncPeriod": FieldDoc("how far two syncs are apart at least; 0: every change at once"),
    "ipvs.scheduler": FieldDoc("how connections are spread, by the name of a scheduler that the kernel has; empty: rr"),
    "ipvs.excludeCIDRs": FieldDoc("virtual servers in these CIDRs are somebody else's and stay"),
    "ipvs.strictARP": FieldDoc("set arp_ignore to 1 and arp_announce to 2; false leaves them as they are"),
    "ipvs.tcpTimeout": FieldDoc(f"of idle TCP connections; {_ZERO}"),
    "ipvs.tcpFinTimeout": FieldDoc(f"of TCP connections after a FIN; {_ZERO}"),
    "ipvs.udpTimeout": FieldDoc(f"of UDP flows; {_ZERO}"),
    "nftables.masqueradeBit": FieldDoc("the bit of the packet mark that asks for masquerading"),
    "nftables.masqueradeAll": FieldDoc("masquerade all traffic to cluster IPs"),
    "nftables.syncPeriod": FieldDoc(_PERIOD),
    "nftables.minSyncPeriod": FieldDoc(_LEAST),
    "userspace.udpIdleTimeout": FieldDoc("kproxy's own: how long a UDP session without datagrams is kept"),
    "userspace.drainTimeout": FieldDoc("kproxy's own: how long connections to an endpoint that left may go on"),
    "winkernel.networkName": _idle(_WINDOWS),
    "winkernel.sourceVip": _idle(_WINDOWS),
    "winkernel.enableDSR": _idle(_WINDOWS),
    "winkernel.rootHnsEndpointName": _idle(_WINDOWS),
    "winkernel.forwardHealthCheckVip": _idle(_WINDOWS),
    "detectLocalMode": FieldDoc("how this node's pods are recognised; NodeCIDR waits for the Node's pod CIDR"),
    "detectLocal.bridgeInterface": FieldDoc("the pods' bridge, for BridgeInterface"),
    "detectLocal.interfaceNamePrefix": FieldDoc("how pods' interfaces begin, for InterfaceNamePrefix"),
    "clusterCIDR": FieldDoc("the pods' CIDR, or one of each family with a comma between, for ClusterCIDR"),
    "nodePortAddresses": FieldDoc(
        "the node's addresses that take node ports: CIDRs, primary (the Node object's), localhost, all, in any "
        "combination; empty: all, in nftables mode primary"
    ),
    "oomScoreAdj": FieldDoc("the process's oom_score_adj"),
    "conntrack.maxPerCore": FieldDoc("nf_conntrack_max for each processor core; 0: as it is"),
    "conntrack.min": FieldDoc("nf_conntrack_max at least, unless maxPerCore is 0"),
    "conntrack.tcpEstablishedTimeout": FieldDoc(f"nf_conntrack_tcp_timeout_established; {_ZERO}"),
    "conntrack.tcpCloseWaitTimeout": FieldDoc(f"nf_conntrack_tcp_timeout_close_wait; {_ZERO}"),
    "conntrack.tcpBeLiberal": FieldDoc("nf_conntrack_tcp_be_liberal, and no rule that drops packets of state INVALID"),
    "conntrack.udpTimeout": FieldDoc(f"nf_conntrack_udp_timeout; {_ZERO}"),
    "conntrack.udpStreamTimeout": FieldDoc(f"nf_conntrack_udp_timeout_stream; {_ZERO}"),
    "configSyncPeriod": _idle("a watch tells every change, and nothing is looked through again"),
    "portRange": FieldDoc("the proxy ports of userspace mode; elsewhere nothing"),
    "windowsRunAsService": _idle(_WINDOWS),
}


def leaves(kind: Any = KubeProxyConfiguration, path: str = "") -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Every field that holds a value: its path in the file, the attributes on the way to it, its type."""
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.encode_name}" if path else field.encode_name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            for below, attributes, found in leaves(field.type, here):
                yield below, (field.name, *attributes), found
        else:
            base = get_args(field.type)[0] if hasattr(get_origin(field.type), "__metadata__") else field.type
            yield here, (field.name,), base


def value_at(config: KubeProxyConfiguration, attributes: tuple[str, ...]) -> Any:
    """The value of CONFIG under the path ATTRIBUTES."""
    found: Any = config
    for attribute in attributes:
        found = getattr(found, attribute)
    return found
