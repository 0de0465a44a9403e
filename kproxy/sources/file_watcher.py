"""Follows files and folders on disk: which files there are, whether they changed, and waiting until they do.

Decides what counts as a change (another inode, size or time, links followed, so that the exchange of a ConfigMap
volume's `..data` link is one), and when a file that is being written is left alone. What is in the files is the
caller's business.

    watcher = FileWatcher([Path("/etc/kube-proxy/config.conf")], poll_seconds=0.5)
    with watcher:                          # in a thread; `watcher.stop()` in any other one ends the loop
        for files in watcher.changes():    # at once what there is, then after every change
            ...
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from inotify_simple import INotify, flags

from kproxy import logs

_log = logs.get("source")

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
"""Names of the files that count in a folder; hidden ones do not."""
POLL_SECONDS = 10.0
"""How often to look although inotify reports nothing: network file systems do not always report."""
POLL_SECONDS_ALONE = 1.0
"""How often to look, at least, where inotify is not available."""
SETTLE_SECONDS = 0.05
"""A file that changed within this time is left alone: somebody is writing."""
SETTLE_ROUNDS = 20
"""After so many rounds of it the files count as they are."""

Signature = tuple[int, int, int, int]
"""Inode, size, and times (ns) of the last write and the last change of the inode: differs after every change."""

Files = dict[Path, Signature | str]
"""Files in the order in which they count. For a file or folder whose state is unknown, the reason as text."""

_CHANGES = (
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.CREATE  # a symbolic link is created, not written
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
)


def list_files(paths: Sequence[Path]) -> Files:
    """The files that `paths` name: a file is itself, a folder the *.yaml, *.yml and *.json in it, subfolders left
    out."""
    found: Files = {}
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


def _folder(folder: Path) -> Files:
    found: Files = {}
    for path in [folder / name for name in sorted(os.listdir(folder)) if _is_listed(name)]:
        # A file that vanished since the folder was listed is not an error, only gone.
        with contextlib.suppress(FileNotFoundError):
            if not path.is_dir():
                found[path] = _signature(path)
    return found


def _is_listed(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _signature(path: Path) -> Signature:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class FileWatcher:
    """Waits for changes of some files and folders, by inotify(7), or by looking again and again where that fails.

    `changes` is for one thread at a time, `stop` for any. As a context it closes its descriptors at the end.
    """

    def __init__(
        self, paths: Sequence[Path], *, poll_seconds: float = POLL_SECONDS, settle_seconds: float = SETTLE_SECONDS
    ) -> None:
        """poll_seconds: how often to look although inotify reports nothing. settle_seconds: how long the files have to
        stay the same before they are reported."""
        self._paths, self._settle_seconds = tuple(paths), settle_seconds
        self._lock = threading.Lock()
        self._stopped = self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify()
        except OSError as error:
            _log.info("inotify is not available; polling the files instead", err=error, every=POLL_SECONDS_ALONE)
        self._poll_seconds = poll_seconds if self._inotify else min(poll_seconds, POLL_SECONDS_ALONE)
        # poll(2), since select(2) cannot take the high descriptors of a process with many sockets.
        self._pausing, self._waiting = select.poll(), select.poll()
        for poll in (self._pausing, self._waiting):
            poll.register(self._wake, select.POLLIN)
        if self._inotify:
            self._waiting.register(self._inotify.fileno(), select.POLLIN)

    def __enter__(self) -> FileWatcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._stopped = self._closed = True
            os.close(self._wake)
            if self._inotify:
                self._inotify.close()

    def stop(self) -> None:
        """End `changes`, now and from now on. From any thread, at any time."""
        with self._lock:
            self._stopped = True
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def changes(self) -> Iterator[Files]:
        """The files as they are, at once, and again after every change, each time settled; ends after `stop`.

        May be called again after an exception in its loop: then it begins anew with the files as they are.
        """
        known: Files | None = None
        while not self._stopped:
            self._watch()  # before looking, so that no change between a look and the wait is missed
            files = self._settled()
            if not self._stopped and files != known:
                known = files
                yield files
                continue
            self._wait()

    def _settled(self) -> Files:
        """The files, once nobody writes to them, or after SETTLE_ROUNDS."""
        files = list_files(self._paths)
        for _ in range(SETTLE_ROUNDS):
            if not self._pause(self._settle_seconds) or (again := list_files(self._paths)) == files:
                break
            files = again
        return files

    def _pause(self, seconds: float) -> bool:
        """Sleep; False after `stop`."""
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            self._pausing.poll(1000 * left)
        return not self._stopped

    def _wait(self) -> None:
        """Until something may have changed, it is time to look anyway, or `stop`."""
        if not self._stopped:
            self._waiting.poll(1000 * self._poll_seconds)
            if self._inotify:
                self._inotify.read(timeout=0)

    def _watch(self) -> None:
        """Watch each folder, and the folders of each file and of what it is a link to.

        Before every wait, as a folder that was replaced is another one.
        """
        if self._inotify is None:
            return
        folders = {path if path.is_dir() else path.parent for path in self._paths}
        folders |= {Path(os.path.realpath(path)).parent for path in self._paths if path.is_symlink()}
        for folder in folders:
            try:
                self._inotify.add_watch(folder, _CHANGES)
            except OSError as error:
                _log.v(4).info("The folder cannot be watched by inotify", folder=folder, err=error)
