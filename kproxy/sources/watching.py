"""Follows one kind of object: a list, then a watch that is resumed wherever it broke off.

Decides when to list again (at the start, when the server forgot the version or keeps sending what cannot be read), by
which request, how long to wait after a failure, and which failures are logged: the first of a row, and its end.

A list is streamed, one object a line, by the request that then goes on as the watch (sendInitialEvents; client-go's
gate WatchListClient): neither the server nor kproxy ever holds all of it. Where the server refuses that, or a stream
fails, the list is read page by page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from kproxy import logs
from kproxy.containment import Stage
from kproxy.errors import ApiError, SourceError
from kproxy.model.events import Changed, Deleted, Invalid, Sink
from kproxy.model.objects import Kind
from kproxy.rate_limit import Backoff
from kproxy.sources.client import ApiClient, Stream
from kproxy.sources.decode import Bookmark, Broken, Decoder, Failure, Gone, Update, WatchLine, split_lines
from kproxy.sources.listing import ANY_VERSION, PAGE_SIZE, ListAssembly, Lister, Resource
from kproxy.sources.source_thread import SourceThread

_log = logs.get("source")

_EXPIRED, _TIMED_OUT = 410, 504
_VERSION_REFUSED = frozenset({400, 404, _EXPIRED, 422, _TIMED_OUT})
"""How a server refuses a watch from a version that it forgot, never had, or has only after a restore of etcd."""
_STREAMED = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
_NO_STREAMS = frozenset({400, 422})
"""How a server refuses to stream a list."""
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
    streaming: how long it may last while a list is streamed. backoff, backoff_cap: the shortest and the longest wait
    after a failure. absent: the wait before asking again for a kind that the server does not have, or for a stream
    where it refused one. settled: a watch that ends sooner, without an event, counts as a failure.
    """

    watch: tuple[float, float] = (300.0, 600.0)
    slack: float = 15.0
    bookmarked: float = 150.0
    streaming: float = 30.0
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
        streamed: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stage: contains unexpected exceptions; the watcher then begins again with a list.

        streamed: whether lists are streamed, where the server does that.
        """
        self._client, self._resource, self._kind = client, resource, resource.kind
        self._stage, self._timing, self._random, self._clock = stage, timing, random, clock
        self._decoder = Decoder(resource.kind)
        self._lister = Lister(client, resource, self._decoder)
        self._backoff = Backoff(timing.backoff, timing.backoff_cap, random)
        self._stream: Stream | None = None
        # Which version of an optional kind there is, and whether any, a list tells best.
        self._streams = streamed and not resource.optional
        self._stream_again_at = 0.0
        self._pages_next = False
        self._streaming = False  # the running request is a list that has not ended
        self._silence = 0.0  # seconds, of the running watch once it is no list
        self._assembly = ListAssembly(resource.kind)
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
        self._streaming = not self._listed and self._may_stream()
        if not self._listed and not self._streaming and not self._list():
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
        if not self._listed:  # no stream to be had; now page by page
            return 0.0
        if before == (self._changes, self._version) and self._clock() - started < self._timing.settled:
            raise SourceError("the watch ended at once")
        self._succeeded()
        return 0.0

    # ---- list

    def _may_stream(self) -> bool:
        return self._streams and not self._pages_next and self._clock() >= self._stream_again_at

    def _list(self) -> bool:
        """List page by page and deliver all objects; returns whether the server has such a kind."""
        try:
            version = self._deliver_list()
        except ApiError as error:
            self._check_version(error)
            raise
        self._end_list(version or ANY_VERSION)
        self._listed = version is not None
        return self._listed

    def _deliver_list(self) -> str | None:
        """Deliver each page as it comes; returns the version of the list, None when the server has no such kind."""
        version: str | None = None
        self._assembly.begin()
        for page in self._lister.pages(self._version):
            if page.restarts:
                self._assembly.begin()
            for item in page.objects:
                self._assembly.add(item)
            for problem in page.problems:
                self._assembly.add_problem(problem)
            version = page.version or version or ""
            if page.more:
                self.thread.put(self._assembly.page())
                self._version = version  # should this list fail, the next one must not be older
        return version

    def _collect(self, line: WatchLine) -> None:
        """Take a line of a streamed list. What happens before it has ended comes as changes among its objects."""
        match line:
            case Update(_, item):
                self._assembly.add(item)
            case Gone(_, namespace, name):
                self._assembly.remove(namespace, name)
            case Broken(_, error):
                self._assembly.add_problem(error)
            case Bookmark(version, ends_list=True):
                self._streaming = False
                self._end_list(version)
                if self._stream is not None:
                    self._stream.allow_silence(self._silence)
            case Bookmark():
                raise SourceError("the server does not say where the list ends")
        if len(self._assembly) >= PAGE_SIZE:
            self.thread.put(self._assembly.page())
            self._version = ""  # that of the list comes last; should it fail, the next one must not be older

    def _end_list(self, version: str) -> None:
        for event in self._assembly.end():
            self.thread.put(event)
        self._assembly.begin()  # so that nothing of it is kept
        self._listed, self._version = True, version
        self._pages_next, self._unusable = False, 0
        self._succeeded()

    def _check_version(self, error: ApiError) -> None:
        """After a list was refused."""
        if error.status in (_EXPIRED, _TIMED_OUT):
            self._version = ""  # it may even lie in the future, after a restore of etcd: take the latest

    # ---- watch

    def _watch(self) -> None:
        """Follow changes, after a streamed list if there was no list yet, until the server ends that or it breaks.

        Raises _ListAgain, SourceError.
        """
        seconds = self._random.uniform(*self._timing.watch)
        query = {
            **self._resource.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        self._silence = seconds + self._timing.slack
        if self._bookmarks > 1:
            self._silence = min(self._silence, self._timing.bookmarked)
        if self._streaming:
            self._stream_list(query)
            return
        try:
            self._follow_stream(query, self._silence)
        except ApiError as error:
            if error.status in _VERSION_REFUSED:
                raise _ListAgain(str(error)) from error
            raise

    def _stream_list(self, query: Mapping[str, str]) -> None:
        """List by a watch that begins with all objects, and follow it. If it fails, the next list comes in pages."""
        self._assembly.begin()
        self._pages_next = True
        try:
            self._follow_stream({**query, **_STREAMED}, self._timing.streaming)
        except ApiError as error:
            if self._listed and error.status in _VERSION_REFUSED:
                raise _ListAgain(str(error)) from error
            if self._listed or error.status not in _NO_STREAMS:
                self._check_version(error)
                raise
            self._stream_again_at = self._clock() + self._timing.absent
            _log.info("The server does not stream lists; they are read page by page", kind=self._kind, err=error)
            return
        if self._streaming and not self.thread.stopping:
            raise SourceError("the server ended the list before all of it was sent")

    def _follow_stream(self, query: Mapping[str, str], silence: float) -> None:
        with self._client.stream(self._lister.path, query, silence) as stream:
            self._stream = stream
            try:
                if self.thread.stopping:  # it may have been stopped just before there was a stream to interrupt
                    return
                for line in split_lines(stream.pieces(), _LINE_LIMIT):
                    self._take(line)
            finally:
                self._stream = None

    def _take(self, line: bytes) -> None:
        try:
            found = self._decoder.line(line)
            if isinstance(found, Failure):
                raise _failure(self._kind, found)
        except SourceError as error:
            if isinstance(error, ApiError) and error.status in _VERSION_REFUSED:
                raise
            self._unusable += 1
            if self._unusable >= _UNUSABLE_LIMIT:
                raise _ListAgain(str(error)) from error
            raise
        if self._streaming:
            self._collect(found)
            return
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


def _failure(kind: Kind, failure: Failure) -> SourceError:
    """Why the server ended the watch of KIND."""
    if not failure.code:
        return SourceError(f"the server ends the watch: {failure.message}")
    return ApiError(f"the watch of {kind} objects", failure.code, failure.message, failure.retry_after)
