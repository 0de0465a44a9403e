"""Which address and port a rule of a shared chain is about."""

from __future__ import annotations

import re

from kproxy.model.plans import Protocol
from kproxy.modes.base import Frontend

__all__ = ["frontend"]

_DESTINATION = re.compile(r"(?:^| )-d (\S+?)(?:/\d+)? ")
_PORT = re.compile(r" --dport (\d+)(?: |$)")
_PROTOCOL = re.compile(r"(?:^| )-p (tcp|udp|sctp) ")


def frontend(rule: str) -> Frontend | None:
    """The frontend that a rule in iptables-save form leads to a Service; None for rules without protocol and port.

    A node port's rule names no destination, or the loopback network when it counts in an nfacct counter.
    """
    protocol, port, to = _PROTOCOL.search(rule), _PORT.search(rule), _DESTINATION.search(rule)
    if not protocol or not port:
        return None
    ip = to[1] if to and to[1] != "127.0.0.0" else ""
    return Frontend(ip, int(port[1]), Protocol(protocol[1].upper()))
