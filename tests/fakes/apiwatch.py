"""The watches of the API stand-in: the clients that wait for changes, the lines that they get, and faults of both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from tests.fakes.apifaults import Cut, EndAtOnce, ErrorEvent, Fault, Garbled, Silent, Unended
from tests.fakes.apistatus import Refusal, by_code
from tests.fakes.apistore import Selection, Store, Stored
from tests.fakes.apivalidation import is_true

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
"""The annotation of the bookmark after the objects of a streamed list."""
_LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a watch begins. api: of the resource. version: after this one; 0: first comes what there is.

    streamed: what there is ends with a bookmark that says so.
    """

    api: str
    selection: Selection
    version: int
    streamed: bool


class _Watch:
    """One client that waits."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.wake = asyncio.Event()
        self.bookmark = False


class Watches:
    """All watches of a server. `wake` and `bookmark` may be called from any thread, the rest in LOOP."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bookmark_seconds: float) -> None:
        self._loop, self._bookmark_seconds = loop, bookmark_seconds
        self._open: set[_Watch] = set()
        self.never = asyncio.Event()
        """For requests that shall hang. Kept here: a task whose event nothing else refers to may be collected."""

    def wake(self, kind: str) -> None:
        """Objects of KIND changed."""
        self._later(kind, bookmark=False)

    def bookmark(self) -> None:
        """Let every watch send a bookmark now."""
        self._later("", bookmark=True)

    def _later(self, kind: str, bookmark: bool) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, kind, bookmark)

    def _wake(self, kind: str, bookmark: bool) -> None:
        for watch in self._open:
            if kind in ("", watch.kind):
                watch.bookmark |= bookmark
                watch.wake.set()

    async def begin(self, request: web.Request) -> web.StreamResponse:
        """The head of the answer."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        return response

    async def serve(self, request: web.Request, store: Store, start: Start, fault: Fault | None) -> web.StreamResponse:
        """Write what happens from START until the client's timeoutSeconds are over."""
        response = await self.begin(request)
        match fault:
            case Silent():
                await self.never.wait()
            case EndAtOnce():
                return response
            case ErrorEvent(code):
                await response.write(failure_line(by_code(code, "told to fail")))
                return response
        writer = _Writer(request, response, start, fault)
        with self._registered(start.selection.kind) as watch:
            version = start.version
            if not version:
                version, items = store.objects(start.selection)
                await writer.events([("ADDED", item) for item in items])
                if start.streamed and writer.bookmarks and not isinstance(fault, Unended):
                    await writer.bookmark(version, {INITIAL_EVENTS_END: "true"})
            try:
                await self._follow(request, store, start.selection, version, watch, writer)
            except Refusal as error:
                await response.write(failure_line(error))
        return response

    async def _follow(
        self, request: web.Request, store: Store, selection: Selection, version: int, watch: _Watch, writer: _Writer
    ) -> None:
        end = self._loop.time() + min(_LONGEST, float(request.query.get("timeoutSeconds") or _LONGEST))
        due = self._loop.time() + self._bookmark_seconds
        while not writer.broken:
            watch.wake.clear()
            version, events = store.since(selection, version)
            await writer.events(events)
            now = self._loop.time()
            if writer.bookmarks and (watch.bookmark or now >= due or now >= end):
                await writer.bookmark(version)
                watch.bookmark, due = False, now + self._bookmark_seconds
            if now >= end:
                return
            try:
                await asyncio.wait_for(watch.wake.wait(), max(0.0, min(end, due) - now))
            except TimeoutError:
                continue

    @contextmanager
    def _registered(self, kind: str) -> Iterator[_Watch]:
        watch = _Watch(kind)
        self._open.add(watch)
        try:
            yield watch
        finally:
            self._open.discard(watch)


class _Writer:
    """Writes lines, until the fault's turn comes."""

    def __init__(self, request: web.Request, response: web.StreamResponse, start: Start, fault: Fault | None) -> None:
        self._request, self._response, self._start = request, response, start
        self._fault = fault if isinstance(fault, (Cut, Garbled)) else None
        self._left = self._fault.after if self._fault else 0
        self._wanted = is_true(request.query, "allowWatchBookmarks")
        self.broken = False

    @property
    def bookmarks(self) -> bool:
        """Whether one can be written."""
        return self._wanted and not self.broken

    async def events(self, events: list[tuple[str, Stored]]) -> None:
        if not events or self.broken:
            return
        lines = [b'{"type":"%s","object":%s}\n' % (sort.encode(), item.body) for sort, item in events]
        if self._fault is None:
            await self._response.write(b"".join(lines))
            return
        whole, self._left = lines[: self._left], self._left - len(lines)
        await self._response.write(b"".join(whole)) if whole else None
        if self._left < 0:
            await self._break(lines[len(whole)])

    async def bookmark(self, version: int, annotations: dict[str, str] | None = None) -> None:
        metadata = {"resourceVersion": str(version), "creationTimestamp": None}
        noted = {"annotations": annotations} if annotations else {}
        item = {"kind": self._start.selection.kind, "apiVersion": self._start.api, "metadata": metadata | noted}
        await self._response.write(json.dumps({"type": "BOOKMARK", "object": item}).encode() + b"\n")

    async def _break(self, line: bytes) -> None:
        self.broken = True
        half = line[: len(line) // 2]
        if isinstance(self._fault, Garbled):
            await self._response.write(half + b"\n")
        else:
            await self._response.write(half)
            if self._request.transport:
                self._request.transport.close()  # what was written still gets there


def failure_line(error: Refusal) -> bytes:
    """The event of type ERROR that ends a watch."""
    return json.dumps({"type": "ERROR", "object": error.status()}).encode() + b"\n"
