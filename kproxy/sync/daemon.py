"""`kproxy run`: puts the parts together, runs them until a signal, and takes them down again. The rules stay.

When the configuration file changes, what differs is put in force: most fields by their value alone, a mode by closing
the old one's driver and letting the new one take over, as it would after a restart. The watches, what is known of the
cluster, metrics and open addresses are not touched.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

from kproxy import __version__, logs
from kproxy.clocks import SystemClock
from kproxy.config import options as log_settings
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.files import to_values
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig, KproxyError
from kproxy.healthz.proxier_health import ProxierHealth
from kproxy.healthz.service_checks import check_failed
from kproxy.kernel import nfacct
from kproxy.kernel.commands import Commands
from kproxy.metrics.registry import Metrics
from kproxy.model.plans import ServicePlan
from kproxy.model.state import ClusterState
from kproxy.modes.drivers import driver_of
from kproxy.rate_limit import Backoff
from kproxy.status.schema import Identity
from kproxy.status.servers import Servers, ServerSettings
from kproxy.status.store import StatusStore
from kproxy.sync import host_setup, node_events
from kproxy.sync.active_mode import ActiveMode, Shared, find_iptables, find_tools
from kproxy.sync.cluster_source import ClusterSource, check_credentials
from kproxy.sync.controller import Controller
from kproxy.sync.event_queue import EventQueue
from kproxy.sync.node_info import LiveAddresses, NodeWatcher
from kproxy.sync.plan_queue import PlanQueue
from kproxy.sync.post_sync import HealthCheckPorts
from kproxy.sync.reload import ConfigFile, changed_fields, needs_new_client, needs_new_driver, unchangeable
from kproxy.sync.reporter import Reporter

_log = logs.get("daemon")

STOP_SECONDS = 20.0
"""Seconds that a sync under way may take when the daemon ends; a pod is killed 30 s after it was asked to end."""
PAUSE_SECONDS = 5.0
"""Seconds that a sync under way may take when the mode changes; if it takes longer, the change is put off."""
SWITCH_INTERVAL = 0.0005
"""Seconds that a busy thread keeps the interpreter while others wait for it. With Python's own 0.005 the thread that
talks to the kernel waits that long after each system call while the next portion is made: a fifth of the time in which
a large table is written (nftables mode)."""
_M_ARENA_MAX = -8  # /usr/include/malloc.h


def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status.

    Raises InvalidConfig for a mode that does not exist yet and for unusable credentials, KernelError when the host
    lacks what the mode needs.
    """
    driver_of(options.config.mode)
    containment = Containment(SystemClock())
    setup = containment.stage("host-setup", "the host keeps its own settings")
    setup.attempt(lambda: host_setup.protect_from_oom(options.config.oom_score_adj), None)
    setup.attempt(lambda: host_setup.apply_sysctls(options.config), None)
    if options.init_only:
        host_setup.prepare_for_unprivileged(options.config)
        _log.info("Initialised; exiting because of --init-only")
        return 0
    queue = EventQueue()
    _stop_on_signals(queue)
    _tune_interpreter()
    with ExitStack() as stack:
        Daemon(options, queue, stack, containment).run()
    return 0


def _stop_on_signals(queue: EventQueue) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        queue.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _tune_interpreter() -> None:
    """Set the garbage collector, the switching of threads and the C library's allocator for a large, long-lived heap.

    A cluster's objects are many, live long and are hardly garbage: with Python's own thresholds the collector takes
    half of the time in which a large cluster is decoded and written. One arena (mallopt(3)) serves all threads, which
    take turns in the interpreter anyway: an arena for each keeps some 5 MB free that no other thread can use.
    """
    gc.freeze()
    gc.set_threshold(50_000, 200, 100)
    sys.setswitchinterval(SWITCH_INTERVAL)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # a C library other than glibc may have none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


