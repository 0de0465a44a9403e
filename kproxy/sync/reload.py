"""Notices that the configuration file changed, and says what a new configuration asks of a running daemon.

A look at the file is one stat(2), so no inotify is needed, of which a node may run out; and it sees a ConfigMap's
volume, where the file stays a link to `..data/NAME` and only that link is exchanged. A file that is being written is
left alone until two looks in a row find it the same.

Most fields are read whenever they are needed, so new values only have to replace the old ones; `MADE_WITH` has those
for which that is not enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig

POLL_SECONDS = 0.5

Signature = tuple[int, int, int, int] | None


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
        self._seen: Signature = None
        self._read: Signature = None
        self._news: Options | InvalidConfig | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._stage = containment.stage("config-file", "the configuration in force stays; the file is looked at again")
        self._thread = threading.Thread(target=self._run, name="config", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pending(self) -> bool:
        """Whether the file has changed since the last `take`."""
        return self._news is not None

    def take(self) -> Options | InvalidConfig | None:
        """The latest news, once: what the file asks for now, or all that is wrong with it."""
        with self._lock:
            news, self._news = self._news, None
            return news

    def _run(self) -> None:
        self._stage.supervise(self._follow, self._stopping)

    def _follow(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            self.look()
            self._stage.succeeded()

    def look(self) -> None:
        """Check the file once: it is read if it is new since the last reading and the same as at the last check."""
        found = _signature(self._path)
        settled, self._seen = found == self._seen, found
        if settled and found != self._read:
            self._consider()
            self._read = found

    def _consider(self) -> None:
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


def _signature(path: Path) -> Signature:
    """A value that every change of the file changes, links followed; None while there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


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
    paths = ("client_connection.kubeconfig", "client_connection.qps", "client_connection.burst")
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
