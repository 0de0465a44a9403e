"""KubeProxyConfiguration and the kube-proxy flags: fields, defaults, validation."""
