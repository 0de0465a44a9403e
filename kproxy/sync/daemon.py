"""`kproxy run`: puts the parts together, runs the loop until a signal, takes the parts down again. Rules stay.

When the configuration file changes, what differs is put in place between two syncs: most fields by their value alone, a
mode by closing the old one's driver and letting the new one's take over, as it would after a restart. What goes on
meanwhile (the watches, what is known of the cluster, metrics, open addresses) is not touched.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

from kproxy import __version__, logs
from kproxy.clocks import SystemClock
from kproxy.config import options as log_settings
from kproxy.config.encode import to_values
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.options import Options
from kproxy.conntrack.reconciler import Reconciler
from kproxy.conntrack.table import KernelConntrack
from kproxy.errors import InvalidConfig, KproxyError
from kproxy.events.series import Notice
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.healthz.service_checks import check_failed
from kproxy.kernel import nfacct
from kproxy.kernel.commands import Commands
from kproxy.metrics.registry import Metrics
from kproxy.model.state import ClusterState
from kproxy.modes.drivers import driver_of
from kproxy.status.schema import Identity
from kproxy.status.servers import Servers, ServerSettings
from kproxy.status.store import StatusStore
from kproxy.sync import host_setup, reload
from kproxy.sync.active_mode import ActiveMode, find_tools
from kproxy.sync.cluster_source import Source
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.node_info import NodeSurroundings
from kproxy.sync.post_sync import PostSync
from kproxy.sync.reload import ConfigFile
from kproxy.sync.reporter import Reporter

_log = logs.get("daemon")

TURN = 0.0005
"""Seconds that a busy thread keeps the interpreter while others wait for it. With Python's own 0.005 the thread that
talks to the kernel waits that long after each system call while the next portion is made: a fifth of the time in which
a large table is written (nftables mode)."""


def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status.

    Raises InvalidConfig for a mode that does not exist yet and for unusable credentials, KernelError when the host
    lacks what the mode needs.
    """
    driver_of(options.config.mode)
    host_setup.protect_from_oom(options.config.oom_score_adj)
    host_setup.apply_sysctls(options.config)
    if options.init_only:
        host_setup.prepare_for_unprivileged(options.config)
        _log.info("Initialised; ending, as --init-only asks")
        return 0
    inbox = EventQueue()
    _stop_on_signals(inbox)
    _keep_collector_at_bay()
    sys.setswitchinterval(TURN)
    with ExitStack() as stack:
        _Daemon(options, inbox, stack).run()
    return 0


def _stop_on_signals(inbox: EventQueue) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        inbox.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _keep_collector_at_bay() -> None:
    """What a cluster consists of is made once and stays, by the million; there is next to nothing among it to collect.

    With Python's own thresholds the collector takes half of the time in which a large cluster is decoded and written.
    """
    gc.freeze()
    gc.set_threshold(50_000, 200, 100)


