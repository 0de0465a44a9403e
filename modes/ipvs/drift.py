"""A look now and then at a part of what the kernel holds, so that what others flushed or edited is noticed soon.

IPVS, ipsets and addresses have no number that changes with every edit, and reading all of them takes as long as there
are Services. So each look is at one part: a few virtual servers in turn, one set in turn, the device. A flush is seen
at the first look at what it emptied; a single edit when its turn comes. What takes long to read is looked at less
often, so that all looks together take little of the time; the full checks find the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from itertools import islice
from typing import Generic, TypeVar

from kproxy.kernel.ipset import IpSets
from kproxy.kernel.ipvs import Ipvs
from kproxy.kernel.ipvs_codec import RealState
from kproxy.kernel.service_device import ServiceAddresses
from kproxy.kernel.virtual_servers import RealKey, ServerKey
from kproxy.model.plans import Family
from kproxy.modes.ipvs.kernel_state import UNLIKE_OURS, KernelState, Present

PAUSE = 1.0
"""Seconds between two looks at the same kind of thing, at the least."""
SHARE = 0.01
"""The share of the time that looks at one kind of thing may take."""
SERVERS_AT_ONCE = 8

T = TypeVar("T", bound=Hashable)


class Probe:
    """Of one family."""

    def __init__(
        self, family: Family, ipvs: Ipvs, sets: IpSets, addresses: ServiceAddresses, clock: Callable[[], float]
    ) -> None:
        """clock: seconds, monotonic."""
        self._family, self._ipvs, self._sets, self._addresses, self._clock = family, ipvs, sets, addresses, clock
        self._looks: tuple[Callable[[KernelState], bool], ...] = (self._servers, self._set, self._device)
        self._next = [0.0] * len(self._looks)
        self._server_turn, self._set_turn = _Turn(self._server_keys), _Turn(self._set_names)

    def differs(self, mirror: KernelState) -> bool:
        """Whether a part that is due is not as MIRROR has it. Raises KernelError."""
        return any(self._paced(index, look, mirror) for index, look in enumerate(self._looks))

    def _paced(self, index: int, look: Callable[[KernelState], bool], mirror: KernelState) -> bool:
        start = self._clock()
        if start < self._next[index]:
            return False
        try:
            return look(mirror)
        finally:
            end = self._clock()
            self._next[index] = end + max(PAUSE, (end - start) / SHARE)

    # ---------------------------------------------------------------- the looks

    def _servers(self, mirror: KernelState) -> bool:
        for key in self._server_turn.take(mirror, SERVERS_AT_ONCE):
            if weights(self._ipvs.reals(key)) != mirror.servers[key].weights:
                return True
        return False

    def _set(self, mirror: KernelState) -> bool:
        for name in self._set_turn.take(mirror, 1):
            held = self._sets.held([name]).get(name)
            if held is None or held.entries != mirror.entries[name]:
                return True
        return False

    def _device(self, mirror: KernelState) -> bool:
        return bool(mirror.addresses) and self._addresses.held(self._family) != mirror.addresses

    @staticmethod
    def _server_keys(mirror: KernelState) -> Mapping[ServerKey, Present]:
        return mirror.servers

    @staticmethod
    def _set_names(mirror: KernelState) -> Mapping[str, set[str]]:
        return mirror.entries


class _Turn(Generic[T]):
    """Takes some at a time, so that all get their turn; those that hold nothing are left out."""

    def __init__(self, of: Callable[[KernelState], Mapping[T, Collection[object]]]) -> None:
        self._of = of
        self._left: Iterator[T] = iter(())

    def take(self, mirror: KernelState, most: int) -> list[T]:
        there = self._of(mirror)
        found = list(islice(self._left, most))
        if not found:
            self._left = iter([key for key, held in there.items() if held])
            found = list(islice(self._left, most))
        return [key for key in found if key in there]


def weights(states: Mapping[RealKey, RealState]) -> dict[RealKey, int]:
    """As Present has them."""
    return {key: state.weight if state.masqueraded else UNLIKE_OURS for key, state in states.items()}
