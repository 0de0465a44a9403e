"""The steps from what the kernel holds to what some Service ports need, in an order in which no traffic is lost. Pure.

First whatever is missing: entries, virtual servers, real servers, then the addresses that make the kernel accept
packets to them. Then the rules are written. Then whatever is in excess is removed, in the reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kproxy.kernel.ipset import Change
from kproxy.kernel.ipvs_codec import Operation, Verb
from kproxy.kernel.virtual_servers import RealKey, RealServer, ServerKey
from kproxy.model.plans import Protocol
from kproxy.modes.ipvs.fragments import Entry, Served
from kproxy.modes.ipvs.kernel_state import KernelState, Present
from kproxy.modes.ipvs.ownership import Objects, Ownership


@dataclass(slots=True)
class Steps:
    """The steps of one change. fill, serve, bind: what is missing or wrong in sets, IPVS and on kube-ipvs0. unbind,
    retire, empty: what is in excess there."""

    fill: list[Change] = field(default_factory=list)
    serve: list[Operation] = field(default_factory=list)
    bind: list[str] = field(default_factory=list)
    unbind: list[str] = field(default_factory=list)
    retire: list[Operation] = field(default_factory=list)
    empty: list[Change] = field(default_factory=list)


def difference(
    state: KernelState, ownership: Ownership, objects: Objects, excluded: Callable[[ServerKey], bool]
) -> Steps:
    """The steps that make the kernel, which is in `state`, have `objects` as their owners want them.

    excluded: the virtual servers that stay even without an owner.
    """
    steps = Steps()
    for entry in dict.fromkeys(objects.entries):
        held, wanted = entry.entry in state.entries.get(entry.set, ()), bool(ownership.ports(entry))
        if held != wanted:
            (steps.fill if wanted else steps.empty).append(Change(entry.set, entry.entry, wanted))
    for key in dict.fromkeys(objects.servers):
        present, served = state.servers.get(key), ownership.served(key)
        if served is not None:
            steps.serve += _server(present, served)
        elif present is not None and not excluded(key):
            steps.retire.append(Operation(Verb.DELETE_SERVER, present.server))
    for address in dict.fromkeys(objects.addresses):
        held, wanted = address in state.addresses, bool(ownership.ports(address))
        if held != wanted:
            (steps.bind if wanted else steps.unbind).append(address)
    return steps


def everything_of(state: KernelState, ownership: Ownership) -> Objects:
    """All objects that anybody owns, and all that the kernel holds of ours."""
    held = (Entry(name, entry) for name, entries in state.entries.items() for entry in entries)
    return Objects(
        [*ownership.servers, *(key for key in state.servers if key not in ownership.servers)],
        [*ownership.entries, *(entry for entry in held if entry not in ownership.entries)],
        [*ownership.addresses, *(address for address in state.addresses if address not in ownership.addresses)],
    )


def terminates_gracefully(protocol: Protocol) -> bool:
    """Whether connections to a real server that is removed may go on: not those of UDP and SCTP, as in kube-proxy."""
    return protocol is Protocol.TCP


def terminating(present: Present | None, served: Served | None) -> list[RealKey]:
    """The real servers that are not wanted any more and were given weight 0."""
    if present is None or served is None:
        return []
    wanted = {real.key for real in served.reals}
    return [key for key, weight in present.weights.items() if weight == 0 and key not in wanted]


def _server(present: Present | None, served: Served) -> Iterator[Operation]:
    server, weights = served.server, present.weights if present else {}
    if present is None:
        yield Operation(Verb.ADD_SERVER, server)
    elif present.server != server:
        yield Operation(Verb.EDIT_SERVER, server)
    for real in served.reals:
        weight = weights.get(real.key)
        if weight is None:
            yield Operation(Verb.ADD_REAL, server, real)
        elif weight != real.weight:
            yield Operation(Verb.EDIT_REAL, server, real)
    if weights:
        yield from _excess(served, weights)


def _excess(served: Served, weights: dict[RealKey, int]) -> Iterator[Operation]:
    wanted = {real.key for real in served.reals}
    for key, weight in weights.items():
        if key in wanted:
            continue
        if not terminates_gracefully(served.server.key.protocol):
            yield Operation(Verb.DELETE_REAL, served.server, RealServer(key, 0))
        elif weight != 0:
            yield Operation(Verb.EDIT_REAL, served.server, RealServer(key, 0))