class Daemon:
    """The parts of one run. What has to be closed at the end is pushed on `stack`."""

    def __init__(self, options: Options, queue: EventQueue, stack: ExitStack, containment: Containment) -> None:
        self._options, self._config = options, options.config
        self._queue, self._stack = queue, stack
        self._clock = SystemClock()
        self._containment = containment
        commands = Commands()
        tools = find_tools(commands, self._config.mode, options.iptables_backend)
        if options.hand_over_at_end:  # better known now than at the end
            find_iptables(commands, options.iptables_backend)
        addresses = LiveAddresses()
        stack.callback(addresses.close)
        self._node_watcher = NodeWatcher(self._config, addresses, self._clock)
        self._metrics = Metrics(tools.families, self._config.mode, __version__, self._containment)
        self._health = ProxierHealth(self._config.sync_period.seconds, self._clock)
        self._identity = Identity(
            __version__,
            self._config.mode.value,
            str(self._config.emulate_version),
            to_values(self._config),
            options.flags,
        )
        self._status = StatusStore(self._identity, options.node_name, self._clock, self._containment)
        stack.enter_context(self._status.listening())
        self._source = ClusterSource(options, queue, self._clock, self._metrics, self._containment)
        self._reporter = Reporter(
            self._metrics, self._health, self._status, self._source.notify, options.node_name, self._config.mode
        )
        self._state = ClusterState(options.node_name)
        self._plans = PlanQueue(self._state, tools.families, self._reporter, self._containment)
        self._servers = self._make_servers()
        self._shared = Shared(
            commands,
            self._metrics,
            self._plans,
            HealthCheckPorts(self._servers),
            self._reporter,
            self._clock,
            self._containment,
        )
        self._mode = ActiveMode(self._config, tools, self._shared)
        stack.callback(lambda: self._mode.close())
        stack.callback(lambda: self._source.close())
        self._file = self._config_file()
        self._reload_stage = self._containment.stage("reload", "the configuration in force stays in force")
        self._reload_backoff = Backoff()
        self._warned: set[str] = set()
        self._pending: Options | InvalidConfig | None = None
        self._pending_at = 0.0

    def run(self) -> None:
        """Work until the queue is stopped."""
        self._source.start()
        self._servers.start()
        self._stack.callback(self._servers.stop)
        if self._file is not None:
            self._file.start()
            self._stack.callback(self._file.stop)
        self._announce_mode()
        _log.info("Started", version=__version__, **self._described())
        self._source.notify(node_events.starting(self._options.node_name, __version__, self._config))
        self._warn_of_mode(self._options.mode_given)
        self._mode.start()
        controller = Controller(
            self._state,
            self._queue,
            self._plans,
            self._node_watcher,
            self._reporter,
            lambda: self._mode.wake(),
            self._containment,
        )
        while not self._queue.stopped:
            controller.run(until=self._something_else_is_due)
            self._source.retry()
            if not self._queue.stopped:
                self._look_for_new_configuration()
        hand_over = self._options.hand_over_at_end
        _log.info("Shutting down; the rules stay in place" if not hand_over else "Shutting down; handing over")
        self._mode.finish(STOP_SECONDS, self._options.iptables_backend if hand_over else None)

    # ---- parts

    def _config_file(self) -> ConfigFile | None:
        if self._options.config_file is None or self._options.reread is None:
            return None
        return ConfigFile(self._options, self._queue.wake, self._containment)

    def _make_servers(self) -> Servers:
        node = self._options.node_name
        return Servers(
            server_settings(self._config),
            self._identity,
            self._health,
            self._metrics,
            self._clock,
            self._status,
            self._containment,
            lambda port, check, error: self._source.notify(check_failed(node, port, check, error)),
        )

    def _announce_mode(self) -> None:
        """Tell the other parts which mode works now."""
        tools = self._mode.tools
        self._reporter.serves(self._config.mode, tools.families)
        self._status.show(Programmed(self._plans, self._mode), tools.families)
        self._metrics.serves(tools.families, self._config.mode)
        self._metrics.read_forwarder_with(self._mode.driver.forwarder_statistics)
        self._metrics.read_localhost_rejected_with(self._mode.driver.localhost_rejected)
        self._metrics.read_nfacct_with(
            (lambda: {name: c.packets for name, c in nfacct.counters().items()}) if tools.has_nfacct else dict
        )

    def _warn_of_mode(self, mode_given: bool) -> None:
        """Tell once, in the log and as an Event, what operators should know of the mode in use."""
        for notice in node_events.mode_warnings(self._options.node_name, self._config, mode_given):
            if notice.reason not in self._warned:
                self._warned.add(notice.reason)
                _log.warning(notice.note)
                self._source.notify(notice)

    def _described(self) -> dict[str, str]:
        tools = self._mode.tools
        return {
            "node": self._options.node_name,
            "mode": self._config.mode.value,
            "emulates": str(self._config.emulate_version),
            "backend": tools.backend,
            "families": ",".join(tools.families),
        }

    # ---- another configuration

    def _something_else_is_due(self) -> bool:
        """Whether the main thread has something to do that the controller does not."""
        changed = self._file is not None and self._file.pending
        return changed or self._reload_due() or self._source.retry_due

    def _reload_due(self) -> bool:
        due = self._pending is not None and self._clock.monotonic() >= self._pending_at
        return due and self._reload_stage.ready

    def _look_for_new_configuration(self) -> None:
        if self._file is not None and (news := self._file.take()):
            self._pending, self._pending_at = news, 0.0
            self._reload_backoff.reset()
        if self._reload_due():
            try:
                self._reload_stage.attempt(self._reload, None)
            except KproxyError as error:
                self._pending = None
                self._refuse((str(error),))

    def _reload(self) -> None:
        """Apply what the file says now, refuse it, or put it off."""
        news = self._pending
        if isinstance(news, InvalidConfig):
            self._refuse(news.problems)
        elif news is not None and (busy := self._apply(news)):
            wait = self._reload_backoff.next()
            if self._reload_backoff.failures == 1:
                _log.warning("The mode cannot be changed yet; will retry", err="; ".join(busy), retry_in=wait)
            self._pending_at = self._clock.monotonic() + wait
            return
        self._pending = None

    def _apply(self, news: Options) -> list[str]:
        """Apply `news` or refuse it; returns a line for each thing that it has to wait for."""
        old = self._config
        new_client = needs_new_client(old, news.config)
        try:
            if new_client:
                check_credentials(news)
            busy = self._replace_mode(news.config)
        except KproxyError as error:
            self._refuse(error.problems if isinstance(error, InvalidConfig) else (str(error),))
            return []
        if busy:
            return busy
        self._config = news.config
        log_settings.set_up(news.config.logging)
        self._warn_of_mode(news.mode_given)
        for line in (*news.warnings, *unchangeable(self._options, news)):
            _log.warning(line)
        self._adopt(old)
        if new_client:
            self._source.replace(news)
        self._metrics.config_reloaded("applied")
        fields = changed_fields(to_values(old), to_values(news.config))
        _log.info("Applied the changed configuration file", fields=",".join(fields), **self._described())
        return []

    def _replace_mode(self, config: KubeProxyConfiguration) -> list[str]:
        """Switch to the mode of `config`, or give the present mode its new settings.

        Returns what keeps the present mode from ending, a line each; then nothing changed. What the new mode needs is
        made before the old one ends, so a failure does no harm.
        """
        if not needs_new_driver(self._config, config):
            self._node_watcher.reconfigure(config)
            self._mode.reconfigure(config)
            return []
        tools = find_tools(self._shared.commands, config.mode, self._options.iptables_backend)
        mode = ActiveMode(config, tools, self._shared)
        if busy := self._mode.pause(PAUSE_SECONDS):
            self._mode.resume()
            mode.close()
            return busy
        self._mode.finish(STOP_SECONDS)
        self._mode.close()
        self._mode, self._config = mode, config
        self._node_watcher.reconfigure(config)
        self._announce_mode()
        mode.start()
        return []

    def _adopt(self, old: KubeProxyConfiguration) -> None:
        """Apply the fields that do not concern the mode."""
        new = self._config
        if new.oom_score_adj != old.oom_score_adj:
            host_setup.protect_from_oom(new.oom_score_adj)
        if new.conntrack != old.conntrack:
            host_setup.apply_sysctls(new)
        self._health.expect(new.sync_period.seconds)
        self._identity.mode, self._identity.config = new.mode.value, to_values(new)
        self._identity.emulates = str(new.emulate_version)
        self._servers.rebind(server_settings(new))

    def _refuse(self, problems: Sequence[str]) -> None:
        self._metrics.config_reloaded("refused")
        for problem in problems:
            _log.error(
                "The changed configuration file is refused; the previous configuration stays in force", err=problem
            )
        self._source.notify(node_events.refused_configuration(self._options.node_name, "; ".join(problems)))


class Programmed:
    """What is programmed, for the status page. From any thread."""

    def __init__(self, plans: PlanQueue, mode: ActiveMode) -> None:
        self._plans, self._mode = plans, mode

    def plans(self) -> list[ServicePlan]:
        """A copy of the plans of all families."""
        return self._plans.plans()

    def names(self, plan: ServicePlan) -> tuple[str, ...]:
        """See Dataplane.names."""
        return self._mode.proxiers[plan.family].names(plan)


def server_settings(config: KubeProxyConfiguration) -> ServerSettings:
    """Where the servers listen."""
    return ServerSettings(config.healthz_bind_address, config.metrics_bind_address, config.bind_address_hard_fail)
