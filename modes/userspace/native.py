"""One family's rules and listeners as text and as values, for `kproxy render`. Pure.

The forwarder allocates proxy ports when it opens listeners; here they are numbered in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kproxy.model.plans import PortKey, ServicePlan
from kproxy.modes.iptables.render import text
from kproxy.modes.userspace.listeners import Listener, Reach
from kproxy.modes.userspace.render import Portal, Settings, listeners, render_base, render_port, unserved

FIRST_PORT = 40_000


@dataclass(frozen=True, slots=True)
class NumberedListener:
    """One listener and its proxy port."""

    key: PortKey
    reach: Reach
    port: int
    listener: Listener

    def __str__(self) -> str:
        affinity = self.listener.affinity_seconds
        ends = ", ".join(map(str, self.listener.endpoints))
        sticky = f" (affinity {affinity} s)" if affinity else ""
        return f"{self.key} {self.key.protocol} {self.reach}: port {self.port} -> {ends}{sticky}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A node's rules as iptables-save text, its listeners, and the reasons for which ports are not served."""

    rules: str
    listeners: tuple[NumberedListener, ...]
    unserved: tuple[str, ...]

    def native(self) -> str:
        """The rules as text for iptables-restore, followed by the listeners as comments."""
        notes = ["Listeners; their proxy ports are chosen at run time", *map(str, self.listeners), *self.unserved]
        return self.rules + "".join(f"# {note}\n" for note in notes)

    def json(self) -> dict[str, object]:
        """The object of --format json."""
        return {
            "rules": self.rules,
            "listeners": [
                {
                    "service": str(shown.key),
                    "protocol": shown.key.protocol.value,
                    "reach": shown.reach.value,
                    "port": shown.port,
                    "endpoints": [str(endpoint) for endpoint in shown.listener.endpoints],
                    "affinity": shown.listener.affinity_seconds,
                }
                for shown in self.listeners
            ],
        }


def outcome(plans: Iterable[tuple[PortKey, ServicePlan]], settings: Settings, first_port: int) -> Outcome:
    """One family's outcome, with proxy ports from `first_port` on, in the order of the Service ports' names."""
    ordered = sorted(plans)
    shown = tuple(_numbered(ordered, first_port))
    numbers = {(one.key, one.reach): one.port for one in shown}
    fragments = (
        (key, render_port(Portal(plan, *(numbers.get((key, reach), 0) for reach in Reach)), settings))
        for key, plan in ordered
    )
    rules = text(render_base(settings), fragments)
    return Outcome(rules, shown, tuple(why for _, plan in ordered if (why := unserved(plan))))


def _numbered(plans: Iterable[tuple[PortKey, ServicePlan]], first_port: int) -> Iterator[NumberedListener]:
    for key, plan in plans:
        for reach, listener in listeners(plan).items():
            yield NumberedListener(key, reach, first_port, listener)
            first_port += 1
