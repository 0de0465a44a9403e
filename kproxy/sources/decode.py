"""Decodes bytes of the API server, and parsed manifests, into the model's objects. Pure.

A broken object costs only itself: a list is first decoded as a whole, which nearly always works; if not, its items are
decoded one by one, and those that fail become InvalidObject values that name object and field. What an object means,
and whether its values make sense, the model decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from kproxy.config.parse_errors import json_problem, mismatch, of_text
from kproxy.config.yaml_reader import TOO_DEEP
from kproxy.errors import InvalidObject, SourceError
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.sources.intern import drop_unread_metadata

# msgspec's own errors, and what it lets through: a ValueError for bad UTF-8, a RecursionError for deep nesting.
_UNDECODABLE = (msgspec.DecodeError, ValueError, RecursionError)


@dataclass(slots=True)
class Page:
    """One page of a list. restarts: the list begins with this page, those before it do not count."""

    version: str = ""
    more: str = ""
    """The token that gets the next page; "" on the last one."""
    objects: list[Object] = field(default_factory=list)
    problems: list[InvalidObject] = field(default_factory=list)
    """What is wrong with the objects that could not be decoded."""
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """The object was added or modified."""

    version: str
    object: Object


@dataclass(frozen=True, slots=True)
class Gone:
    """The object was deleted, or does not match the selector any more."""

    version: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The watch has reached this version without further events.

    ends_list: all objects of a list that was asked for as a stream were sent by now.
    """

    version: str
    ends_list: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """An object was added or modified, but cannot be decoded."""

    version: str
    error: InvalidObject


@dataclass(frozen=True, slots=True)
class Failure:
    """The server ends the watch. code: an HTTP status; 0 when it gives none, and no reason that stands for one."""

    code: int
    message: str
    retry_after: float = 0.0
    """Seconds that the server asks to be left alone."""


WatchLine = Update | Gone | Bookmark | Broken | Failure


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str | None = None
    next: str | None = msgspec.field(name="continue", default=None)


class _RawList(msgspec.Struct):
    metadata: _ListMeta | None = None
    items: list[msgspec.Raw] | None = None


class _RawEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Identity(msgspec.Struct, rename="camel"):
    # Any, because these may be the fields that make the object undecodable.
    name: Any = None
    namespace: Any = None
    resource_version: Any = None
    annotations: Any = None

    @property
    def ends_list(self) -> bool:
        return isinstance(self.annotations, dict) and self.annotations.get(_INITIAL_EVENTS_END) == "true"


class _Identified(msgspec.Struct):
    metadata: Any = None


class _Status(msgspec.Struct):
    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: Any = None


# What a Status without a code means by its reason, in apimachinery's words.
_CODES = {
    "Expired": 410,
    "Gone": 410,
    "Invalid": 422,
    "BadRequest": 400,
    "NotFound": 404,
    "Forbidden": 403,
    "Unauthorized": 401,
    "TooManyRequests": 429,
    "InternalError": 500,
    "ServiceUnavailable": 503,
    "Timeout": 504,
    "ServerTimeout": 500,
}
_INITIAL_EVENTS_END = "k8s.io/initial-events-end"


_raw_list = msgspec.json.Decoder(_RawList)
_raw_event = msgspec.json.Decoder(_RawEvent)
_identified = msgspec.json.Decoder(_Identified)
_status = msgspec.json.Decoder(_Status)
_typed_lists: dict[Kind, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(
        msgspec.defstruct(
            f"{kind}List",
            [("metadata", _ListMeta | None, None), ("items", list[item] | None, None)],  # type: ignore[valid-type]
        )
    )
    for kind, item in TYPES.items()
}
_items: dict[Kind, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(item) for kind, item in TYPES.items()}


