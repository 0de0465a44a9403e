"""Every call across a narrow interface raises what nobody foresaw, once and then for ever, in a running daemon.

The process lives, what the call is not about goes on, the failure is counted and reported once, and all is well when
the saboteur stops.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kproxy.config.fields import ProxyMode
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.proxies import wait_for
from kproxy.model.plans import Family
from tests.saboteur.daemons import HEALTHZ, SOON, RunningDaemon
from tests.saboteur.points import ONLY_IPVS, POINTS, Point, Saboteur, owner_of

ROOT = Path(__file__).resolve().parents[2]
V4, V6 = Family.IPV4, Family.IPV6
FOR_EVER = 1_000_000
MOST_REPORTS = 6  # three parts of two families may make the same call
LASTING = 0.6  # seconds for which a call fails "for ever": several retries

INTERFACES = (
    "kproxy.kernel.commands:Commands",
    "kproxy.kernel.iptables:HostTables",
    "kproxy.kernel.ipset:KernelIpSets",
    "kproxy.kernel.ipvs:KernelIpvs",
    "kproxy.kernel.service_device:KernelAddresses",
    "kproxy.kernel.netlink_sockets:Socket",
    "kproxy.conntrack.table:KernelConntrack",
    "kproxy.netfilter.changes:NftDrift",
    "kproxy.netfilter.kernel:KernelNftables",
    "kproxy.netfilter.notifications:Monitor",
    "kproxy.netfilter.table:Table",
    "kproxy.events.recorder:ApiSink",
    "kproxy.status.servers:Servers",
    "kproxy.sync.event_queue:EventQueue",
    "kproxy.sync.node_info:LiveAddresses",
    "kproxy.sync.reload:ConfigFile",
    "modes.userspace.forwarder:ForwarderProcess",
)
"""The narrow interfaces, whose every public method is in the table or below."""

ELSEWHERE = {
    "ApiSink.post": "tests/events/test_recorder.py",
    "ConfigFile.reread": "tests/sync/test_config_file.py",
    "Servers.rebind": "tests/dropin/test_reload.py",
    "ForwarderProcess.end_unused": "tests/localhost_ports/test_dataplane.py",
    "KernelConntrack.delete": "tests/sync/test_post_sync.py",
    "KernelIpSets.create": "tests/kernel/test_ipsets.py",
    **dict.fromkeys(
        [f"HostTables.{call}" for call in ("chains", "list_chain", "holds")],
        "tests/field/test_start_beside_foreign_rules.py",
    ),
    "HostTables.accept_restores": "tests/sync/test_families.py",
}
"""Where else a call is made to fail."""

HARMLESS = {
    # made once at the start, before anything is programmed: a failure there is one that the daemon cannot start without
    "Commands.which",
    "KernelNftables.check",
    "KernelIpvs.set_timeouts",
    "KernelIpvs.has_scheduler",
    "KernelAddresses.ensure",
    "ConfigFile.start",
    "Servers.start",
    # made at the end, or in a cleanup
    "KernelIpSets.destroy",
    "KernelAddresses.remove",
    "Servers.stop",
    "ConfigFile.stop",
    "Table.can_delete",
    "EventQueue.stop",
    # made by `kproxy trace` alone, never by the daemon
    "KernelIpSets.has",
    "KernelIpSets.header",
    "KernelIpvs.virtual_servers",
    "KernelConntrack.of_client",
    # no I/O
    "NftDrift.proves",
    "Table.bytes_written",
    "KernelNftables.bytes_written",
    "KernelNftables.portid",
    "HostTables.family",
    "HostTables.backend",
    "Socket.portid",
    "Socket.fileno",
    "Socket.decoding",
    "Monitor.fd",
    "NftDrift.wrote",
    "Servers.healthz_port",
    "Servers.metrics_port",
    "ConfigFile.pending",
    "ConfigFile.take",
    "EventQueue.stopped",
    "EventQueue.wake",
    "ForwarderProcess.pids",
    # each only makes what another of the table then uses
    "KernelNftables.listen",
    "KernelNftables.chain_names",
    "KernelNftables.encoded_rules",
    "Table.listen",
    "Monitor.forget",
    "Socket.ask",
    "Socket.ask_many",
    "Socket.change",
    "Socket.refusals",
}
"""Methods that need no row, each group with the reason."""


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_method_of_an_interface_is_in_the_table(interface: str) -> None:
    """A new method is a new way to fail: give it a row."""
    module, _, name = interface.partition(":")
    owner = getattr(import_module(f"kproxy.{module}" if module.startswith("modes.") else module), name)
    methods = {f"{name}.{each}" for each, _ in inspect.getmembers(owner) if not each.startswith("_")} - {
        f"{name}.close"
    }
    rows = {point.name for point in POINTS}
    assert methods - rows - ELSEWHERE.keys() - HARMLESS == set()


def test_no_row_is_of_something_that_is_gone() -> None:
    assert [point.name for point in POINTS if not callable(getattr(owner_of(point), point.call, None))] == []
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).exists()] == []


# ---------------------------------------------------------------- over the real kernel


LOCALHOST: dict[str, Any] = {
    "featureGates": {"KubeProxyNFTablesLocalhostNodePorts": True},
    "nodePortAddresses": ["127.0.0.0/8", "::1/128"],
}
"""A forwarder serves node ports on loopback."""


class Stage:
    """A daemon of one mode, a saboteur in it, and what it logged. number: of the last Service."""

    def __init__(self, daemon: RunningDaemon, saboteur: Saboteur, mode: ProxyMode) -> None:
        self.daemon, self.saboteur, self.mode = daemon, saboteur, mode
        self.number = 1
        self.records: list[logging.LogRecord] = []

    def provoke(self, point: Point) -> int:
        """Make the daemon do what needs the call; returns the number of a Service that it should program."""
        self.number += 1
        self.daemon.put(self.number, protocol="UDP" if point.provoke == "flow" else "TCP")
        match point.provoke:
            case "foreign":
                self._disturb()
            case "deleted table":
                self.daemon.space.run(["nft", "delete", "table", "ip6", "kproxy"])
            case "address":
                self.daemon.space.run(["ip", "address", "add", f"198.51.100.{self.number}/32", "dev", "lo"])
            case "scrape":
                self.daemon.get("/metrics")
            case "status":
                self.daemon.get("/status.json")
            case "health":
                self.daemon.get("/healthz", HEALTHZ)
        return self.number

    def _disturb(self) -> None:
        """What another program may do to the rules."""
        run = self.daemon.space.run
        if self.mode is ProxyMode.NFTABLES:
            for family in ("ip", "ip6"):
                run(["nft", "flush", "chain", family, "kproxy", "nat-postrouting"])
            return
        chain = "KUBE-PORTALS-HOST" if self.mode is ProxyMode.USERSPACE else "KUBE-POSTROUTING"
        for tool in ("iptables", "ip6tables"):
            run([f"{tool}-nft", "-w", "-t", "nat", "-F", chain])

    def tracebacks(self) -> int:
        """Reports of unexpected errors since the last call."""
        found = [record for record in self.records if record.exc_info and "Unexpected error" in record.getMessage()]
        self.records.clear()
        return len(found)

    def counted(self, point: Point) -> int:
        errors = self.daemon.internal_errors()
        return sum(errors.get(stage, 0) for stage in point.stages)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A daemon of the mode that the test names, for all its tests."""
    if reason := unavailable():
        pytest.skip(reason)
    mode: ProxyMode = request.param
    with closing(Namespace("node")) as space, pytest.MonkeyPatch.context() as patch:
        space.run(["ip", "link", "set", "lo", "up"])
        saboteur = Saboteur(patch, [point for point in POINTS if mode in point.modes])
        config = LOCALHOST if mode is ProxyMode.NFTABLES else {}
        with RunningDaemon(space, tmp_path_factory.mktemp("manifests"), mode, **config) as daemon:
            made = Stage(daemon, saboteur, mode)
            handler = logging.Handler()
            handler.emit = made.records.append  # type: ignore[method-assign, assignment]
            log = logging.getLogger("kproxy")
            log.addHandler(handler)
            daemon.put(1, protocol="UDP")
            assert daemon.programs(1, V4)
            assert daemon.programs(1, V6)
            yield made
            log.removeHandler(handler)


