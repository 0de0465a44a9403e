"""Applies steps to the kernel, and records what it accepted and what it refused."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from kproxy import logs
from kproxy.errors import KernelError, NetlinkError
from kproxy.kernel.ipset import Change, IpSets
from kproxy.kernel.ipvs import Ipvs
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.modes.base import Outcome
from kproxy.modes.ipvs.delta import Steps
from kproxy.modes.ipvs.fragments import Entry
from kproxy.modes.ipvs.kernel_state import KernelState, Present

_log = logs.get("ipvs")

Object = ServerKey | Entry | str
"""What a port may own: a virtual server with its real servers, an entry of a set, an address."""

# Something exists that should not, or the other way around: the kernel is not in the state that it was believed to be
# in.
SURPRISES = frozenset({errno.EEXIST, errno.ENOENT, errno.ESRCH, errno.ENODEV})


class StepWriter:
    """Applies the two halves of some steps, and updates STATE with what the kernel accepted.

    refused: the wanted objects that the kernel refused, each with a line of why. surprised: whether something was
    refused because the kernel is not in STATE.
    """

    def __init__(
        self, ipvs: Ipvs, sets: IpSets, addresses: ServiceAddresses, state: KernelState, outcome: Outcome
    ) -> None:
        self.refused: dict[Object, str] = {}
        self.surprised = False
        self._ipvs, self._sets, self._addresses = ipvs, sets, addresses
        self._state, self._outcome = state, outcome

    def add(self, steps: Steps) -> None:
        """Add whatever is missing, and correct what is wrong. Raises KernelError when the kernel cannot be reached."""
        self._change_sets(steps.fill)
        self._change_servers(steps.serve)
        if steps.bind:
            errors = self._bind(steps.bind)
            for address, error in errors.items():
                self._refuse(address, f"address {address} of {SERVICE_DEVICE}", error)
            self._state.addresses.update(address for address in steps.bind if address not in errors)

    def remove(self, steps: Steps) -> None:
        """Remove whatever is in excess. Raises KernelError when the kernel cannot be reached."""
        if steps.unbind:
            self._outcome.transactions += 1
            errors = self._addresses.change((), steps.unbind)
            for address, error in errors.items():
                self._keep(f"address {address} of {SERVICE_DEVICE}", error)
            self._state.addresses.difference_update(address for address in steps.unbind if address not in errors)
        self._change_servers(steps.retire)
        self._change_sets(steps.empty)

    def _bind(self, addresses: Sequence[str]) -> Mapping[str, NetlinkError]:
        self._outcome.transactions += 1
        try:
            return self._addresses.change(addresses, ())
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return dict.fromkeys(addresses, error)

    def _change_sets(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        self._outcome.transactions += 1
        errors = self._sets.apply(changes)
        for change in changes:
            held = self._state.entries.setdefault(change.set, set())
            if (error := errors.get(change)) is None:
                (held.add if change.add else held.discard)(change.entry)
            elif change.add:
                self._refuse(Entry(change.set, change.entry), str(change), error)
            else:
                self._keep(str(change), error)

    def _change_servers(self, operations: Sequence[Operation]) -> None:
        if not operations:
            return
        self._outcome.transactions += 1
        try:
            errors = self._ipvs.apply(operations)
        except KernelError:
            self._assume_added(operations)
            raise
        failed: set[ServerKey] = set()
        for index, operation in enumerate(operations):
            key = operation.server.key
            if (error := errors.get(index)) is None:
                self._note(operation)
            elif key not in failed:  # without a virtual server, all its real servers are refused as well
                if operation.verb is Verb.ADD_SERVER:
                    failed.add(key)
                self._failed(operation, error)

    def _assume_added(self, operations: Sequence[Operation]) -> None:
        """Count virtual servers as ours that may have been added: the next read has to find them, wanted or not."""
        for operation in operations:
            if operation.verb is Verb.ADD_SERVER:
                self._state.servers.setdefault(operation.server.key, Present(operation.server, {}))

    def _failed(self, operation: Operation, error: NetlinkError) -> None:
        what = str(operation)
        if operation.verb in (Verb.DELETE_SERVER, Verb.DELETE_REAL):
            self._keep(what, error)
        else:
            self._refuse(operation.server.key, what, error)

    def _note(self, operation: Operation) -> None:
        servers, server, real = self._state.servers, operation.server, operation.real
        match operation.verb:
            case Verb.ADD_SERVER:
                servers[server.key] = Present(server, {})
            case Verb.EDIT_SERVER:
                servers[server.key] = servers[server.key]._replace(server=server)
            case Verb.DELETE_SERVER:
                del servers[server.key]
            case Verb.DELETE_REAL if real:
                servers[server.key].weights.pop(real.key, None)
            case _ if real:
                servers[server.key].weights[real.key] = real.weight

    def _refuse(self, object: Object, what: str, error: NetlinkError) -> None:
        """Record that a wanted object was refused."""
        self.surprised |= error.errno in SURPRISES
        self.refused.setdefault(object, self._noted(what, error))

    def _keep(self, what: str, error: NetlinkError) -> None:
        """Record that something could not be removed: it stays until the next full check."""
        self.surprised |= error.errno in SURPRISES
        self._noted(what, error)
        _log.warning(
            "Could not remove an object from the kernel; will retry at the next full check", what=what, err=str(error)
        )

    def _noted(self, what: str, error: NetlinkError) -> str:
        """Count a refusal; returns the line for it."""
        why = str(error) if what in str(error) else f"{what}: {error}"
        self._outcome.refusals.append(why)
        return why
