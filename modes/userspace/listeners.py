"""The values between userspace mode's rules and its forwarder: what is listened for, and where it leads. Pure.

A Service port has one listener for each list of endpoints that some of its traffic may reach (policy Cluster, policy
Local); each listens on a proxy port of its own, to which the portal rules lead.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from kproxy.model.plans import Endpoint, Family, PortKey


class Reach(StrEnum):
    """Which of a plan's endpoint lists a listener forwards to."""

    CLUSTER = "cluster"
    LOCAL = "local"


class ListenerKey(NamedTuple):
    """Names one listener within one IP family."""

    key: PortKey
    reach: Reach


class Listener(msgspec.Struct, frozen=True, gc=False):
    """What a listener does. endpoints: in the plan's order, never empty. affinity_seconds: 0 without affinity."""

    family: Family
    endpoints: tuple[Endpoint, ...]
    affinity_seconds: int = 0


class Statistics(msgspec.Struct, frozen=True):
    """Counted since the forwarder started, but for what is open now.

    connections, sessions: TCP connections and UDP sessions that are open. accepted: TCP connections taken.
    bytes_in, bytes_out: towards endpoints, towards clients. retries: endpoints that were skipped because they refused
    or did not answer in time. refused: connections that were given up, by reason ("no-endpoint": none would have them,
    "descriptors": the process has no file descriptor left). reset: cut off when the drain time was over.
    """

    connections: int = 0
    sessions: int = 0
    accepted: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    retries: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    reset: int = 0


class Forwarder(Protocol):
    """Listens and forwards, in processes of its own. Used by several threads."""

    def update(self, family: Family, changes: Mapping[ListenerKey, Listener | None]) -> Mapping[ListenerKey, int | str]:
        """Make these listeners what they should be; None closes one. All others stay as they are.

        Returns for each that was not closed its proxy port, which stays the same as long as it listens, or why it
        cannot be had (one line; it does not listen then). Connections that are open stay open: those to endpoints that
        left until the drain time is over. The first call starts the forwarder.

        Raises KernelError when the forwarder is gone, or cannot be started. It knows of no listener any more then, and
        nothing of these changes was made. Each family whose listeners were lost is told so once; the family's next call
        begins afresh, in a new process, and has to set up all of its listeners again.
        """

    def alive(self) -> bool:
        """Cheap: whether all listeners that were set up still listen; true before the first of them.

        False from the loss of them until `update` has told every family that had some.
        """

    def statistics(self) -> Statistics:
        """What was counted. Raises KernelError when the forwarder does not answer."""

    def close(self) -> None:
        """End it, and with it every connection."""
