"""Reads files whose paths users give: configuration, manifests, credentials. Only regular files, and of bounded size.

A named pipe or a device blocks whoever opens or reads it, for ever if need be, and /dev/zero has no end. So a file is
opened without waiting and judged by what was really opened, after all links; only a regular one is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from os import PathLike

LARGEST = 64 * 1024 * 1024
"""Bytes. etcd takes objects of 1.5 MB; 10,000 Services with their EndpointSlices are 40 MB of YAML."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: str | PathLike[str], largest: int = LARGEST) -> bytes:
    """The content of the regular file `path`, links followed.

    Raises OSError, whose strerror says why, as open(2) does; also when `path` is not a regular file, or holds more than
    `largest` bytes.
    """
    with _opened(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"is larger than {largest} bytes", os.fspath(path))
    return content


def check_file(path: str | PathLike[str]) -> None:
    """Raise OSError, as `read_file` does, when `path` is not a regular file or may not be read."""
    with _opened(path):
        pass


def is_irregular(path: str | PathLike[str]) -> bool:
    """Whether `path` exists and is not a regular file; to be asked before a library reads it."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[int]:
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, "has a null byte in its name", os.fspath(path))
    # Opening a device may do something to it, and a socket cannot be opened at all: ask before. The answer counts only
    # after opening, as the file may have been exchanged in between.
    _refuse_irregular(path, os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _refuse_irregular(path, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_irregular(path: str | PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"is {kind}, not a regular file", os.fspath(path))
