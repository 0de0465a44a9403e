"""Notices changes by other programs, by checking a part of what the kernel holds now and then.

IPVS, ipsets and addresses have no generation number, and reading all of them takes time in proportion to the Services.
So each check reads one part: a few virtual servers in turn, one set in turn, the device. A flush is noticed by the
first check of what it emptied, a single edit when its turn comes. What takes long to read is checked less often, so
that all checks together take little of the time; the full checks find the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from itertools import islice
from typing import Generic, TypeVar

from kproxy.kernel.ipset import IpSets
from kproxy.kernel.ipvs import Ipvs
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import ServerKey
from kproxy.model.plans import Family
from kproxy.modes.ipvs.kernel_state import KernelState, Present, weights

PAUSE = 1.0
"""Seconds at least between two checks of the same kind of object."""
SHARE = 0.01
"""The share of the time that checks of one kind of object may take."""
SERVERS_AT_ONCE = 8
"""Virtual servers in one check."""

T = TypeVar("T", bound=Hashable)


class IpvsDrift:
    """Notices changes of one family's virtual servers, sets and addresses."""

    def __init__(
        self, family: Family, ipvs: Ipvs, sets: IpSets, addresses: ServiceAddresses, clock: Callable[[], float]
    ) -> None:
        """clock: seconds, monotonic."""
        self._family, self._ipvs, self._sets, self._addresses, self._clock = family, ipvs, sets, addresses, clock
        self._checks: tuple[Callable[[KernelState], bool], ...] = (self._servers, self._set, self._device)
        self._due = [0.0] * len(self._checks)
        self._next_servers, self._next_sets = _RoundRobin(self._server_keys), _RoundRobin(self._set_names)

    def differs(self, state: KernelState) -> bool:
        """Whether a part that is due to be checked is not as `state` has it. Raises KernelError."""
        return any(self._paced(index, check, state) for index, check in enumerate(self._checks))

    def _paced(self, index: int, check: Callable[[KernelState], bool], state: KernelState) -> bool:
        start = self._clock()
        if start < self._due[index]:
            return False
        try:
            return check(state)
        finally:
            end = self._clock()
            self._due[index] = end + max(PAUSE, (end - start) / SHARE)

    # ---------------------------------------------------------------- the checks

    def _servers(self, state: KernelState) -> bool:
        for key in self._next_servers.take(state, SERVERS_AT_ONCE):
            if weights(self._ipvs.reals(key)) != state.servers[key].weights:
                return True
        return False

    def _set(self, state: KernelState) -> bool:
        for name in self._next_sets.take(state, 1):
            held = self._sets.held([name]).get(name)
            if held is None or held.entries != state.entries[name]:
                return True
        return False

    def _device(self, state: KernelState) -> bool:
        return bool(state.addresses) and self._addresses.held(self._family) != state.addresses

    @staticmethod
    def _server_keys(state: KernelState) -> Mapping[ServerKey, Present]:
        return state.servers

    @staticmethod
    def _set_names(state: KernelState) -> Mapping[str, set[str]]:
        return state.entries


class _RoundRobin(Generic[T]):
    """Takes a few keys of a mapping at a time, so that all get their turn; those with an empty value are left out."""

    def __init__(self, of: Callable[[KernelState], Mapping[T, Collection[object]]]) -> None:
        self._of = of
        self._left: Iterator[T] = iter(())

    def take(self, state: KernelState, most: int) -> list[T]:
        there = self._of(state)
        found = list(islice(self._left, most))
        if not found:
            self._left = iter([key for key, held in there.items() if held])
            found = list(islice(self._left, most))
        return [key for key in found if key in there]
