"""A folder of manifests as a source: kproxy without an API server, for edge nodes, demos and tests.

Decides what counts when files are half written (their last good content), hold the same object twice (the last file
name), or vanish (their objects are gone; but a missing folder is a mistake that changes nothing).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from kproxy import logs
from kproxy.containment import Containment
from kproxy.errors import InvalidObject, SourceError
from kproxy.files import LARGEST, read_file
from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, Resolved, Sink
from kproxy.model.objects import Kind, Object
from kproxy.sources.documents import Content, ObjectId, parse
from kproxy.sources.file_watcher import Files, FileWatcher, Signature, list_files, reason
from kproxy.sources.source_thread import STAGE, SourceThread

_log = logs.get("source")


def read_manifests(paths: Sequence[str]) -> tuple[dict[Kind, list[Object]], list[InvalidObject]]:
    """All objects in PATHS (files, folders, "-" for standard input), by kind, and everything that is wrong in them."""
    contents: dict[str, Content] = {}
    problems: list[InvalidObject] = []
    for path in paths:
        files: Files | None = None if path == "-" else list_files([Path(path)])
        for name in ["standard input"] if files is None else map(str, files):
            try:
                text = _standard_input() if files is None else _read(Path(name), files[Path(name)])
                contents[name] = parse(name, text)
                problems += contents[name].problems
            except InvalidObject as error:
                problems.append(error)
    objects: dict[Kind, list[Object]] = {kind: [] for kind in Kind}
    merged, twice = _merge(contents)
    _warn_of(twice)
    for (kind, _), item in merged.items():
        objects[kind].append(item)
    return objects, problems


def _read(path: Path, state: Signature | str) -> bytes:
    """The content of a file that was listed with STATE. Raises InvalidObject."""
    if isinstance(state, str):
        raise InvalidObject("manifest", str(path), "", state)
    try:
        return read_file(path)
    except OSError as error:
        raise InvalidObject("manifest", str(path), "", reason(error)) from error


def _standard_input() -> bytes:
    text = sys.stdin.buffer.read(LARGEST + 1)
    if len(text) > LARGEST:
        error = OSError(errno.EFBIG, f"is larger than {LARGEST} bytes")
        raise InvalidObject("manifest", "standard input", "", reason(error))
    return text


@dataclass(frozen=True, slots=True)
class _Duplicate:
    """An object that two files have; the second one is used."""

    object: ObjectId
    files: tuple[str, str]


def _merge(contents: Mapping[str, Content]) -> tuple[dict[ObjectId, Object], list[_Duplicate]]:
    """All objects, the last file winning, and those that several files have."""
    merged: dict[ObjectId, Object] = {}
    origin: dict[ObjectId, str] = {}
    twice: list[_Duplicate] = []
    for name, content in contents.items():
        for at, item in content.objects.items():
            if at in merged:
                twice.append(_Duplicate(at, (origin[at], name)))
            merged[at], origin[at] = item, name
    return merged, twice


def _warn_of(duplicates: Sequence[_Duplicate]) -> None:
    for found in duplicates:
        (kind, name), (first, second) = found.object, found.files
        _log.warning("Object is in two manifests; the second is used", kind=kind, object=name, first=first, used=second)


@dataclass(slots=True)
class _File:
    """The last good content of a file, and what was wrong with it when it was last read."""

    state: Signature | str | None = None
    content: Content = field(default_factory=Content)
    problems: tuple[InvalidObject, ...] = ()


class ManifestSource:
    """Follows manifests in a thread of its own, and puts into a sink: first a Listed of each kind, then what changes.

    After an unexpected exception it begins again with the lists.
    """

    def __init__(self, paths: Sequence[str | PathLike[str]] | str | PathLike[str], containment: Containment) -> None:
        """paths: files or folders, of which *.yaml, *.yml and *.json are read."""
        given = [paths] if isinstance(paths, (str, PathLike)) else paths
        self._paths = [Path(path) for path in given]
        self._stage = containment.stage(STAGE, "the objects of the manifests stay as they are known until the next try")
        self._parsing = containment.stage(STAGE, "a manifest counts as unreadable until it changes")
        self._files: dict[Path, _File] = {}
        self._objects: dict[ObjectId, Object] = {}
        self._twice: list[_Duplicate] = []
        self._watcher: FileWatcher | None = None
        self._thread: SourceThread | None = None

    def start(self, sink: Sink) -> None:
        """Start the thread; returns at once. Raises SourceError when a path does not exist or cannot be read."""
        for path, state in list_files(self._paths).items():
            if isinstance(state, str) and path in self._paths:
                raise SourceError(f"{path} {state}")
        self._thread = SourceThread("manifests", self._follow, sink, self._stage, self._interrupt)
        self._thread.start()

    def stop(self) -> None:
        """End it, without waiting for the thread. Nothing is put into the sink after this has returned."""
        if self._thread is not None:
            self._thread.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread, at most TIMEOUT seconds; returns whether it has ended."""
        return self._thread is None or self._thread.join(timeout)

    def _interrupt(self) -> None:
        if (watcher := self._watcher) is not None:
            watcher.stop()

    def _follow(self) -> None:
        thread = self._thread
        assert thread is not None
        first = True
        with FileWatcher(self._paths) as watcher:
            self._watcher = watcher
            if thread.stopping:  # it may have been stopped just before the watcher was there to interrupt
                return
            for files in watcher.changes():
                events = self._take(files)
                before, self._objects = self._objects, self._merged()
                for event in [*events, *(self._lists() if first else _difference(before, self._objects))]:
                    thread.put(event)
                first = False
                self._stage.succeeded()

    def _take(self, files: Files) -> list[Event]:
        """Read the files that changed; returns what is newly wrong, and what no longer is."""
        events: list[Event] = []
        before = self._wrong()
        missing = {path for path, state in files.items() if isinstance(state, str)}
        for path in [path for path in self._files if path not in files and not missing & {path.parent}]:
            del self._files[path]
        for path, state in files.items():
            file = self._files.setdefault(path, _File())
            if file.state != state:
                events += self._reread(path, file, state)
        events += [Resolved(kind, name) for kind, name in sorted(before - self._wrong())]
        # Objects of later names win, also when their files came later.
        self._files = {path: self._files[path] for path in sorted(self._files, key=self._order)}
        return events

    def _reread(self, path: Path, file: _File, state: Signature | str) -> list[Event]:
        """Bring FILE up to date; returns what is newly wrong with it."""
        file.state = state
        try:
            content = self._parsing.attempt(lambda: parse(str(path), _read(path, state)), None)
            if content is None:
                raise InvalidObject("manifest", str(path), "", "cannot be read: a bug; the log has a traceback")
            file.content, problems = content, content.problems
        except InvalidObject as error:
            problems = [error]
        before, file.problems = {str(problem) for problem in file.problems}, tuple(problems)
        return [Invalid(problem) for problem in problems if str(problem) not in before]

    def _wrong(self) -> set[tuple[str, str]]:
        """The objects and files, by kind and name, that something is wrong with."""
        return {(problem.kind, problem.name) for file in self._files.values() for problem in file.problems}

    def _order(self, path: Path) -> tuple[int, str]:
        for number, given in enumerate(self._paths):
            if path == given or path.parent == given:
                return number, str(path)
        return len(self._paths), str(path)

    def _merged(self) -> dict[ObjectId, Object]:
        merged, twice = _merge({str(path): file.content for path, file in self._files.items()})
        _warn_of([found for found in twice if found not in self._twice])
        self._twice = twice
        for at in self._unreadable():
            if at not in merged and at in self._objects:
                merged[at] = self._objects[at]
        return merged

    def _unreadable(self) -> set[ObjectId]:
        return {at for file in self._files.values() for at in file.content.unreadable}

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


def _difference(before: Mapping[ObjectId, Object], after: Mapping[ObjectId, Object]) -> list[Event]:
    events: list[Event] = []
    for (kind, name), item in after.items():
        known = before.get((kind, name))
        if known is not item and known != item:
            events.append(Changed(kind, item))
    for kind, name in before.keys() - after.keys():
        namespace, _, short = name.rpartition("/")
        events.append(Deleted(kind, namespace, short))
    return events
