"""Which driver drives which mode."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from kproxy.config.fields import ProxyMode
from kproxy.errors import InvalidConfig
from kproxy.sync.drivers.base import Driver, Equipment

__all__ = ["MODES", "driver_of"]

MODES = {
    ProxyMode.IPTABLES: "iptables:IptablesDriver",
    ProxyMode.IPVS: "ipvs:IpvsDriver",
    ProxyMode.NFTABLES: "nftables:NftablesDriver",
    ProxyMode.USERSPACE: "userspace:UserspaceDriver",
}
"""Module and class; a mode's modules are imported only where it is used."""


def driver_of(mode: ProxyMode) -> Callable[[Equipment], Driver]:
    """The class of the mode's driver. Raises InvalidConfig for a mode that does not exist yet."""
    if mode not in MODES:
        raise InvalidConfig([f"mode: {mode} is not available yet"])
    module, _, name = MODES[mode].partition(":")
    found: Callable[[Equipment], Driver] = getattr(import_module(f"kproxy.sync.drivers.{module}"), name)
    return found
