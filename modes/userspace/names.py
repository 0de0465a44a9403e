"""Names of the chains of userspace mode, as kube-proxy had them up to 1.25 (but for PROXY_PORTS, which it lacked).

Chains that iptables mode has as well (KUBE-SERVICES in the filter table, KUBE-EXT-…) are in its names.
"""

from __future__ import annotations

PORTALS_CONTAINER = "KUBE-PORTALS-CONTAINER"
PORTALS_HOST = "KUBE-PORTALS-HOST"
NODEPORT_CONTAINER = "KUBE-NODEPORT-CONTAINER"
NODEPORT_HOST = "KUBE-NODEPORT-HOST"
NODEPORT_NON_LOCAL = "KUBE-NODEPORT-NON-LOCAL"
PROXY_PORTS = "KUBE-PROXY-PORTS"
