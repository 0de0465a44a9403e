"""iptables mode: chains and rules as kube-proxy writes them."""
