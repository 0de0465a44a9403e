"""`kproxy run`: puts the parts together, runs the loop until a signal, takes the parts down again. Rules stay."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

from kproxy import __version__, logs
from kproxy.config.encode import to_values
from kproxy.config.fields import ProxyMode
from kproxy.config.options import Options
from kproxy.errors import InvalidConfig, KernelError
from kproxy.health.clocks import SystemClock
from kproxy.health.event_series import Notice
from kproxy.health.events import ApiSink, EventRecorder, check_failed
from kproxy.health.metrics import Metrics
from kproxy.health.proxier_health import ProxierHealth
from kproxy.health.servers import Identity, Servers, ServerSettings
from kproxy.kernel import nfacct
from kproxy.kernel.commands import Commands
from kproxy.kernel.conntrack import KernelConntrack
from kproxy.kernel.flow_reconciler import Reconciler
from kproxy.kernel.iptables import Backend, Command, available, detect
from kproxy.model.book import Book
from kproxy.model.plans import Family
from kproxy.model.state import ClusterState
from kproxy.sync import hosting
from kproxy.sync.aftermath import Aftermath
from kproxy.sync.drivers.base import Driver, Equipment
from kproxy.sync.drivers.registry import driver_of
from kproxy.sync.inbox import Inbox
from kproxy.sync.leftovers import Leftovers
from kproxy.sync.loop import Loop
from kproxy.sync.remains import remains
from kproxy.sync.report import Reporter
from kproxy.sync.schedule import Schedule
from kproxy.sync.surroundings import NodeSurroundings
from kproxy.sync.workers import Worker

__all__ = ["run"]

_log = logs.get("daemon")

COUNTING = frozenset({ProxyMode.IPTABLES, ProxyMode.USERSPACE})
"""The modes whose rules count in nfacct counters; userspace mode hands over to such rules when it ends."""


def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status.

    Raises InvalidConfig for a mode that does not exist yet, KernelError when the host lacks what the mode needs.
    """
    make_driver = driver_of(options.config.mode)
    hosting.protect_from_oom(options.config.oom_score_adj)
    hosting.apply_sysctls(options.config)
    if options.init_only:
        _log.info("Initialised; ending, as --init-only asks")
        return 0
    inbox = Inbox()
    _stop_on_signals(inbox)
    with ExitStack() as stack:
        daemon = _Daemon(options, make_driver, inbox, stack)
        loop = daemon.loop()
        loop.run()
        _log.info("Ending; the rules stay in place")
        daemon.finish(loop.book)
    return 0


def _stop_on_signals(inbox: Inbox) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        inbox.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


class _Daemon:
    """The parts of one run. What has to be closed is pushed on `stack`."""

    def __init__(
        self, options: Options, make_driver: Callable[[Equipment], Driver], inbox: Inbox, stack: ExitStack
    ) -> None:
        self._options, self._config = options, options.config
        self._inbox, self._stack = inbox, stack
        self._clock = SystemClock()
        self._commands = Commands()
        self._command = _backend(self._commands, self._config.mode, options.iptables_backend)
        self._families = hosting.families(self._commands, self._command)
        self._has_nfacct = self._config.mode in COUNTING and hosting.count_in_nfacct()
        addresses = hosting.LiveAddresses()
        stack.callback(addresses.close)
        self._surroundings = NodeSurroundings(
            self._config,
            addresses,
            self._clock,
            self._has_nfacct,
            random_fully=self._command is None or self._command.random_fully,
        )
        self._metrics = Metrics(self._families, self._config.mode, __version__)
        self._health = ProxierHealth(self._config.sync_period.seconds, self._clock)
        self._driver = make_driver(
            Equipment(self._config, self._commands, self._command, self._surroundings, self._metrics, stack)
        )
        self._leftovers = Leftovers(
            self._config.mode,
            remains(self._commands, self._config.ipvs.exclude_cidrs, self._config.mode),
            self._families,
        )
        stack.callback(self._leftovers.stop)

    def loop(self) -> Loop:
        """Everything started and connected."""
        self._read_counters()
        notify = self._start_source()
        servers = self._servers(notify)
        servers.start()
        self._stack.callback(servers.stop)
        reconcilers = {family: Reconciler(family, KernelConntrack()) for family in self._families}
        _log.info(
            "Started",
            version=__version__,
            node=self._options.node_name,
            mode=self._config.mode.value,
            backend=self._command.backend.value if self._command else "",
            families=",".join(self._families),
        )
        return Loop(
            ClusterState(self._options.node_name),
            self._inbox,
            [self._worker(family) for family in self._families],
            self._surroundings,
            Reporter(self._metrics, self._health, notify, self._options.node_name, self._config.mode),
            Aftermath(reconcilers, servers, self._surroundings, self._metrics, self._driver, self._leftovers),
        )

    def finish(self, book: Book) -> None:
        """What the mode leaves to do when the daemon ends. A failure is logged: there is no later try."""
        if not self._leftovers.established:
            return  # nothing of ours stands yet
        try:
            self._driver.finish(book)
        except KernelError as error:
            _log.error("Could not hand over", error)

    def _worker(self, family: Family) -> Worker:
        programmer, configure = self._driver.drive(family)
        schedule = Schedule(self._config.min_sync_period.seconds, self._config.sync_period.seconds)
        return Worker(programmer, schedule, configure)

    def _start_source(self) -> Callable[[Notice], None]:
        """Begin to follow the cluster; returns where notices for operators go."""
        if self._options.manifests:
            from kproxy.source.manifests import ManifestSource

            manifests = ManifestSource(self._options.manifests)
            manifests.start(self._inbox)
            self._stack.callback(manifests.stop)
            return lambda notice: None  # without an API server there is nobody to tell; the log has it all
        # Only here: the kubernetes package is large, and not needed with manifests.
        from kproxy.source.api import ApiSource
        from kproxy.source.client import ApiClient
        from kproxy.source.credentials import ClientSettings

        kubeconfig = self._options.kubeconfig or self._config.client_connection.kubeconfig
        client = ApiClient(ClientSettings(kubeconfig, self._options.master))
        self._stack.callback(client.close)
        source = ApiSource(client, self._options.node_name)
        source.start(self._inbox)
        self._stack.callback(source.stop)
        recorder = EventRecorder(ApiSink(client), self._options.node_name, self._clock, self._metrics.kubernetes_event)
        recorder.start()
        self._stack.callback(recorder.stop)
        return recorder.record

    def _servers(self, notify: Callable[[Notice], None]) -> Servers:
        node = self._options.node_name
        return Servers(
            ServerSettings(
                self._config.healthz_bind_address,
                self._config.metrics_bind_address,
                self._config.bind_address_hard_fail,
            ),
            Identity(__version__, self._config.mode.value, to_values(self._config)),
            self._health,
            self._metrics,
            self._clock,
            lambda port, check, error: notify(check_failed(node, port, check, error)),
        )

    def _read_counters(self) -> None:
        if self._has_nfacct:
            self._metrics.read_nfacct_with(lambda: {name: c.packets for name, c in nfacct.counters().items()})


def _backend(commands: Commands, mode: ProxyMode, wanted: str) -> Command | None:
    """The iptables commands to work with; None in nftables mode, which needs none."""
    if mode is ProxyMode.NFTABLES:
        return None
    if wanted == "auto":
        return detect(commands)
    found = available(commands).get(Backend(wanted))
    if found is None:
        raise InvalidConfig([f"iptables-backend: the commands of backend {wanted} are not installed"])
    return found
