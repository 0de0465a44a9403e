"""What the modes with iptables rules share: restores, saved text, canonical form, the node's own rules."""
