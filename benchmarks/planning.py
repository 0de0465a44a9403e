"""What one change costs up to the text for iptables-restore, and what a whole cluster costs at the start.

The kernel is left out: restores go to a sink that counts them, behind the same interface as the real tables.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from statistics import median

import msgspec

from benchmarks.cluster import NODE, Shape, body, endpoint_slice
from benchmarks.figures import Figure
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.model.events import Changed, Listed
from kproxy.model.node_info import NodeInfo, merged
from kproxy.model.objects import TYPES, EndpointSlice, Kind
from kproxy.model.plan_store import Changes
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings, render_port
from kproxy.modes.settings import iptables_settings
from kproxy.sources.decode import Decoder
from tests.fakes.iptables import FakeTables
from tests.fakes.plans import BothFamilies

HOST = NodeInfo(ips=("192.0.2.10", "2001:db8::10"), addresses=("192.0.2.10", "2001:db8::10"))
CHANGES = 400
EMPTY = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
EMPTY += "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n"


class Sink(FakeTables):
    """Tables that hold nothing and take everything."""

    def save(self) -> str:
        return EMPTY

    def restore(self, text: bytes | str) -> None:
        """Forgets it; the dataplane counts what it sends."""


class Cluster:
    """Everything that the daemon keeps for a cluster, built as the daemon builds it, without its threads."""

    def __init__(self) -> None:
        config = KubeProxyConfiguration()
        self.config = msgspec.structs.replace(config, cluster_cidr="10.128.0.0/9,fd00:244::/32")
        self.decoders = {kind: Decoder(kind) for kind in Kind}
        self.state = ClusterState(NODE)
        self.plans = BothFamilies()

    def take_in(self, kind: Kind, answer: bytes) -> None:
        """Decode the server's answer to a list, and let the model know of it."""
        self.state.apply(Listed(kind, tuple(self.decoders[kind].page(answer).objects)))

    def plan(self) -> None:
        """Plan what is dirty."""
        self.update()

    def update(self) -> dict[Family, Changes]:
        """Plan what is dirty; returns what changed."""
        return self.plans.update(self.state, merged(NODE, self.state.node, HOST))

    def settings(self, family: Family) -> Settings:
        node = merged(NODE, self.state.node, HOST)
        return iptables_settings(self.config, family, node, self.plans.families[family].endpoints)

    def fill(self, shape: Shape) -> None:
        """Take in and plan a whole cluster."""
        for kind in (Kind.NODE, Kind.SERVICE, Kind.ENDPOINT_SLICE):
            self.take_in(kind, body(shape, kind))
        self.plan()


def changes(shape: Shape, count: int = CHANGES) -> Iterator[Figure]:
    """One endpoint of one Service stops or starts serving: time from decoded event to text, and that text's length."""
    cluster = Cluster()
    cluster.fill(shape)
    sink = Sink(Family.IPV4)
    # Without per-rule comments at every size: kube-proxy's rule leaves them out past 1,000 endpoints, and bytes are
    # only comparable within one layout.
    settings = replace(cluster.settings(Family.IPV4), comments=False)
    dataplane = IptablesDataplane(settings, sink)
    dataplane.apply(cluster.plans.families[Family.IPV4].plans, None)
    seconds, sizes, plan_only = [], [], []
    random = Random(7)
    gc.collect()
    for turn in range(count):
        # The first change is of the same Service whatever the size, so that its bytes can be compared.
        number = random.randrange(shape.services) if turn else 0
        for ready in (shape.endpoints - 1, shape.endpoints):
            event = Changed(Kind.ENDPOINT_SLICE, _slice(shape, number, ready))
            start = time.perf_counter()
            cluster.state.apply(event)
            touched = cluster.update()[Family.IPV4]
            middle = time.perf_counter()
            outcome = dataplane.apply(cluster.plans.families[Family.IPV4].plans, touched.keys())
            end = time.perf_counter()
            seconds.append(end - start)
            plan_only.append(middle - start)
            sizes.append(outcome.bytes_written)
    yield Figure("bytes to iptables-restore, an endpoint goes", shape.services, sizes[0], "B")
    yield Figure("bytes to iptables-restore, it comes back", shape.services, sizes[1], "B")
    yield Figure("planning, median", shape.services, median(plan_only) * 1e6, "µs")
    yield Figure("planning and rendering, median", shape.services, median(seconds) * 1e6, "µs")


def cold_start(shape: Shape, label: str, limit: float | None = None) -> Iterator[Figure]:
    """From the server's answers to every rule of both families, as text; each step apart, then without decoding."""
    answers = {kind: body(shape, kind) for kind in (Kind.NODE, Kind.SERVICE, Kind.ENDPOINT_SLICE)}
    cluster = Cluster()
    clock = time.perf_counter
    gc.collect()
    start = clock()
    pages = {kind: cluster.decoders[kind].page(answer) for kind, answer in answers.items()}
    decoded = clock()
    for kind, page in pages.items():
        cluster.state.apply(Listed(kind, tuple(page.objects)))
    known = clock()
    cluster.plan()
    planned = clock()
    for family in Family:
        settings = cluster.settings(family)
        for plan in cluster.plans.families[family].plans.values():
            render_port(plan, settings)
    rendered = clock()
    for family in Family:
        IptablesDataplane(cluster.settings(family), Sink(family)).apply(cluster.plans.families[family].plans, None)
    written = clock()
    steps = {
        "decoding": decoded - start,
        "taking in": known - decoded,
        "planning": planned - known,
        "rendering": rendered - planned,
    }
    for name, value in steps.items():
        yield Figure(f"{label}: {name}", shape.services, value * 1000, "ms")
    yield Figure(f"{label}: planning and rendering", shape.services, (rendered - known) * 1000, "ms", limit)
    yield Figure(f"{label}: rendering into restores", shape.services, (written - rendered) * 1000, "ms")


def _slice(shape: Shape, number: int, ready: int) -> EndpointSlice:
    found = msgspec.convert(endpoint_slice(shape, number, Family.IPV4, ready), TYPES[Kind.ENDPOINT_SLICE])
    assert isinstance(found, EndpointSlice)
    return found
