"""Kubernetes Events: which notices become Events, and posting them."""
