"""Turns bytes of the API server, and parsed manifests, into the model's objects. Pure.

Decides what a broken object costs: only itself. A list is first decoded as a whole, which is what nearly always works;
when it does not, its items are decoded one by one, and those that fail become InvalidObject values that name object and
field. What an object means, and whether its values make sense, is the model's to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from kproxy.config.parse_errors import TOO_DEEP, json_problem, mismatch, of_text
from kproxy.errors import InvalidObject, SourceError
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.source.trim import trim_metadata

__all__ = [
    "Bookmark",
    "Broken",
    "Decoder",
    "Failure",
    "Gone",
    "Page",
    "Update",
    "WatchLine",
    "key",
    "object_of",
    "split_lines",
]

# msgspec's own errors, and what passes through it: bad UTF-8 is a ValueError, and too deep nesting a RecursionError.
_UNDECODABLE = (msgspec.DecodeError, ValueError, RecursionError)


@dataclass(slots=True)
class Page:
    """One page of a list. unreadable: the keys of those objects that are in `problems` instead of `objects`. anew: it
    begins the list anew, the pages before it do not count."""

    version: str = ""
    more: str = ""
    """The token that gets the next page; "" on the last one."""
    objects: list[Object] = field(default_factory=list)
    problems: list[InvalidObject] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """The object was added or modified."""

    version: str
    object: Object


@dataclass(frozen=True, slots=True)
class Gone:
    """The object was deleted, or no longer matches the selector."""

    version: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Nothing happened up to this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Broken:
    """An object was added or modified, but cannot be decoded."""

    version: str
    error: InvalidObject


@dataclass(frozen=True, slots=True)
class Failure:
    """The server ends the watch: HTTP status code (0 when it names none) and why."""

    code: int
    message: str


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
    # Any, because the object whose name is wanted may be wrong in just these fields.
    name: Any = None
    namespace: Any = None
    resource_version: Any = None


class _Identified(msgspec.Struct):
    metadata: Any = None


class _Status(msgspec.Struct):
    code: int | None = None
    reason: str | None = None
    message: str | None = None


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
        """The page of a list in BODY. Raises SourceError when it is no list at all."""
        try:
            found = _typed_lists[self.kind].decode(body)
        except _UNDECODABLE:
            return self._page_by_item(body)
        page = _page(found.metadata)
        page.objects = found.items or []
        # An object without a name can neither be told apart nor deleted; there is none unless the server is broken.
        if not all(item.metadata.name for item in page.objects):
            return self._page_by_item(body)
        for item in page.objects:
            trim_metadata(item.metadata)
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
                if (identity := _identity(raw)).name:
                    page.unreadable.add(key(identity.namespace, identity.name))
        return page

    def line(self, line: bytes) -> WatchLine:
        """What LINE of a watch says. Raises SourceError when it is no watch event at all, as after a cut."""
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
                return Bookmark(identity.resource_version)
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
        trim_metadata(item.metadata)
        return item


def object_of(kind: Kind, value: Any) -> Object:
    """The object that a parsed manifest VALUE describes. Raises InvalidObject that names object and field."""
    try:
        item = cast(Object, msgspec.convert(value, TYPES[kind]))
    except _UNDECODABLE as error:
        identity = _identity_of(value.get("metadata") if isinstance(value, dict) else None)
        raise _invalid(kind, identity, error, value) from error
    if not item.metadata.name:
        raise _nameless(kind)
    return item


def key(namespace: str | None, name: str) -> str:
    """How events name an object; the namespace of those that have none is "default", as the model has it."""
    return f"{namespace or 'default'}/{name}"


def split_lines(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The lines of a stream that comes in CHUNKS, without their ends. What follows the last newline is not a line.

    Raises SourceError when a line is longer than LIMIT bytes.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > limit:
            raise SourceError(f"a line of the watch is longer than {limit} bytes")


def _page(metadata: _ListMeta | None) -> Page:
    if metadata is None:
        return Page()
    return Page(metadata.resource_version or "", metadata.next or "")


def _failure(raw: msgspec.Raw) -> Failure:
    status = _status.decode(raw)
    return Failure(status.code or 0, status.message or status.reason or "no reason given")


def _identity(raw: msgspec.Raw) -> _Identity:
    """Name, namespace and version of an object, "" for what is missing or wrong."""
    try:
        return _identity_of(_identified.decode(raw).metadata)
    except _UNDECODABLE:
        return _Identity("", "", "")


def _identity_of(metadata: Any) -> _Identity:
    known = metadata if isinstance(metadata, dict) else {}
    values = [known.get(name) for name in ("name", "namespace", "resourceVersion")]
    return _Identity(*[value if isinstance(value, str) else "" for value in values])


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
