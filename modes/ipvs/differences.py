"""What IPVS mode's virtual servers, ipsets and addresses are against what they should be. Pure.

Together with the differences of its iptables rules there is one exactly when a full check would write something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kproxy.kernel.ipset import Change, HeldSet
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.addresses import contains
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Frontend, Protocol
from kproxy.modes.differences import Difference, Kind
from kproxy.modes.ipvs.delta import difference, everything_of
from kproxy.modes.ipvs.fragments import Entry, Settings
from kproxy.modes.ipvs.kernel_state import KernelState, is_of, specs
from kproxy.modes.ipvs.ownership import Ownership


def differences(
    state: KernelState, ownership: Ownership, settings: Settings, sets: Mapping[str, HeldSet], has_device: bool
) -> tuple[list[Difference], list[Frontend]]:
    """The differences of one family, and the UDP and SCTP frontends that no Service has any more. sets: as held."""
    excluded = settings.exclude_cidrs
    steps = difference(
        state,
        ownership,
        everything_of(state, ownership),
        lambda key: any(contains(cidr, key.address) for cidr in excluded),
    )
    words = _Words(ownership)
    found = [*_containers(settings, sets, has_device)]
    found += [words.entry(change) for change in (*steps.fill, *steps.empty)]
    found += [words.operation(operation) for operation in (*steps.serve, *steps.retire)]
    found += [words.address(address, Kind.MISSING) for address in steps.bind]
    found += [words.address(address, Kind.EXTRA) for address in steps.unbind]
    retired = (operation.server.key for operation in steps.retire)
    return found, [Frontend(ip, port, proto) for proto, ip, port in retired if proto is not Protocol.TCP]


def _containers(settings: Settings, sets: Mapping[str, HeldSet], has_device: bool) -> Iterator[Difference]:
    if not has_device:
        yield Difference("", Kind.MISSING, f"device {SERVICE_DEVICE}")
    for spec in specs(settings.family):
        if (held := sets.get(spec.name)) is None:
            yield Difference("", Kind.MISSING, f"ipset {spec.name}")
        elif not is_of(held, spec):
            yield Difference("", Kind.CHANGED, f"ipset {spec.name}: of type {held.type}, not {spec.type}")


class _Words:
    """Says what a step changes."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def entry(self, change: Change) -> Difference:
        entry = Entry(change.set, change.entry)
        kind = Kind.MISSING if change.add else Kind.EXTRA
        return Difference(self._service(entry), kind, f"element {change.entry} of ipset {change.set}")

    def operation(self, operation: Operation) -> Difference:
        verb, server, real = operation
        service, what = self._service(server.key), f"virtual server {server.key}"
        if real is None:
            kinds = {Verb.ADD_SERVER: Kind.MISSING, Verb.EDIT_SERVER: Kind.CHANGED}
            return Difference(service, kinds.get(verb, Kind.EXTRA), what)
        served = self._ownership.served(server.key)
        wanted = served is not None and any(real.key == each.key for each in served.reals)
        kind = Kind.MISSING if verb is Verb.ADD_REAL else Kind.CHANGED if wanted else Kind.EXTRA
        return Difference(service, kind, f"{what}: real server {real.key}")

    def address(self, address: str, kind: Kind) -> Difference:
        return Difference(self._service(address), kind, f"address {address} of {SERVICE_DEVICE}")

    def _service(self, owned: ServerKey | Entry | str) -> str:
        owners = self._ownership.ports(owned)
        return str(min(map(str, owners))) if owners else ""
