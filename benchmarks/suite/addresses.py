"""The addresses of the world in which the suite measures. Pure.

    control 10.255.1.1 (the API server) ──┐
    client  10.255.0.2 ── 10.255.0.1 ──── node ── 10.255.0.5 ── 10.255.0.6 endpoints (every other address)

The endpoints' namespace takes every address for its own, so each of a million endpoints is there and answers, and
what goes to a cluster IP that no rule takes is refused there at once.
"""

from __future__ import annotations

CLUSTER_CIDR = "10.128.0.0/9"  # the client is a pod of this cluster, so nothing is masqueraded
NODE_ADDRESS, CLIENT_ADDRESS = "10.255.0.1", "10.255.0.2"
NODE_TO_PODS, PODS_ADDRESS = "10.255.0.5", "10.255.0.6"
NODE_TO_API, API_TO_NODE, API_ADDRESS = "10.255.1.6", "10.255.1.5", "10.255.1.1"
SERVICE_PORT, TARGET_PORT = 80, 8080

# Endpoints of a cluster start at 10.128.0.1 (see benchmarks.cluster), those that replace them here.
FIRST_REPLACEMENT = (10 << 24) + (160 << 16)
REPLACEMENTS = 94 << 16  # up to 10.253.255.255
MOST_ENDPOINTS = (32 << 16) - 2
