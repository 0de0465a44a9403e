"""Metrics of userspace mode, read from its forwarder at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kproxy.errors import KernelError

__all__ = ["Figures", "ForwardingCollector"]


class Figures(Protocol):
    """What a forwarder counted; modes' userspace.listeners.Statistics says what each means."""

    @property
    def connections(self) -> int: ...
    @property
    def sessions(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def refused(self) -> Mapping[str, int]: ...
    @property
    def reset(self) -> int: ...


class ForwardingCollector:
    """Exports nothing until `read` is set, and nothing while the forwarder does not answer."""

    read: Callable[[], Figures] | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        if self.read is None:
            return
        try:
            found = self.read()
        except KernelError:
            return
        yield from _families(found)

    def describe(self) -> list[Metric]:
        """The metrics, with nothing counted."""
        return list(_families(_Nothing()))


class _Nothing:
    connections = sessions = accepted = bytes_in = bytes_out = retries = reset = 0
    refused: Mapping[str, int] = {}


def _families(found: Figures) -> Iterator[Metric]:
    name = "kproxy_userspace"
    yield GaugeMetricFamily(f"{name}_connections", "TCP connections that are open.", found.connections)
    yield GaugeMetricFamily(f"{name}_udp_sessions", "UDP sessions that are open.", found.sessions)
    yield CounterMetricFamily(f"{name}_accepted_connections", "TCP connections taken.", found.accepted)
    passed = CounterMetricFamily(f"{name}_bytes", "Bytes forwarded: in towards endpoints.", labels=["direction"])
    passed.add_metric(["in"], found.bytes_in)
    passed.add_metric(["out"], found.bytes_out)
    yield passed
    yield CounterMetricFamily(
        f"{name}_endpoint_retries", "Endpoints skipped because they refused or did not answer.", found.retries
    )
    refused = CounterMetricFamily(f"{name}_refused_connections", "Connections given up.", labels=["reason"])
    for reason, count in found.refused.items():
        refused.add_metric([reason], count)
    yield refused
    yield CounterMetricFamily(
        f"{name}_reset_connections", "Connections cut off when their endpoint's drain time was over.", found.reset
    )
