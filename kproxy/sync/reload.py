"""Notices that the configuration file changed, and says what a new configuration asks of a running daemon.

How a change of the file is noticed is `kproxy.sources.file_watcher`'s; the file may be a link in a ConfigMap's volume.

Most fields are read whenever they are needed, so new values only have to replace the old ones; `MADE_WITH` has those
for which that is not enough.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import attrgetter

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig
from kproxy.sources.file_watcher import FileWatcher

POLL_SECONDS = 0.5
"""How often to look at the file, and how long it has to stay the same before it is read."""


class ConfigFile:
    """Follows the file that the options came from, in a thread of its own.

    wake: called, in that thread, when there is news; it must return at once.
    """

    def __init__(self, options: Options, wake: Callable[[], None], containment: Containment) -> None:
        """Raises ValueError when the options came from no file, or have no way to read it again."""
        if options.config_file is None or options.reread is None:
            raise ValueError("these options did not come from a file")
        self._path, self._reread, self._wake = options.config_file, options.reread, wake
        # Compared with each new content. The file may be another one already since it was first read.
        self._config = options.config
        self._problems: tuple[str, ...] = ()
        self._news: Options | InvalidConfig | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watcher: FileWatcher | None = None
        self._stage = containment.stage("config-file", "the configuration in force stays; the file is read again")
        self._thread = threading.Thread(target=self._run, name="config", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if (watcher := self._watcher) is not None:
            watcher.stop()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pending(self) -> bool:
        """Whether `take` would return news."""
        return self._news is not None

    def take(self) -> Options | InvalidConfig | None:
        """The latest news, once: what the file asks for now, or all that is wrong with it."""
        with self._lock:
            news, self._news = self._news, None
            return news

    def _run(self) -> None:
        self._stage.supervise(self._follow, self._stopping)

    def _follow(self) -> None:
        with FileWatcher([self._path], poll_seconds=POLL_SECONDS, settle_seconds=POLL_SECONDS) as watcher:
            self._watcher = watcher
            if self._stopping.is_set():  # it may have been set just before there was a watcher to stop
                return
            for _ in watcher.changes():
                self.reread()
                self._stage.succeeded()

    def reread(self) -> None:
        """Read the file, and note what it says if that is news."""
        try:
            options = self._reread()
        except InvalidConfig as error:
            if error.problems != self._problems:
                self._problems = error.problems
                self._tell(error)
            return
        self._problems = ()
        # Compared as values: a comment is no news, and neither is a wrong file that became again what is in force.
        if options.config != self._config:
            self._config = options.config
            self._tell(options)

    def _tell(self, news: Options | InvalidConfig) -> None:
        with self._lock:
            self._news = news
        self._wake()


MADE_WITH = {
    ProxyMode.IPVS: (
        "ipvs.scheduler",
        "ipvs.exclude_cidrs",
        "ipvs.strict_arp",
        "ipvs.tcp_timeout",
        "ipvs.tcp_fin_timeout",
        "ipvs.udp_timeout",
    ),
    ProxyMode.USERSPACE: (
        "port_range",
        "userspace.udp_idle_timeout",
        "userspace.drain_timeout",
    ),
}
"""What a mode's driver reads only when it is made."""


def needs_new_driver(old: KubeProxyConfiguration, new: KubeProxyConfiguration) -> bool:
    """Whether the change needs a new driver, because of another mode or of settings that a driver reads only once."""
    return old.mode is not new.mode or any(_differs(path, old, new) for path in MADE_WITH.get(old.mode, ()))


def needs_new_client(old: KubeProxyConfiguration, new: KubeProxyConfiguration) -> bool:
    """Whether the change needs a new client of the API server."""
    paths = (*(f"client_connection.{name}" for name in ("kubeconfig", "qps", "burst")), "streamed_lists")
    return any(_differs(path, old, new) for path in paths)


def unchangeable(old: Options, new: Options) -> list[str]:
    """A line for each changed option that takes effect only at the next start."""
    if old.node_name == new.node_name:
        return []
    return [f'hostnameOverride: the node stays "{old.node_name}" until a restart, is now "{new.node_name}"']


def changed_fields(old: object, new: object, path: str = "") -> list[str]:
    """The paths of all fields that differ, by the names of the file; OLD and NEW are values as `encode` makes them."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [path] if old != new else []
    return [
        found
        for name in sorted(old.keys() | new.keys())
        for found in changed_fields(old.get(name), new.get(name), f"{path}.{name}" if path else str(name))
    ]


def _differs(path: str, old: KubeProxyConfiguration, new: KubeProxyConfiguration) -> bool:
    value = attrgetter(path)
    return bool(value(old) != value(new))
