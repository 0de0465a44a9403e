"""Notices that the configuration changed: looks at the file again and again, and reads it when it is another one.

A look is one stat(2), so no inotify is needed, of which a node may run out; and it sees a ConfigMap's volume, where the
file stays a link to `..data/NAME` and only that link is exchanged. A file that is being written is left alone until two
looks in a row find it the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from kproxy.config.options import Options
from kproxy.errors import InvalidConfig

__all__ = ["POLL_SECONDS", "ConfigFile"]

POLL_SECONDS = 0.5

Signature = tuple[int, int, int, int] | None


class ConfigFile:
    """Follows the file that OPTIONS came from, in a thread of its own.

    wake: called, in that thread, when there is news; it must return at once.
    """

    def __init__(self, options: Options, wake: Callable[[], None]) -> None:
        """Raises ValueError when the options came from no file, or nobody said how to read it again."""
        if options.config_file is None or options.reread is None:
            raise ValueError("these options came from no file")
        self._path, self._reread, self._wake = options.config_file, options.reread, wake
        # Compared with each new content. The file may be another one already since it was first read.
        self._config = options.config
        self._problems: tuple[str, ...] = ()
        self._seen: Signature = None
        self._read: Signature = None
        self._news: Options | InvalidConfig | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="config", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pending(self) -> bool:
        """Whether there is news that nobody took."""
        return self._news is not None

    def take(self) -> Options | InvalidConfig | None:
        """The latest news, once: what the file asks for now, or all that is wrong with it."""
        with self._lock:
            news, self._news = self._news, None
            return news

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        """One look; reads the file when it is another one than was read, and the same as at the look before."""
        found = _signature(self._path)
        settled, self._seen = found == self._seen, found
        if settled and found != self._read:
            self._read = found
            self._consider()

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
    """What differs after every change of the file, links followed; None while there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
