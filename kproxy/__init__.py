"""kproxy: a drop-in replacement of kube-proxy."""

__version__ = "0.1.0"

KUBERNETES = "1.36.2"
"""The release of Kubernetes whose kube-proxy is replaced."""
EMULATED = KUBERNETES.rpartition(".")[0]
"""Its minor version."""
