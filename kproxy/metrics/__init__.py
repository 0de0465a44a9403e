"""Prometheus metrics: kube-proxy's by name, type, labels and buckets, and kproxy's own."""
