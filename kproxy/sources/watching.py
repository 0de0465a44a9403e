"""Follows one kind of object: a list, then a watch that is taken up again wherever it broke off.

Decides when to list anew (at the start, when the server forgot the version or keeps sending what cannot be read), how
long to wait after a failure, and which failures are worth a line in the log: the first of a row, and its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kproxy.errors import ApiError, InvalidObject, SourceError
from kproxy.model.events import Changed, Deleted, Event, Found, Invalid, Listed, Sink
from kproxy.model.objects import Kind, Object
from kproxy.rate_limit import Backoff
from kproxy.sources.client import ApiClient, Stream
from kproxy.sources.decode import Bookmark, Broken, Decoder, Failure, Gone, Update, WatchLine, key, split_lines
from kproxy.sources.listing import ANY_VERSION, Lister, Resource

_log = logging.getLogger(__name__)

_EXPIRED, _TIMED_OUT = 410, 504
_VERSION_REFUSED = frozenset({400, 404, _EXPIRED, 422, _TIMED_OUT})
"""What a server says to a watch from a version that it forgot, never had, or has only after a restore of etcd."""
HINTS = {
    401: "; the ServiceAccount's token or the kubeconfig's credentials are not accepted",
    403: "; the ClusterRole has to allow get, list and watch",
}
"""What to look at, by HTTP status."""
_LINE_LIMIT = 64 * 1024 * 1024  # bytes; etcd takes objects of 1.5 MB
_STUCK = 3
"""So many unusable lines in a row, without one good one, lead to a new list."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in seconds.

    watch: bounds of the random length of a watch. slack: how much longer than that silence may last.
    bookmarked: how long it may last where the server is known to send bookmarks, which come about once a minute.
    backoff, backoff_cap: the shortest and the longest wait after a failure. absent: the wait before asking again for a
    kind that the server does not have. settled: a watch that ends sooner, without a word, counts as a failure.
    """

    watch: tuple[float, float] = (300.0, 600.0)
    slack: float = 15.0
    bookmarked: float = 150.0
    backoff: float = 0.1
    backoff_cap: float = 30.0
    absent: float = 600.0
    settled: float = 1.0


@dataclass(slots=True)
class Progress:
    """Counters of one kind, written by its watcher, read by anyone. error: why it fails now; "" when it does not."""

    lists: int = 0
    watches: int = 0
    changes: int = 0
    invalid: int = 0
    failures: int = 0
    error: str = ""


class _ListAnew(Exception):
    """Why the watch cannot go on from the version that we have."""


class Watcher:
    """Follows one resource in a thread of its own and tells the sink."""

    def __init__(
        self,
        client: ApiClient,
        resource: Resource,
        sink: Sink,
        timing: Timing,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind: Kind = resource.kind
        self.progress = Progress()
        self._client, self._resource, self._sink = client, resource, sink
        self._timing, self._random, self._clock = timing, random, clock
        self._decoder = Decoder(resource.kind)
        self._lister = Lister(client, resource, self._decoder)
        self._backoff = Backoff(timing.backoff, timing.backoff_cap, random)
        self._stopping = threading.Event()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource.kind}", daemon=True)
        self._listed = False
        self._version = ANY_VERSION
        self._bookmarks = 0
        self._stuck = 0
        self._row = 0  # failures since it last worked
        self._warned: object = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Tell it to end; nothing is put into the sink from now on."""
        self._stopping.set()
        if (stream := self._stream) is not None:
            stream.interrupt()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until its thread has ended; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- one round after the other

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                wait = self._round()
            except SourceError as error:
                wait = self._failed(error)
            except Exception as error:  # a thread that dies would leave the node with what it knew, forever
                _log.exception("following %s objects failed", self.kind, extra={"kind": str(self.kind)})
                self._listed = False
                wait = self._failed(SourceError(f"unexpected {type(error).__name__}: {error}"))
            if wait:
                self._stopping.wait(wait)

    def _round(self) -> float:
        """List if need be, then watch until that ends; the seconds to wait before the next round."""
        if not self._listed and not self._list():
            return self._timing.absent * self._random.uniform(0.8, 1.2)
        started = self._clock()
        before = self.progress.changes, self._version
        try:
            self._watch()
        except _ListAnew as error:
            self._listed = False
            _log.info("%s objects: listing anew: %s", self.kind, error, extra={"kind": str(self.kind)})
            return self._backoff.next()
        finally:
            # Not after a list: a server whose lists work and whose watches do not is to be asked ever less often.
            if self._clock() - started >= self._timing.settled:
                self._backoff.reset()
        if before == (self.progress.changes, self._version) and self._clock() - started < self._timing.settled:
            raise SourceError("the watch ended at once")
        self._worked()
        return 0.0

    # ---- list

    def _list(self) -> bool:
        """Tell the sink everything there is; whether the server has such a kind."""
        try:
            version = self._tell_list()
        except ApiError as error:
            if error.status in (_EXPIRED, _TIMED_OUT):
                self._version = ""  # it may even lie in the future, after a restore of etcd: take the latest
            raise
        self.progress.lists += 1
        self._listed = version is not None
        self._version = version or ANY_VERSION
        self._stuck = 0
        self._worked()
        return self._listed

    def _tell_list(self) -> str | None:
        """Tell the sink of each page as it comes; the version of the list, None when the server has no such kind."""
        version: str | None = None
        rest: list[Object] = []
        unreadable: set[str] = set()
        found: set[str] = set()
        problems: list[InvalidObject] = []
        for page in self._lister.pages(self._version):
            if page.anew:
                unreadable, found, problems = set(), set(), []
            unreadable |= page.unreadable
            problems += page.problems
            version = page.version or version or ""
            if page.more:
                self._put(Found(self.kind, tuple(page.objects)))
                self._version = version  # should this list fail, the next one must not lead back behind it
                found.update(key(o.metadata.namespace, o.metadata.name) for o in page.objects)
            else:
                rest = page.objects
        self._put(Listed(self.kind, tuple(rest), frozenset(unreadable), frozenset(found)))
        for problem in problems:
            self.progress.invalid += 1
            self._put(Invalid(problem))
        return version

    # ---- watch

    def _watch(self) -> None:
        """Follow changes until the server ends it or it breaks. Raises _ListAnew, SourceError."""
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
                self.progress.watches += 1
                self._follow(stream)
        except ApiError as error:
            if error.status in _VERSION_REFUSED:
                raise _ListAnew(str(error)) from error
            raise

    def _follow(self, stream: Stream) -> None:
        self._stream = stream
        try:
            if self._stopping.is_set():  # stop() may have looked for the stream just before it was there
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
                    raise _ListAnew(found.message)
                raise SourceError(f"the server ends the watch: {found.code} {found.message}")
        except SourceError as error:
            self._stuck += 1
            if self._stuck >= _STUCK:
                raise _ListAnew(str(error)) from error
            raise
        self._tell(found)
        self._version = found.version or self._version
        self._stuck = 0
        self._backoff.reset()
        self._worked()

    def _tell(self, line: WatchLine) -> None:
        match line:
            case Update(_, item):
                self._put(Changed(self.kind, item))
            case Gone(_, namespace, name):
                self._put(Deleted(self.kind, namespace, name))
            case Broken(_, error):
                self.progress.invalid += 1
                self._put(Invalid(error))
            case Bookmark():
                self._bookmarks += 1
                return
        self.progress.changes += 1

    def _put(self, event: Event) -> None:
        if not self._stopping.is_set():
            self._sink.put(event)

    # ---- how it goes

    def _worked(self) -> None:
        if self._warned is not None:
            _log.info("%s objects: works again", self.kind, extra={"kind": str(self.kind), "failures": self._row})
        self._row, self._warned, self.progress.error = 0, None, ""

    def _failed(self, error: SourceError) -> float:
        """Count and log a failure; the seconds to wait after it."""
        if self._stopping.is_set():
            return 0.0
        self._row += 1
        self.progress.failures += 1
        self.progress.error = str(error)
        wait = self._backoff.next(error.retry_after if isinstance(error, ApiError) else 0.0)
        # Idle connections are cut everywhere; a watch that can be taken up at once is no news.
        sort = error.status if isinstance(error, ApiError) else str(error)
        news = sort != self._warned and (self._row > 1 or not self._listed)
        if news:
            self._warned = sort
        extra = {"kind": str(self.kind), "attempt": self._row, "retry_seconds": round(wait, 2)}
        hint = HINTS.get(error.status, "") if isinstance(error, ApiError) else ""
        text = "%s objects cannot be followed; what is known of them holds, trying again in %.1f s: %s%s"
        _log.log(logging.WARNING if news else logging.DEBUG, text, self.kind, wait, error, hint, extra=extra)
        return wait
