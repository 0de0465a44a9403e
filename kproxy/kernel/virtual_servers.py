"""IPVS's own terms as values: virtual servers and the real servers behind them. Pure.

Sources: ipvsadm(8), include/uapi/linux/ip_vs.h.
"""

from __future__ import annotations

from typing import NamedTuple

from kproxy.model.plans import Protocol, address_port

PERSISTENT = 0x1  # IP_VS_SVC_F_PERSISTENT
HASHED = 0x2  # IP_VS_SVC_F_HASHED: set by the kernel on each that it holds, never written
SOURCE_PORT = 0x10  # IP_VS_SVC_F_SCHED2, of schedulers mh and sh: the source port counts in the hash as well


class ServerKey(NamedTuple):
    """Names a virtual server: there is one for each protocol, address and port."""

    protocol: Protocol
    address: str
    port: int

    def __str__(self) -> str:
        """TCP 10.96.0.1:443"""
        return f"{self.protocol.value} {address_port(self.address, self.port)}"


class VirtualServer(NamedTuple):
    """An address that IPVS serves. flags: PERSISTENT and the scheduler's. timeout: seconds of persistence, else 0."""

    key: ServerKey
    scheduler: str
    flags: int = 0
    timeout: int = 0


class RealKey(NamedTuple):
    """Names a real server within its virtual server."""

    address: str
    port: int

    def __str__(self) -> str:
        return address_port(self.address, self.port)


class RealServer(NamedTuple):
    """Where connections go (always by masquerading, IPVS's NAT). weight 0: it keeps what it has and gets no more."""

    key: RealKey
    weight: int = 1
