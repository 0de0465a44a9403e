"""Manifest files on disk: which ones there are, whether they changed, and waiting until they do."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from inotify_simple import INotify, flags

_log = logging.getLogger(__name__)

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
"""Names of the files that are read in a folder; hidden ones are not."""
POLL_SECONDS = 10.0
"""How often to look when the kernel tells what happens: file systems over a network do not always tell."""
POLL_SECONDS_ALONE = 1.0
"""How often to look when it does not."""

Signature = tuple[int, int, int, int]
"""Inode, size, and times (ns) of the last write and the last change of the inode: differs after every change."""

Listing = dict[Path, Signature | str]
"""Files in the order in which they count; for a file or folder that cannot be had, why."""

_INTERESTING = (
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.CREATE  # a symbolic link is created, not written
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
)


def list_files(paths: Sequence[Path]) -> Listing:
    """The manifests that PATHS name, files or folders (whose subfolders are not looked into)."""
    found: Listing = {}
    for path in paths:
        try:
            if path.is_dir():
                found.update(_folder(path))
            else:
                found[path] = _signature(path)
        except OSError as error:
            found[path] = reason(error)
    return found


def reason(error: OSError) -> str:
    """Why a file cannot be read."""
    return f"cannot be read: {error.strerror or error}"


def _folder(folder: Path) -> Listing:
    found: Listing = {}
    for path in [folder / name for name in sorted(os.listdir(folder)) if _is_manifest(name)]:
        # One that vanished since the folder was listed is no news, only gone.
        with contextlib.suppress(FileNotFoundError):
            if not path.is_dir():
                found[path] = _signature(path)
    return found


def _is_manifest(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _signature(path: Path) -> Signature:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class Waiter:
    """Waits for changes below some paths, by inotify(7), or by the clock where that cannot be had. A context."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopped = False
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify()
        except OSError as error:
            _log.info("manifests are looked at every %g s: inotify: %s", POLL_SECONDS_ALONE, error)
        # poll(2), since select(2) cannot take the high descriptors of a process with many sockets.
        self._stopping, self._poll = select.poll(), select.poll()
        for poll in (self._stopping, self._poll):
            poll.register(self._wake_read, select.POLLIN)
        if self._inotify:
            self._poll.register(self._inotify.fileno(), select.POLLIN)
        self._watch()

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)
        if self._inotify:
            self._inotify.close()

    def stop(self) -> None:
        """Let `wait` and `pause` come back, now and from now on. From any thread, while the context lasts."""
        self._stopped = True
        os.write(self._wake_write, b"x")

    def wait(self) -> bool:
        """Until something may have changed, or it is time to look anyway; False after `stop`."""
        if self._stopped:
            return False
        self._poll.poll(1000 * (POLL_SECONDS if self._inotify else POLL_SECONDS_ALONE))
        if self._inotify:
            self._inotify.read(timeout=0)
            self._watch()
        return not self._stopped

    def pause(self, seconds: float) -> bool:
        """Sleep; False after `stop`."""
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            self._stopping.poll(1000 * left)
        return not self._stopped

    def _watch(self) -> None:
        """Watch each folder, and that of each file. Again and again: one that was replaced is another one now."""
        if self._inotify is None:
            return
        for folder in {path if path.is_dir() else path.parent for path in self._paths}:
            try:
                self._inotify.add_watch(folder, _INTERESTING)
            except OSError as error:
                _log.debug("%s is not watched: %s", folder, error)
