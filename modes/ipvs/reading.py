"""Reading what the kernel holds of one family in IPVS mode, and making the sets that everything else needs."""

from __future__ import annotations

from collections.abc import Callable, Collection

from kproxy import logs
from kproxy.errors import KernelError
from kproxy.kernel.ipset import HeldSet, IpSets
from kproxy.kernel.ipset_codec import SetSpec, SetType
from kproxy.kernel.ipvs import Held, Ipvs
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.plans import Family
from kproxy.modes.ipvs import names
from kproxy.modes.ipvs.drift import weights
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.ipvs.kernel_state import KernelState, Ours, Present

_log = logs.get("ipvs")

OTHER_TIMEOUT = -1  # differs from every timeout


def specs(family: Family) -> tuple[SetSpec, ...]:
    """Every set of a family."""
    return tuple(SetSpec(each.name, SetType(each.type), family) for each in names.sets(family))


def ensure_sets(sets: IpSets, family: Family, drop_rules: Callable[[], None]) -> None:
    """Make the sets that are missing.

    One of our names but of another type is no use to anybody: it goes, and if rules hold it, after the rules
    (drop_rules); they are written again. Raises KernelError.
    """
    wanted = specs(family)
    held = sets.held([spec.name for spec in wanted])
    wrong = [spec.name for spec in wanted if spec.name in held and not _is(held[spec.name], spec)]
    if wrong:
        _log.warning(
            "Ipsets have our names and another type; they are made anew, and the rules that use them", sets=wrong
        )
        if sets.destroy(wrong):
            drop_rules()
            for error in sets.destroy(wrong).values():
                raise KernelError(f"a set has our name and another type, and is in use: {error}")
    missing = [spec for spec in wanted if spec.name not in held or spec.name in wrong]
    if missing:
        sets.create(missing)


def _is(held: HeldSet, spec: SetSpec) -> bool:
    return held.type == spec.type and (held.family is None or held.family is spec.family)


def read(
    settings: Settings,
    ipvs: Ipvs,
    sets: IpSets,
    addresses: ServiceAddresses,
    known: Collection[ServerKey],
    wanted: Collection[str],
) -> KernelState:
    """What the kernel holds and is ours.

    known: virtual servers that are ours whatever they look like. wanted: addresses that will be on kube-ipvs0: what is
    served at them is ours too. Raises KernelError.
    """
    family = settings.family
    bound = set(addresses.held(family))
    held = sets.held([spec.name for spec in specs(family)])
    entries = {name: set(each.entries) for name, each in held.items()}
    ours = Ours(family, bound.union(wanted), entries, settings.node_addresses)
    servers = {key: present(server) for key, server in ipvs.servers(family).items() if key in known or key in ours}
    return KernelState(entries, bound, servers)


def present(held: Held) -> Present:
    """As the mirror has it; persistence for networks of clients counts as another timeout, so it is repaired."""
    server = held.server if held.per_client else held.server._replace(timeout=OTHER_TIMEOUT)
    return Present(server, weights(held.reals))