class _Daemon:
    """The parts of one run. What has to be closed at the end is pushed on `stack`."""

    def __init__(self, options: Options, inbox: EventQueue, stack: ExitStack) -> None:
        self._options, self._config = options, options.config
        self._inbox, self._stack = inbox, stack
        self._clock = SystemClock()
        self._commands = Commands()
        tools = find_tools(self._commands, self._config.mode, options.iptables_backend)
        addresses = host_setup.LiveAddresses()
        stack.callback(addresses.close)
        self._surroundings = NodeSurroundings(
            self._config, addresses, self._clock, tools.has_nfacct, tools.random_fully
        )
        self._metrics = Metrics(tools.families, self._config.mode, __version__)
        self._health = ProxierHealth(self._config.sync_period.seconds, self._clock)
        self._identity = Identity(__version__, self._config.mode.value, to_values(self._config), options.flags)
        self._board = StatusStore(self._identity, options.node_name, self._clock)
        stack.enter_context(self._board.listening())
        self._state = ClusterState(options.node_name)
        self._shift = ActiveMode(self._config, tools, self._commands, self._surroundings, self._metrics)
        stack.callback(lambda: self._shift.close())
        self._source = Source(options, inbox, self._clock, self._metrics)
        stack.callback(lambda: self._source.close())
        self._servers = self._make_servers()

    def run(self) -> None:
        """Until the inbox is stopped."""
        self._source.start()
        self._servers.start()
        self._stack.callback(self._servers.stop)
        file = self._follow_file()
        self._on_duty()
        _log.info("Started", version=__version__, **self._shown())
        loop = self._loop()
        while not self._inbox.stopped:
            loop.run(until=lambda: file is not None and file.pending)
            if file is not None and (news := file.take()):
                loop = self._reload(news, loop)
        _log.info("Ending; the rules stay in place")
        self._shift.finish(loop.book)

    # ---- parts

    def _loop(self) -> Controller:
        """A loop that knows the cluster, and nothing yet of what the kernel holds."""
        reconcilers = {family: Reconciler(family, KernelConntrack()) for family in self._shift.tools.families}
        loop = Controller(
            self._state,
            self._inbox,
            self._shift.workers,
            self._surroundings,
            Reporter(
                self._metrics, self._health, self._board, self._notify, self._options.node_name, self._config.mode
            ),
            PostSync(
                reconcilers,
                self._servers,
                self._surroundings,
                self._metrics,
                self._shift.driver,
                self._shift.leftovers,
            ),
        )
        self._board.show(loop, self._shift.tools.families)
        return loop

    def _follow_file(self) -> ConfigFile | None:
        if self._options.config_file is None or self._options.reread is None:
            return None
        file = ConfigFile(self._options, self._inbox.wake)
        file.start()
        self._stack.callback(file.stop)
        return file

    def _make_servers(self) -> Servers:
        node = self._options.node_name
        return Servers(
            server_settings(self._config),
            self._identity,
            self._health,
            self._metrics,
            self._clock,
            self._board,
            lambda port, check, error: self._notify(check_failed(node, port, check, error)),
        )

    def _notify(self, notice: Notice) -> None:
        self._source.notify(notice)

    def _on_duty(self) -> None:
        """Tell the other parts of the mode that works now."""
        self._metrics.serves(self._shift.tools.families, self._config.mode)
        counters = self._shift.tools.has_nfacct
        if self._config.mode is not ProxyMode.USERSPACE:
            self._metrics.read_forwarder_with(None)
        self._metrics.read_nfacct_with(
            (lambda: {name: c.packets for name, c in nfacct.counters().items()}) if counters else dict
        )

    def _shown(self) -> dict[str, str]:
        tools = self._shift.tools
        return {
            "node": self._options.node_name,
            "mode": self._config.mode.value,
            "backend": tools.backend,
            "families": ",".join(tools.families),
        }

    # ---- another configuration

    def _reload(self, news: Options | InvalidConfig, loop: Controller) -> Controller:
        """Put what the file says now in place, or refuse it; the loop to go on with."""
        if isinstance(news, InvalidConfig):
            self._refuse(news.problems)
            return loop
        old = self._config
        client = Source(news, self._inbox, self._clock, self._metrics)
        new_client = reload.needs_new_client(old, news.config)
        try:
            if new_client:
                client.check()
            loop = self._replace_shift(news.config, loop)
        except KproxyError as error:
            self._refuse(error.problems if isinstance(error, InvalidConfig) else (str(error),))
            return loop
        self._config = news.config
        log_settings.set_up(news.config.logging)
        for line in (*news.warnings, *reload.unchangeable(self._options, news)):
            _log.warning(line)
        self._adopt(old)
        if new_client:
            self._source.close()
            self._source = client
            client.start()
        self._metrics.config_reloaded("applied")
        fields = reload.changed_fields(to_values(old), to_values(news.config))
        _log.info("The configuration file changed and is in force", fields=",".join(fields), **self._shown())
        return loop

    def _replace_shift(self, config: KubeProxyConfiguration, loop: Controller) -> Controller:
        """Have CONFIG's mode work by CONFIG. What it needs is made before the old mode ends: a failure is no harm."""
        if not reload.needs_new_driver(self._config, config):
            self._shift.reconfigure(config)
            tools = self._shift.tools
            self._surroundings.adapt(config, tools.has_nfacct, tools.random_fully)
            return loop
        tools = find_tools(self._commands, config.mode, self._options.iptables_backend)
        shift = ActiveMode(config, tools, self._commands, self._surroundings, self._metrics)
        self._shift.finish(loop.book)
        self._shift.close()
        self._shift, self._config = shift, config
        self._surroundings.adapt(config, tools.has_nfacct, tools.random_fully)
        self._on_duty()
        return self._loop()

    def _adopt(self, old: KubeProxyConfiguration) -> None:
        """Put the fields in place that have nothing to do with the mode."""
        new = self._config
        if new.oom_score_adj != old.oom_score_adj:
            host_setup.protect_from_oom(new.oom_score_adj)
        if new.conntrack != old.conntrack:
            host_setup.apply_sysctls(new)
        self._health.expect(new.sync_period.seconds)
        self._identity.mode, self._identity.config = new.mode.value, to_values(new)
        self._servers.rebind(server_settings(new))

    def _refuse(self, problems: Sequence[str]) -> None:
        self._metrics.config_reloaded("refused")
        for problem in problems:
            _log.error("The configuration file changed and is refused; what it held before stays in force", err=problem)
        note = f"the changed configuration is refused: {'; '.join(problems)}"
        self._notify(Notice("Node", "", self._options.node_name, "InvalidConfiguration", "Reload", note))


def server_settings(config: KubeProxyConfiguration) -> ServerSettings:
    """Where the servers listen."""
    return ServerSettings(config.healthz_bind_address, config.metrics_bind_address, config.bind_address_hard_fail)
