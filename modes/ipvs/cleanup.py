"""Removes everything that IPVS mode ever wrote, kube-proxy's included, except for its iptables rules.

For a node on which another mode took over, and for `kproxy cleanup`. The rules must be gone first, as sets that rules
match on cannot be destroyed. Where the kernel has no IPVS, no ipsets or no kube-ipvs0, there is nothing to remove.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from kproxy import logs
from kproxy.errors import NetlinkError
from kproxy.kernel.ipset import HeldSet, IpSets
from kproxy.kernel.ipvs import Held, Ipvs
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.addresses import contains
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.kernel_state import Ours

_log = logs.get("ipvs")

ABSENT = frozenset({errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
"""The error numbers of a kernel that does not have what it is asked for."""

T = TypeVar("T")


def clean(
    ipvs: Ipvs | None,
    sets: IpSets | None,
    addresses: ServiceAddresses,
    node_addresses: Collection[str],
    excluded: Collection[str] = (),
    families: Iterable[Family] = tuple(Family),
) -> list[str]:
    """Remove our virtual servers, the device (only its addresses, while another family has some on it) and our sets.

    ipvs, sets: None where they are not loaded in the kernel: opening them would load them. node_addresses: the node's
    own, in any family. excluded: CIDRs whose virtual servers stay.
    Returns a line for each object that could not be removed. Raises NetlinkError when the kernel cannot be reached.
    """
    problems: list[str] = []
    chosen = tuple(families)
    for family in chosen:
        if ipvs is not None:
            problems += _servers(ipvs, sets, addresses, family, node_addresses, excluded)
    problems += _addresses(addresses, chosen)
    if sets is not None:
        problems += _sets(sets, [each.name for family in chosen for each in names.sets(family)])
    for problem in problems:
        _log.warning("Something that IPVS mode left could not be removed; `kproxy cleanup` retries it", why=problem)
    return problems


def connections(
    ipvs: Ipvs | None,
    sets: IpSets | None,
    addresses: ServiceAddresses,
    node_addresses: Collection[str],
    excluded: Collection[str] = (),
) -> int:
    """The number of established connections of our virtual servers, in both families. Arguments and errors as for
    `clean`."""
    if ipvs is None:
        return 0
    ours = (_ours(ipvs, sets, addresses, family, node_addresses, excluded) for family in Family)
    return sum(real.active for held in ours for server in held.values() for real in server.reals.values())


def _servers(
    ipvs: Ipvs,
    sets: IpSets | None,
    addresses: ServiceAddresses,
    family: Family,
    node_addresses: Collection[str],
    excluded: Collection[str],
) -> list[str]:
    ours = _ours(ipvs, sets, addresses, family, node_addresses, excluded)
    if not ours:
        return []
    errors = ipvs.apply([Operation(Verb.DELETE_SERVER, held.server) for held in ours.values()])
    _log.info("Deleted virtual servers", family=family.value, number=len(ours) - len(errors))
    keys = list(ours)
    return [f"virtual server {keys[index]}: {error}" for index, error in errors.items()]


def _ours(
    ipvs: Ipvs,
    sets: IpSets | None,
    addresses: ServiceAddresses,
    family: Family,
    node_addresses: Collection[str],
    excluded: Collection[str],
) -> dict[ServerKey, Held]:
    held = _unless_absent(lambda: ipvs.servers(family)) or {}
    entries = {name: each.entries for name, each in _held(sets, family).items()} if held else {}
    ours = Ours(family, addresses.held(family), entries, node_addresses)
    return {
        key: each
        for key, each in held.items()
        if key in ours and not any(contains(cidr, key.address) for cidr in excluded)
    }


def _held(sets: IpSets | None, family: Family) -> Mapping[str, HeldSet]:
    wanted = [each.name for each in names.sets(family)]
    return {} if sets is None else _unless_absent(lambda: sets.held(wanted)) or {}


def _addresses(addresses: ServiceAddresses, families: Collection[Family]) -> list[str]:
    if not any(addresses.held(family) for family in Family if family not in families):
        if addresses.remove():
            _log.info("Deleted the device that held the Services' addresses", device=SERVICE_DEVICE)
        return []
    ours = [address for family in families for address in addresses.held(family)]
    errors = addresses.change((), ours) if ours else {}
    return [f"address {address}: {error}" for address, error in errors.items()]


def _sets(sets: IpSets, wanted: Collection[str]) -> list[str]:
    held = _unless_absent(lambda: sets.held(wanted)) or {}
    if not held:
        return []
    errors = sets.destroy(held)
    _log.info("Destroyed ipsets", number=len(held) - len(errors))
    return [f"set {name}: {error}" for name, error in errors.items()]


def _unless_absent(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except NetlinkError as error:
        if error.errno in ABSENT:
            return None
        raise
