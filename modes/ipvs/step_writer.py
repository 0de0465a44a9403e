"""Taking the steps to the kernel, and noting what it took and what it refused."""

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

Thing = ServerKey | Entry | str
"""What a port may need: a virtual server with its real servers, an entry of a set, an address."""

# Something is there that should not be, or the other way around: the kernel is not as it was believed to be.
SURPRISES = frozenset({errno.EEXIST, errno.ENOENT, errno.ESRCH, errno.ENODEV})


class StepWriter:
    """Takes the two halves of some steps. The mirror follows what the kernel took.

    refused: what it did not take of what is wanted, with one line of why. surprised: something was refused because the
    kernel is not as the mirror has it.
    """

    def __init__(
        self, ipvs: Ipvs, sets: IpSets, addresses: ServiceAddresses, mirror: KernelState, outcome: Outcome
    ) -> None:
        self.refused: dict[Thing, str] = {}
        self.surprised = False
        self._ipvs, self._sets, self._addresses = ipvs, sets, addresses
        self._mirror, self._outcome = mirror, outcome

    def make(self, steps: Steps) -> None:
        """Whatever is missing or wrong. Raises KernelError when the kernel cannot be talked to."""
        self._change_sets(steps.fill)
        self._change_servers(steps.serve)
        if steps.bind:
            errors = self._bind(steps.bind)
            for address, error in errors.items():
                self._refuse(address, f"address {address} of {SERVICE_DEVICE}", error)
            self._mirror.addresses.update(address for address in steps.bind if address not in errors)

    def clear(self, steps: Steps) -> None:
        """Whatever is in excess. Raises KernelError when the kernel cannot be talked to."""
        if steps.unbind:
            self._outcome.transactions += 1
            errors = self._addresses.change((), steps.unbind)
            for address, error in errors.items():
                self._keep(f"address {address} of {SERVICE_DEVICE}", error)
            self._mirror.addresses.difference_update(address for address in steps.unbind if address not in errors)
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
            held = self._mirror.entries.setdefault(change.set, set())
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
            self._suppose(operations)
            raise
        failed: set[ServerKey] = set()
        for index, operation in enumerate(operations):
            key = operation.server.key
            if (error := errors.get(index)) is None:
                self._note(operation)
            elif key not in failed:  # without a virtual server, all its real servers are refused as well
                if operation.verb is Verb.ADD_SERVER:
                    failed.add(key)
                self._judge(operation, error)

    def _suppose(self, operations: Sequence[Operation]) -> None:
        """Any of these may be done. The next reading must know the virtual servers for ours, needed then or not."""
        for operation in operations:
            if operation.verb is Verb.ADD_SERVER:
                self._mirror.servers.setdefault(operation.server.key, Present(operation.server, {}))

    def _judge(self, operation: Operation, error: NetlinkError) -> None:
        what = str(operation)
        if operation.verb in (Verb.DELETE_SERVER, Verb.DELETE_REAL):
            self._keep(what, error)
        else:
            self._refuse(operation.server.key, what, error)

    def _note(self, operation: Operation) -> None:
        servers, server, real = self._mirror.servers, operation.server, operation.real
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

    def _refuse(self, thing: Thing, what: str, error: NetlinkError) -> None:
        self.surprised |= error.errno in SURPRISES
        self.refused.setdefault(thing, str(error) if what in str(error) else f"{what}: {error}")

    def _keep(self, what: str, error: NetlinkError) -> None:
        """It stays until the next full check."""
        self.surprised |= error.errno in SURPRISES
        _log.warning("Could not be removed; stays until the next full check", what=what, err=str(error))
