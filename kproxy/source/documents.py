"""What a manifest holds: YAML or JSON text into the model's objects. Pure.

Decides which documents concern kproxy (others are passed over in silence), and what is wrong with those that do. Text
that cannot be parsed makes the whole file unusable; an object that cannot be read costs only itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from kproxy.config.parse_errors import TOO_DEEP, json_problem, yaml_problem
from kproxy.errors import InvalidObject
from kproxy.model.objects import Kind, Object
from kproxy.source.decode import key, object_of
from kproxy.source.trim import Trimmer

__all__ = ["Content", "Place", "parse"]

_log = logging.getLogger(__name__)

Place = tuple[Kind, str]
"""Kind and "namespace/name"; the namespace of what has none is "default"."""

_GROUPS = {
    Kind.SERVICE: ("", ("v1",)),
    Kind.ENDPOINT_SLICE: ("discovery.k8s.io", ("v1",)),
    Kind.NODE: ("", ("v1",)),
    Kind.SERVICE_CIDR: ("networking.k8s.io", ("v1", "v1beta1", "v1alpha1")),
}
_MANY, _DEEP = 5000, 200
_NAMESPACED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE})


@dataclass(slots=True)
class Content:
    """The objects of one file, what is wrong with others, and where those others are."""

    objects: dict[Place, Object] = field(default_factory=dict)
    problems: list[InvalidObject] = field(default_factory=list)
    unreadable: set[Place] = field(default_factory=set)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a date is a string, and 10:20 is no number to the base of 60."""


_CHANGED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _CHANGED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9][0-9_]*|[-+]?\.inf|\.nan)$"),
    list("-+0123456789."),
)


def parse(name: str, text: bytes) -> Content:
    """The objects in the manifest TEXT of the file NAME. Raises InvalidObject when the text cannot be parsed."""
    documents = [d for d in _documents(name, text) if d is not None]
    content, trimmer = Content(), Trimmer()
    for number, document in enumerate(documents):
        where = f"documents[{number}]." if len(documents) > 1 else ""
        try:
            _take(content, trimmer, name, where, document)
        except RecursionError:
            content.problems.append(InvalidObject("manifest", name, where.rstrip("."), TOO_DEEP))
    return content


def _documents(name: str, text: bytes) -> list[Any]:
    if text.lstrip()[:1] == b"{":
        try:
            return [msgspec.json.decode(text)]
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            if name.endswith(".json"):
                where, why = json_problem(text)
                raise InvalidObject("manifest", name, where, why or "has a value that cannot be read") from error
    try:
        _refuse_depth(name, text)
        return list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidObject("manifest", name, *yaml_problem(error, text)) from error


def _refuse_depth(name: str, text: bytes) -> None:
    """Raise InvalidObject for nesting deeper than anyone means: PyYAML's C parser would overrun its stack and crash.

    Each level takes a bracket, or else a column, so nearly every file passes by counting.
    """
    if text.count(b"[") + text.count(b"{") < _MANY and max(map(len, text.splitlines()), default=0) < _MANY:
        return
    depth = read = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            read = event.end_mark.index if event.end_mark else read
            if depth > _DEEP:
                raise InvalidObject("manifest", name, "", TOO_DEEP)
    except yaml.MarkedYAMLError as error:
        # Newer parsers have a limit of their own, and meet it while they look ahead of the events.
        mark = error.problem_mark
        ahead = text.decode(errors="replace")[read : mark.index if mark else None]
        if depth + len(re.findall(r"[\[{]|[-?:] ", ahead)) > _DEEP:
            raise InvalidObject("manifest", name, "", TOO_DEEP) from error
        raise


def _take(content: Content, trimmer: Trimmer, name: str, where: str, document: Any) -> None:
    """Add what DOCUMENT, at the path WHERE of its file, holds."""
    for kind, value, at in _ours(content, name, where, document, ""):
        place = _place(kind, value)
        try:
            item = object_of(kind, value)
        except InvalidObject as error:
            if place:
                content.problems.append(error)
                content.unreadable.add(place)
            else:
                content.problems.append(InvalidObject("manifest", name, f"{at}{error.field}", error.reason))
            continue
        assert place is not None  # it has a name, or object_of had refused it
        trimmer.trim(item)
        if place in content.objects:
            _log.warning("%s: %s %s is there twice; the last one is used", name, *place, extra={"manifest": name})
        content.objects[place] = item


def _ours(content: Content, name: str, where: str, document: Any, default: str) -> Iterator[tuple[Kind, Any, str]]:
    """What DOCUMENT has for kproxy, lists opened up, and the path of each; DEFAULT is the kind of what names none."""
    if not isinstance(document, dict):
        reason = f"Expected object, got {_sort(document)}"
        content.problems.append(InvalidObject("manifest", name, where.rstrip("."), reason))
        return
    sort = document.get("kind") or default
    if not isinstance(sort, str) or not sort:
        reason = f"Expected str, got {_sort(sort)}" if sort else "is missing"
        content.problems.append(InvalidObject("manifest", name, f"{where}kind", reason))
        return
    items = document.get("items")
    if sort.endswith("List") and isinstance(items, list):
        for number, item in enumerate(items):
            yield from _ours(content, name, f"{where}items[{number}].", item, sort.removesuffix("List"))
    elif sort in list(Kind):
        kind = Kind(sort)
        if _is_known_version(content, kind, document):
            yield kind, _with_namespace(kind, document), where


def _is_known_version(content: Content, kind: Kind, document: dict[str, Any]) -> bool:
    """False also when another API group has a kind of the same name."""
    group, versions = _GROUPS[kind]
    its_group, _, its_version = str(document.get("apiVersion") or f"{group}/{versions[0]}").rpartition("/")
    if its_group != group or its_version in versions:
        return its_group == group
    place = _place(kind, _with_namespace(kind, document))
    label = place[1] if place else "(without a name)"
    reason = f"Expected {'/'.join(filter(None, (group, versions[0])))}, got {document['apiVersion']}"
    content.problems.append(InvalidObject(kind, label, "apiVersion", reason))
    if place:
        content.unreadable.add(place)
    return False


def _with_namespace(kind: Kind, value: dict[str, Any]) -> dict[str, Any]:
    metadata = value.get("metadata")
    if kind not in _NAMESPACED or not isinstance(metadata, dict) or metadata.get("namespace"):
        return value
    return {**value, "metadata": {**metadata, "namespace": "default"}}


def _place(kind: Kind, value: dict[str, Any]) -> Place | None:
    """Where the object is, None when it has no usable name."""
    metadata = value.get("metadata")
    name, namespace = (metadata.get("name"), metadata.get("namespace")) if isinstance(metadata, dict) else ("", "")
    if not isinstance(name, str) or not name:
        return None
    return kind, key(namespace if isinstance(namespace, str) else None, name)


def _sort(value: Any) -> str:
    """What a value is called in JSON."""
    return {dict: "object", list: "array", type(None): "null"}.get(type(value), type(value).__name__)
