"""The API stand-in's memory: objects, one resource version for all of them, and the history of changes. No I/O.

It has the semantics that clients depend on: every write gets the next version, a list is a
snapshot, a page of it can be continued until the history is compacted, and a change that takes an object out of a
selector is a deletion for clients that watch with that selector. It keeps any object that has a kind and a name, also
one that a client could not create; which ones those are is the business of apivalidation.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.fakes.apiselectors import FIELDS, fields_match, labels_match
from tests.fakes.apistatus import Subject, bad_request, expired


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and its place in the API. api: "v1" or "GROUP/VERSION"."""

    api: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def prefix(self) -> str:
        return f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"

    def named(self, name: str) -> Subject:
        """An object of this kind as refusals speak of it."""
        return Subject(self.api, self.plural, self.kind, name)


RESOURCES = (
    Resource("v1", "services", "Service"),
    Resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
    Resource("v1", "nodes", "Node", namespaced=False),
    Resource("v1", "pods", "Pod"),
    Resource("networking.k8s.io/v1", "servicecidrs", "ServiceCIDR", namespaced=False),
    Resource("networking.k8s.io/v1beta1", "servicecidrs", "ServiceCIDR", namespaced=False),
    Resource("v1", "events", "Event"),
    Resource("events.k8s.io/v1", "events", "Event"),
    Resource("v1", "namespaces", "Namespace", namespaced=False),
)
_NAMESPACED = {resource.kind: resource.namespaced for resource in RESOURCES}
_BY_KIND = {resource.kind: resource for resource in reversed(RESOURCES)}
NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
"""There from the beginning."""
ACTIVE: dict[str, Any] = {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
"""Spec and status of a Namespace that is not being deleted."""
_MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object at one version, and its JSON."""

    version: int
    namespace: str
    name: str
    labels: Mapping[str, str]
    body: bytes
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    before: Stored | None
    after: Stored | None


@dataclass(slots=True)
class _Kind:
    objects: dict[tuple[str, str], Stored] = field(default_factory=dict)
    history: list[_Change] = field(default_factory=list)
    forgotten: int = 0
    """Changes up to this version are no longer in the history."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind a client asked for; "" selects all."""

    kind: str
    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def takes(self, item: Stored) -> bool:
        """Raises Refusal for a selector that cannot be read."""
        if self.namespace and item.namespace != self.namespace:
            return False
        if self.labels and not labels_match(self.labels, item.labels):
            return False
        return not self.fields or fields_match(self.kind, self.fields, _field_values(self.kind, item))


class Store:
    """The objects. Used from any thread; `on_change(kind)` is called after each write, outside of the lock."""

    def __init__(self, history: int, on_change: Callable[[str], None]) -> None:
        """HISTORY: how many changes of each kind are remembered."""
        self._lock = threading.Lock()
        self._limit = history
        self._on_change = on_change
        self._version = 1
        self._kinds = {resource.kind: _Kind() for resource in RESOURCES}
        self._snapshots: OrderedDict[int, tuple[int, list[Stored]]] = OrderedDict()
        self._next_snapshot = 0
        for name in NAMESPACES:
            self._make_namespace(name)

    @property
    def version(self) -> int:
        return self._version

    def put(self, item: dict[str, Any], new: bool = False, expected: str = "") -> Stored:
        """Create or replace an object, with its namespace if that is missing. Raises Refusal.

        new: it must not exist yet. expected: the version that it must have, "" for any.
        """
        kind, metadata = item.get("kind"), dict(item.get("metadata") or {})
        if kind not in self._kinds:
            raise bad_request(f"the kind {kind!r} is not served")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = f"{metadata['generateName']}{self._version:x}"
        if not metadata.get("name"):
            raise bad_request("metadata.name is missing")
        if _NAMESPACED[kind]:
            self._make_namespace(metadata.setdefault("namespace", "default"))
        subject = _BY_KIND[kind].named(metadata["name"])
        with self._lock:
            space, place = self._kinds[kind], (metadata.get("namespace", ""), metadata["name"])
            before = space.objects.get(place)
            if before and new:
                raise subject.already_exists(before.terminating)
            if expected and (before is None or expected != str(before.version)):
                raise subject.conflict(_MODIFIED)
            stored = self._encode(item, metadata, place)
            space.objects[place] = stored
            self._remember(space, _Change(stored.version, before, stored))
        self._on_change(kind)
        return stored

    def _make_namespace(self, name: str) -> None:
        if ("", name) not in self._kinds["Namespace"].objects:
            self.put({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}, **ACTIVE})

    def remove(self, kind: str, namespace: str, name: str) -> Stored | None:
        """Delete an object; its last state, at the version of its deletion, or None when there is none.

        A Namespace takes all objects in it along.
        """
        if kind == "Namespace":
            self._empty(name)
        with self._lock:
            space = self._kinds[kind]
            before = space.objects.pop((namespace, name), None)
            if before is None:
                return None
            item = msgspec.json.decode(before.body)
            last = self._encode(item, item["metadata"], (namespace, name))
            self._remember(space, _Change(last.version, last, None))
        self._on_change(kind)
        return last

    def _empty(self, namespace: str) -> None:
        for kind in (kind for kind, namespaced in _NAMESPACED.items() if namespaced):
            for item in self.objects(Selection(kind, namespace))[1]:
                self.remove(kind, namespace, item.name)

    def get(self, kind: str, namespace: str, name: str) -> Stored | None:
        return self._kinds[kind].objects.get((namespace, name))

    def objects(self, selection: Selection) -> tuple[int, list[Stored]]:
        """The version now, and all objects that SELECTION takes, by namespace and name."""
        with self._lock:
            found = sorted(self._kinds[selection.kind].objects.items())
            return self._version, [item for _, item in found if selection.takes(item)]

    def page(self, selection: Selection, limit: int, token: str) -> tuple[int, list[Stored], str, int]:
        """Version, objects, token of the next page ("" at the end), and how many are left after this page.

        Raises Refusal for a TOKEN from before a compaction.
        """
        if token:
            number, _, start = token.partition(".")
            with self._lock:
                snapshot = self._snapshots.get(int(number) if number.isdecimal() else -1)
            if snapshot is None or not start.isdecimal():
                raise expired("The provided continue parameter is too old to display a consistent list result.")
            version, items, at = *snapshot, int(start)
        else:
            (version, items), at, number = self.objects(selection), 0, ""
        end = at + limit if limit else len(items)
        if end >= len(items):
            return version, items[at:], "", 0
        return version, items[at:end], f"{number or self._keep(version, items)}.{end}", len(items) - end

    def since(self, selection: Selection, version: int) -> tuple[int, list[tuple[str, Stored]]]:
        """The version now, and what happened after VERSION to the objects of SELECTION: event type and object.

        Raises Refusal when the history does not reach back that far.
        """
        with self._lock:
            space = self._kinds[selection.kind]
            if version < space.forgotten:
                raise expired(f"too old resource version: {version} ({space.forgotten + 1})")
            changes = space.history[bisect_right(space.history, version, key=lambda change: change.version) :]
            now = self._version
        return now, [event for change in changes if (event := _event(selection, change))]

    def compact(self) -> None:
        """Forget all history and every continue token, as etcd does every five minutes."""
        with self._lock:
            self._snapshots.clear()
            for space in self._kinds.values():
                space.history.clear()
                space.forgotten = self._version

    def rewind(self, version: int) -> None:
        """Go back to an older version number, history forgotten, as after a restore of etcd from a backup."""
        self.compact()
        with self._lock:
            self._version = version
            for space in self._kinds.values():
                space.forgotten = version

    def _encode(self, item: dict[str, Any], metadata: dict[str, Any], place: tuple[str, str]) -> Stored:
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        metadata.setdefault("uid", f"00000000-0000-4000-8000-{self._version:012x}")
        body = msgspec.json.encode({**item, "metadata": metadata})
        terminating = "deletionTimestamp" in metadata
        return Stored(self._version, *place, metadata.get("labels") or {}, body, terminating)

    def _remember(self, space: _Kind, change: _Change) -> None:
        space.history.append(change)
        if len(space.history) > 2 * self._limit:
            del space.history[: -self._limit]
            space.forgotten = space.history[0].version - 1

    def _keep(self, version: int, items: list[Stored]) -> int:
        with self._lock:
            self._next_snapshot += 1
            self._snapshots[self._next_snapshot] = version, items
            if len(self._snapshots) > 64:
                self._snapshots.popitem(last=False)
            return self._next_snapshot


def _event(selection: Selection, change: _Change) -> tuple[str, Stored] | None:
    before = change.before if change.before and selection.takes(change.before) else None
    after = change.after if change.after and selection.takes(change.after) else None
    if after:
        return ("MODIFIED" if before else "ADDED"), after
    if before:
        # The last state, but at the version of this change, as clients continue from it.
        return "DELETED", _at(before, change.version)
    return None


def _at(item: Stored, version: int) -> Stored:
    if item.version == version:
        return item
    value = msgspec.json.decode(item.body)
    value["metadata"]["resourceVersion"] = str(version)
    return Stored(version, item.namespace, item.name, item.labels, msgspec.json.encode(value), item.terminating)


def _field_values(kind: str, item: Stored) -> dict[str, str]:
    """The fields of ITEM by which it can be selected."""
    found = {"metadata.name": item.name, "metadata.namespace": item.namespace}
    if more := FIELDS.get(kind):
        value = msgspec.json.decode(item.body)
        value.setdefault("involvedObject", value.get("regarding"))
        found |= {path: _text(value, path) for path in more}
    return found


def _text(value: Any, path: str) -> str:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return str(value).lower() if isinstance(value, bool) else str(value or "")
