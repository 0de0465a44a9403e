"""What IPVS mode's fragments and rules depend on besides the plans. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from kproxy.model.hosts import DetectLocal
from kproxy.model.plans import Family

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """One family's.

    scheduler: of every virtual server, by the kernel's name.
    masquerade_mark: the bit of the packet mark that asks for masquerading, as a mask (1 << masqueradeBit).
    node_addresses: the node's own, those of kube-ipvs0 left out: they are never put on that device as well.
    node_port_ips: those of them that take node ports; each gets a virtual server for each node port.
    exclude_cidrs: virtual servers whose address lies in one of these are never removed, even if they look like ours.
    """

    family: Family
    scheduler: str = "rr"
    masquerade_mark: int = 1 << 14
    masquerade_all: bool = False
    detect_local: DetectLocal = field(default_factory=DetectLocal)
    node_addresses: frozenset[str] = frozenset()
    node_port_ips: tuple[str, ...] = ()
    random_fully: bool = True
    exclude_cidrs: tuple[str, ...] = ()
