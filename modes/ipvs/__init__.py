"""IPVS mode: virtual servers in the kernel, ipsets, and a handful of iptables rules that match on them."""