class Decoder:
    """Decodes lists and watch lines of one kind. For one thread."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def page(self, body: bytes) -> Page:
        """The page of a list in BODY. Raises SourceError when BODY is not a list."""
        try:
            found = _typed_lists[self.kind].decode(body)
        except _UNDECODABLE:
            return self._page_by_item(body)
        page = _page(found.metadata)
        page.objects = found.items or []
        # An object without a name has no identity and could never be deleted; only a broken server sends one.
        if not all(item.metadata.name for item in page.objects):
            return self._page_by_item(body)
        for item in page.objects:
            drop_unread_metadata(item.metadata)
        return page

    def _page_by_item(self, body: bytes) -> Page:
        try:
            found = _raw_list.decode(body)
        except _UNDECODABLE as error:
            raise SourceError(f"the list of {self.kind} objects is not readable: {of_text(body)}") from error
        page = _page(found.metadata)
        for raw in found.items or ():
            try:
                page.objects.append(self._object(raw))
            except InvalidObject as error:
                page.problems.append(error)
        return page

    def line(self, line: bytes) -> WatchLine:
        """The event in LINE of a watch. Raises SourceError when it is none, as when the connection broke within it."""
        try:
            event = _raw_event.decode(line)
            if event.type == "ERROR":
                return _failure(event.object)
            identity = _identity(event.object)
        except _UNDECODABLE as error:
            raise SourceError(f"a line of the watch of {self.kind} objects is not readable: {of_text(line)}") from error
        match event.type:
            case "ADDED" | "MODIFIED":
                return self._update(event.object, identity)
            case "DELETED" if identity.name:
                return Gone(identity.resource_version, identity.namespace, identity.name)
            case "BOOKMARK":
                return Bookmark(identity.resource_version, identity.ends_list)
        raise SourceError(f"the watch of {self.kind} objects has an event of the unknown type {event.type!r}")

    def _update(self, raw: msgspec.Raw, identity: _Identity) -> WatchLine:
        try:
            return Update(identity.resource_version, self._object(raw))
        except InvalidObject as error:
            return Broken(identity.resource_version, error)

    def _object(self, raw: msgspec.Raw) -> Object:
        try:
            item = cast(Object, _items[self.kind].decode(raw))
        except _UNDECODABLE as error:
            raise _invalid(self.kind, _identity(raw), error, raw) from error
        if not item.metadata.name:
            raise _nameless(self.kind)
        drop_unread_metadata(item.metadata)
        return item


def object_of(kind: Kind, value: Any) -> Object:
    """The object in VALUE, a parsed manifest. Raises InvalidObject that names object and field."""
    try:
        item = cast(Object, msgspec.convert(value, TYPES[kind]))
    except _UNDECODABLE as error:
        identity = _identity_of(value.get("metadata") if isinstance(value, dict) else None)
        raise _invalid(kind, identity, error, value) from error
    if not item.metadata.name:
        raise _nameless(kind)
    return item


def split_lines(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The lines of a stream that comes in CHUNKS, without their ends. What follows the last newline is not a line.

    Raises SourceError when a line is longer than LIMIT bytes.
    """
    parts: list[bytes] = []  # of the line that has no end yet; joined once, as each joining copies them all
    size = 0
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        if lines and parts:
            lines[0] = b"".join((*parts, lines[0]))
        if lines:
            parts, size = [], 0
        yield from (line for line in lines if line.strip())
        parts.append(rest)
        size += len(rest)
        if size > limit:
            raise SourceError(f"a line of the watch is longer than {limit} bytes")


def _page(metadata: _ListMeta | None) -> Page:
    if metadata is None:
        return Page()
    return Page(metadata.resource_version or "", metadata.next or "")


def _failure(raw: msgspec.Raw) -> Failure:
    status = _status.decode(raw)
    code = status.code or _CODES.get(status.reason or "", 0)
    retry_after = status.details.get("retryAfterSeconds") if isinstance(status.details, dict) else None
    seconds = float(retry_after) if isinstance(retry_after, int) else 0.0
    return Failure(code, status.message or status.reason or "no reason given", seconds)


def _identity(raw: msgspec.Raw) -> _Identity:
    """Name, namespace and version of an object; "" for one that is missing or of a wrong type."""
    try:
        return _identity_of(_identified.decode(raw).metadata)
    except _UNDECODABLE:
        return _Identity("", "", "")


def _identity_of(metadata: Any) -> _Identity:
    known = metadata if isinstance(metadata, dict) else {}
    values = [known.get(name) for name in ("name", "namespace", "resourceVersion")]
    name, namespace, version = [value if isinstance(value, str) else "" for value in values]
    return _Identity(name, namespace, version, known.get("annotations"))


def _nameless(kind: Kind) -> InvalidObject:
    return InvalidObject(kind, "(without a name)", "metadata.name", "is missing")


def _invalid(kind: Kind, identity: _Identity, error: Exception, value: Any) -> InvalidObject:
    """About the plain VALUE, or the text of one, that was refused with ERROR."""
    name = identity.name or "(without a name)"
    if identity.name and identity.namespace:
        name = f"{identity.namespace}/{identity.name}"
    if isinstance(error, RecursionError):
        return InvalidObject(kind, name, "", TOO_DEEP)
    if isinstance(value, msgspec.Raw):
        try:
            value = msgspec.json.decode(value)
        except _UNDECODABLE:
            return InvalidObject(kind, name, *json_problem(bytes(value)))
    return InvalidObject(kind, name, *mismatch(value, TYPES[kind]))
