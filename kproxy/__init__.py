"""kproxy: a drop-in replacement of kube-proxy."""

__version__ = "0.1.0"
