"""The only code that touches the host: commands, netlink, sysctls, interfaces, conntrack."""
