"""Follows one kind of object: a list, then a watch that is resumed wherever it broke off.

Decides when to list again (at the start, when the server forgot the version or keeps sending what cannot be read), how
long to wait after a failure, and which failures are logged: the first of a row, and its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kproxy import logs
from kproxy.containment import Stage
from kproxy.errors import ApiError, InvalidObject, SourceError
from kproxy.model.events import Changed, Deleted, Invalid, Listed, ListPage, Sink, full_name
from kproxy.model.objects import Object
from kproxy.rate_limit import Backoff
from kproxy.sources.client import ApiClient, Stream
from kproxy.sources.decode import Bookmark, Broken, Decoder, Failure, Gone, Update, WatchLine, split_lines
from kproxy.sources.listing import ANY_VERSION, Lister, Resource
from kproxy.sources.source_thread import SourceThread

_log = logs.get("source")

_EXPIRED, _TIMED_OUT = 410, 504
_VERSION_REFUSED = frozenset({400, 404, _EXPIRED, 422, _TIMED_OUT})
"""How a server refuses a watch from a version that it forgot, never had, or has only after a restore of etcd."""
HINTS = {
    401: "the ServiceAccount's token or the kubeconfig's credentials are not accepted",
    403: "the ClusterRole has to allow get, list and watch",
}
"""What to look at, by HTTP status."""
_LINE_LIMIT = 64 * 1024 * 1024  # bytes; etcd takes objects of 1.5 MB
_UNUSABLE_LIMIT = 3
"""So many unusable lines in a row lead to a new list."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in seconds.

    watch: bounds of the random length of a watch. slack: how much longer than that its silence may last.
    bookmarked: how long it may last where the server is known to send bookmarks, which come about once a minute.
    backoff, backoff_cap: the shortest and the longest wait after a failure. absent: the wait before asking again for a
    kind that the server does not have. settled: a watch that ends sooner, without an event, counts as a failure.
    """

    watch: tuple[float, float] = (300.0, 600.0)
    slack: float = 15.0
    bookmarked: float = 150.0
    backoff: float = 0.1
    backoff_cap: float = 30.0
    absent: float = 600.0
    settled: float = 1.0


class _ListAgain(Exception):
    """Why the watch cannot go on from the version that it reached."""


class Watcher:
    """Follows one resource in a thread of its own and puts events into a sink."""

    def __init__(
        self,
        client: ApiClient,
        resource: Resource,
        sink: Sink,
        stage: Stage,
        timing: Timing,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stage: contains unexpected exceptions; the watcher then begins again with a list."""
        self._client, self._resource, self._kind = client, resource, resource.kind
        self._stage, self._timing, self._random, self._clock = stage, timing, random, clock
        self._decoder = Decoder(resource.kind)
        self._lister = Lister(client, resource, self._decoder)
        self._backoff = Backoff(timing.backoff, timing.backoff_cap, random)
        self._stream: Stream | None = None
        self._listed = False
        self._version = ANY_VERSION
        self._changes = self._bookmarks = 0
        self._unusable = 0  # lines in a row
        self._failures = 0  # in a row
        self._warned: object = None
        self.thread = SourceThread(f"watch-{resource.kind}", self._follow, sink, stage, self._interrupt)
        """Runs it, from `start` to `stop`."""

    def _interrupt(self) -> None:
        if (stream := self._stream) is not None:
            stream.interrupt()

    # ---- one round after the other

    def _follow(self) -> None:
        self._listed = False
        while not self.thread.stopping:
            try:
                wait = self._round()
            except SourceError as error:
                wait = self._failed(error)
            if wait:
                self.thread.pause(wait)

    def _round(self) -> float:
        """List if necessary, then watch until that ends; returns the seconds to wait before the next round."""
        if not self._listed and not self._list():
            return self._timing.absent * self._random.uniform(0.8, 1.2)
        started = self._clock()
        before = self._changes, self._version
        try:
            self._watch()
        except _ListAgain as error:
            self._listed = False
            _log.info("The watch cannot be resumed; listing again", kind=self._kind, err=error)
            return self._backoff.next()
        finally:
            # Not after a list: a server whose lists work and whose watches do not is asked ever less often.
            if self._clock() - started >= self._timing.settled:
                self._backoff.reset()
        if before == (self._changes, self._version) and self._clock() - started < self._timing.settled:
            raise SourceError("the watch ended at once")
        self._succeeded()
        return 0.0

    # ---- list

    def _list(self) -> bool:
        """List and deliver all objects; returns whether the server has such a kind."""
        try:
            version = self._deliver_list()
        except ApiError as error:
            if error.status in (_EXPIRED, _TIMED_OUT):
                self._version = ""  # it may even lie in the future, after a restore of etcd: take the latest
            raise
        self._listed = version is not None
        self._version = version or ANY_VERSION
        self._unusable = 0
        self._succeeded()
        return self._listed

    def _deliver_list(self) -> str | None:
        """Deliver each page as it comes; returns the version of the list, None when the server has no such kind."""
        version: str | None = None
        rest: list[Object] = []
        unreadable: set[str] = set()
        delivered: set[str] = set()
        problems: list[InvalidObject] = []
        for page in self._lister.pages(self._version):
            if page.restarts:
                unreadable, delivered, problems = set(), set(), []
            unreadable |= page.unreadable
            problems += page.problems
            version = page.version or version or ""
            if page.more:
                self.thread.put(ListPage(self._kind, tuple(page.objects)))
                self._version = version  # should this list fail, the next one must not be older
                delivered.update(full_name(o.metadata.namespace, o.metadata.name) for o in page.objects)
            else:
                rest = page.objects
        self.thread.put(Listed(self._kind, tuple(rest), frozenset(unreadable), frozenset(delivered)))
        for problem in problems:
            self.thread.put(Invalid(problem))
        return version

    # ---- watch

    def _watch(self) -> None:
        """Follow changes until the server ends the watch or it breaks. Raises _ListAgain, SourceError."""
        seconds = self._random.uniform(*self._timing.watch)
        query = {
            **self._resource.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        silence = seconds + self._timing.slack
        if self._bookmarks > 1:
            silence = min(silence, self._timing.bookmarked)
        try:
            with self._client.stream(self._lister.path, query, silence) as stream:
                self._read(stream)
        except ApiError as error:
            if error.status in _VERSION_REFUSED:
                raise _ListAgain(str(error)) from error
            raise

    def _read(self, stream: Stream) -> None:
        self._stream = stream
        try:
            if self.thread.stopping:  # it may have been stopped just before the stream was there to interrupt
                return
            for line in split_lines(stream.pieces(), _LINE_LIMIT):
                self._take(line)
        finally:
            self._stream = None

    def _take(self, line: bytes) -> None:
        try:
            found = self._decoder.line(line)
            if isinstance(found, Failure):
                if found.code == _EXPIRED:
                    raise _ListAgain(found.message)
                raise SourceError(f"the server ends the watch: {found.code} {found.message}")
        except SourceError as error:
            self._unusable += 1
            if self._unusable >= _UNUSABLE_LIMIT:
                raise _ListAgain(str(error)) from error
            raise
        self._deliver(found)
        self._version = found.version or self._version
        self._unusable = 0
        self._backoff.reset()
        self._succeeded()

    def _deliver(self, line: WatchLine) -> None:
        match line:
            case Update(_, item):
                self.thread.put(Changed(self._kind, item))
            case Gone(_, namespace, name):
                self.thread.put(Deleted(self._kind, namespace, name))
            case Broken(_, error):
                self.thread.put(Invalid(error))
            case Bookmark():
                self._bookmarks += 1
                return
        self._changes += 1

    # ---- success and failure

    def _succeeded(self) -> None:
        self._stage.succeeded()
        if self._warned is not None:
            _log.info("The objects can be listed and watched again", kind=self._kind, failures=self._failures)
        self._failures, self._warned = 0, None

    def _failed(self, error: SourceError) -> float:
        """Count and log a failure; returns the seconds to wait after it."""
        if self.thread.stopping:
            return 0.0
        self._failures += 1
        status = error.status if isinstance(error, ApiError) else 0
        wait = self._backoff.next(error.retry_after if isinstance(error, ApiError) else 0.0)
        # Idle connections are cut everywhere; a watch that is resumed at once is not worth a warning.
        reason = status or str(error)
        news = reason != self._warned and (self._failures > 1 or not self._listed)
        fields = {"kind": self._kind, "err": error, "attempt": self._failures, "retry_in": round(wait, 2)}
        if status in HINTS:
            fields["hint"] = HINTS[status]
        message = "Cannot list or watch the objects; the last known ones stay in use until the next attempt"
        if news:
            self._warned = reason
            _log.warning(message, **fields)
        else:
            _log.v(4).info(message, **fields)
        return wait
