"""IPVS's virtual servers and the real servers behind them as values. Pure.

Sources: ipvsadm(8), include/uapi/linux/ip_vs.h.
"""

from __future__ import annotations

from typing import NamedTuple

from kproxy.model.plans import Protocol, address_port

PERSISTENT = 0x1  # IP_VS_SVC_F_PERSISTENT
HASHED = 0x2  # IP_VS_SVC_F_HASHED: set by the kernel on every virtual server that it holds, never written
SOURCE_PORT = 0x10  # IP_VS_SVC_F_SCHED2, of schedulers mh and sh: the hash includes the source port


class ServerKey(NamedTuple):
    """The identity of a virtual server: protocol, address and port."""

    protocol: Protocol
    address: str
    port: int

    def __str__(self) -> str:
        """As in "TCP 10.96.0.1:443"."""
        return f"{self.protocol.value} {address_port(self.address, self.port)}"


class VirtualServer(NamedTuple):
    """A virtual server. flags: PERSISTENT and the scheduler's. timeout: seconds of persistence, 0 without it."""

    key: ServerKey
    scheduler: str
    flags: int = 0
    timeout: int = 0


class RealKey(NamedTuple):
    """The identity of a real server within its virtual server."""

    address: str
    port: int

    def __str__(self) -> str:
        return address_port(self.address, self.port)


class RealServer(NamedTuple):
    """A real server, which IPVS forwards connections to by NAT. weight 0: it keeps its connections and gets no new
    ones."""

    key: RealKey
    weight: int = 1
