"""A folder of manifests as a source: kproxy without an API server, for edge nodes, demos and tests.

Decides what counts when files are half written (what they held before), say the same object twice (the last file name),
or vanish (their objects are gone; but a missing folder is a mistake that changes nothing).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from kproxy.errors import InvalidObject, SourceError
from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, Sink
from kproxy.model.objects import Kind, Object
from kproxy.sources.documents import Content, Place, parse
from kproxy.sources.folders import Listing, Signature, Waiter, list_files, reason

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.05
"""Files that still changed within this time are left alone for a moment: someone is writing."""
_SETTLE_ROUNDS = 20


def read_manifests(paths: Sequence[str]) -> tuple[dict[Kind, list[Object]], list[InvalidObject]]:
    """All objects in PATHS (files, folders, "-" for standard input), by kind, and everything that is wrong in them."""
    contents: dict[str, Content] = {}
    problems: list[InvalidObject] = []
    for path in paths:
        if path == "-":
            _read(contents, problems, "standard input", sys.stdin.buffer.read())
            continue
        for file, state in list_files([Path(path)]).items():
            try:
                if isinstance(state, str):
                    raise _unusable(file, state)
                _read(contents, problems, str(file), file.read_bytes())
            except OSError as error:
                problems.append(_unusable(file, reason(error)))
            except InvalidObject as error:
                problems.append(error)
    objects: dict[Kind, list[Object]] = {kind: [] for kind in Kind}
    merged, twice = _merge(contents)
    for message in twice:
        _log.warning("%s", message)
    for (kind, _), item in merged.items():
        objects[kind].append(item)
    return objects, problems


def _read(contents: dict[str, Content], problems: list[InvalidObject], name: str, text: bytes) -> None:
    contents[name] = parse(name, text)
    problems.extend(contents[name].problems)


def _unusable(path: Path, why: str) -> InvalidObject:
    return InvalidObject("manifest", str(path), "", why)


def _merge(contents: Mapping[str, Content]) -> tuple[dict[Place, Object], list[str]]:
    """All objects, the last file winning, and a line for each that several files have."""
    merged: dict[Place, Object] = {}
    origin: dict[Place, str] = {}
    twice: list[str] = []
    for name, content in contents.items():
        for place, item in content.objects.items():
            if place in merged:
                twice.append(f"{place[0]} {place[1]} is in {origin[place]} and in {name}; the latter is used")
            merged[place], origin[place] = item, name
    return merged, twice


@dataclass(slots=True)
class _File:
    """The last good content of a file, and what was wrong with it when it was last looked at."""

    state: Signature | str | None = None
    content: Content = field(default_factory=Content)
    problems: frozenset[str] = frozenset()


class ManifestSource:
    """Follows manifests in a thread of its own: first a Listed of each kind, then what changes.

    paths: files or folders, of which *.yaml, *.yml and *.json are read.
    """

    def __init__(self, paths: Sequence[str | PathLike[str]] | str | PathLike[str]) -> None:
        given = [paths] if isinstance(paths, (str, PathLike)) else paths
        self._paths = [Path(path) for path in given]
        self._files: dict[Path, _File] = {}
        self._objects: dict[Place, Object] = {}
        self._twice: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._waiter: Waiter | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self, sink: Sink) -> None:
        """Begin; returns at once. Raises SourceError when a path does not exist or cannot be read."""
        for path, state in list_files(self._paths).items():
            if isinstance(state, str) and path in self._paths:
                raise SourceError(f"{path} {state}")
        self._thread = threading.Thread(target=self._run, args=(sink,), name="manifests", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; nothing is put into the sink from now on. Returns at once."""
        with self._lock:
            self._stopping = True
            if self._waiter:
                self._waiter.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its thread, at most TIMEOUT seconds; whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, sink: Sink) -> None:
        # The waiter comes first, so that no change between the first look and the first wait is missed.
        with Waiter(self._paths) as waiter:
            with self._lock:
                self._waiter = waiter
            first = True
            while not self._stopping and (first or waiter.wait()):
                try:
                    self._look(waiter, sink, first)
                except Exception:  # a dead thread would leave the node with what it knew, forever
                    _log.exception("Unexpected error, which is a bug, while reading the manifests; trying again in 1 s")
                    waiter.pause(1.0)
                    continue
                first = False
            with self._lock:
                self._waiter = None

    def _look(self, waiter: Waiter, sink: Sink, first: bool) -> None:
        """Take in what changed and tell the sink."""
        listing = _settled(self._paths, waiter)
        if not first and listing == {path: file.state for path, file in self._files.items()}:
            return
        events = self._take(listing)
        before, self._objects = self._objects, self._merged()
        events += self._lists() if first else _difference(before, self._objects)
        for event in events:
            if not self._stopping:
                sink.put(event)

    def _take(self, listing: Listing) -> list[Event]:
        """Read what changed; what is newly wrong."""
        events: list[Event] = []
        missing = {path for path, state in listing.items() if isinstance(state, str)}
        for path in [path for path in self._files if path not in listing and not missing & {path.parent}]:
            del self._files[path]
        for path, state in listing.items():
            file = self._files.setdefault(path, _File())
            if file.state != state:
                events += _reread(path, file, state)
        # Objects of later names win, also when their files came later.
        self._files = {path: self._files[path] for path in sorted(self._files, key=self._order)}
        return events

    def _order(self, path: Path) -> tuple[int, str]:
        for number, given in enumerate(self._paths):
            if path == given or path.parent == given:
                return number, str(path)
        return len(self._paths), str(path)

    def _merged(self) -> dict[Place, Object]:
        merged, twice = _merge({str(path): file.content for path, file in self._files.items()})
        for message in sorted(set(twice) - self._twice):
            _log.warning("%s", message)
        self._twice = frozenset(twice)
        for place in self._unreadable():
            if place not in merged and place in self._objects:
                merged[place] = self._objects[place]
        return merged

    def _unreadable(self) -> set[Place]:
        return {place for file in self._files.values() for place in file.content.unreadable}

    def _lists(self) -> list[Event]:
        unreadable = self._unreadable()
        return [
            Listed(
                kind,
                tuple(item for (its_kind, _), item in self._objects.items() if its_kind is kind),
                frozenset(name for its_kind, name in unreadable if its_kind is kind),
            )
            for kind in Kind
        ]


def _settled(paths: Sequence[Path], waiter: Waiter) -> Listing:
    """The files, once nobody writes to them, or after a second."""
    listing = list_files(paths)
    for _ in range(_SETTLE_ROUNDS):
        if not waiter.pause(_SETTLE_SECONDS) or (again := list_files(paths)) == listing:
            break
        listing = again
    return listing


def _reread(path: Path, file: _File, state: Signature | str) -> list[Event]:
    """Bring FILE up to date; what is newly wrong with it."""
    file.state = state
    try:
        if isinstance(state, str):
            raise _unusable(path, state)
        file.content = parse(str(path), path.read_bytes())
        problems = file.content.problems
    except OSError as error:
        problems = [_unusable(path, reason(error))]
    except InvalidObject as error:
        problems = [error]
    before, file.problems = file.problems, frozenset(map(str, problems))
    return [Invalid(problem) for problem in problems if str(problem) not in before]


def _difference(before: Mapping[Place, Object], after: Mapping[Place, Object]) -> list[Event]:
    events: list[Event] = []
    for (kind, name), item in after.items():
        known = before.get((kind, name))
        if known is not item and known != item:
            events.append(Changed(kind, item))
    for kind, name in before.keys() - after.keys():
        namespace, _, short = name.rpartition("/")
        events.append(Deleted(kind, namespace, short))
    return events