IN_THE_GUEST = {"Socket.dump", "KernelConntrack.flows", "LiveAddresses.changed"}
"""What is sabotaged in IPVS mode besides its own calls; the rest is as in iptables mode, and the guest is slow."""
CASES = [
    pytest.param(
        mode,
        point,
        id=f"{mode.value}-{point.name}",
        marks=[pytest.mark.ipvs_kernel] if mode is ProxyMode.IPVS else [pytest.mark.root],
    )
    for mode in ProxyMode
    for point in POINTS
    if mode in point.modes and (mode is not ProxyMode.IPVS or point.modes == ONLY_IPVS or point.name in IN_THE_GUEST)
]


@pytest.mark.parametrize(("stage", "point"), CASES, indirect=["stage"], scope="module")  # one stage for a mode
def test_a_call_that_fails_costs_what_it_is_about(stage: Stage, point: Point) -> None:
    daemon, saboteur = stage.daemon, stage.saboteur
    stage.records.clear()
    before = stage.counted(point)

    with saboteur.at(point, times=1):
        number = stage.provoke(point)
        assert wait_for(lambda: saboteur.hits > 0, SOON), "the daemon does not make this call"
        programmed(stage, number)

    with saboteur.at(point, times=FOR_EVER):
        number = stage.provoke(point)
        assert wait_for(lambda: saboteur.hits > 0, SOON)
        time.sleep(LASTING)
        if point.harmless:
            programmed(stage, number)
        elif point.ipv6 is not None:
            assert daemon.programs(number, V4)
        assert not daemon.ended, daemon.failure
    programmed(stage, number)
    stage.provoke(point)
    programmed(stage, stage.number)
    assert stage.counted(point) > before
    assert stage.tracebacks() <= MOST_REPORTS, "it is reported once, not once a second"
    assert wait_for(lambda: failing(daemon) == [], SOON), failing(daemon)
    assert daemon.get("/healthz", HEALTHZ)[0] == 200


def programmed(stage: Stage, number: int) -> None:
    for family in Family:
        assert stage.daemon.programs(number, family), f"{family} rules of web-{number}"
    assert not stage.daemon.ended, stage.daemon.failure


def failing(daemon: RunningDaemon) -> list[str]:
    """The stages that the status shows as failing."""
    status, text = daemon.get("/status.json")
    if status != 200:
        return [f"status {status}"]
    return [each["stage"] for each in json.loads(text).get("internalErrors", [])]
