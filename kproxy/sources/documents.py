"""Decodes the YAML or JSON text of a manifest into the model's objects. Pure.

Decides which documents concern kproxy (others are passed over in silence), and what is wrong with those that do. Text
that cannot be parsed makes the whole file unusable; an object that cannot be decoded costs only itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from kproxy import logs
from kproxy.config.parse_errors import json_problem
from kproxy.config.yaml_reader import TOO_DEEP, Loader, YamlError, load_all
from kproxy.errors import InvalidObject
from kproxy.model.events import full_name
from kproxy.model.objects import Kind, Object
from kproxy.sources import validation
from kproxy.sources.decode import object_of
from kproxy.sources.intern import Interner

_log = logs.get("source")

ObjectId = tuple[Kind, str]
"""Kind and "namespace/name"; the namespace of what has none is "default"."""

_GROUPS = {
    Kind.SERVICE: ("", ("v1",)),
    Kind.ENDPOINT_SLICE: ("discovery.k8s.io", ("v1",)),
    Kind.NODE: ("", ("v1",)),
    Kind.SERVICE_CIDR: ("networking.k8s.io", ("v1", "v1beta1", "v1alpha1")),
}
_NAMESPACED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE})


@dataclass(slots=True)
class Content:
    """The objects of one file, the problems of others, and the identities of those others as far as they have one."""

    objects: dict[ObjectId, Object] = field(default_factory=dict)
    problems: list[InvalidObject] = field(default_factory=list)
    unreadable: set[ObjectId] = field(default_factory=set)


class _Loader(Loader):
    """Reads YAML as Kubernetes does: a date is a string, and so is 10:20, a number to the base of 60 for PyYAML."""


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
    content, interner = Content(), Interner()
    for number, document in enumerate(documents):
        where = f"documents[{number}]." if len(documents) > 1 else ""
        try:
            _take(content, interner, name, where, document)
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
        return load_all(text, _Loader)[0]
    except YamlError as error:
        if error.reason == TOO_DEEP:
            raise InvalidObject("manifest", name, "", TOO_DEEP) from error
        where = f"line {error.line}, column {error.column}" if error.line else "is no YAML"
        raise InvalidObject("manifest", name, where, error.reason) from error


def _take(content: Content, interner: Interner, name: str, where: str, document: Any) -> None:
    """Add to CONTENT what DOCUMENT holds; WHERE is its path in the file."""
    for kind, value, path in _relevant(content, name, where, document, ""):
        at = _object_id(kind, value)
        try:
            item = object_of(kind, value)
        except InvalidObject as error:
            if at:
                content.problems.append(error)
                content.unreadable.add(at)
            else:
                content.problems.append(InvalidObject("manifest", name, f"{path}{error.field}", error.reason))
            continue
        assert at is not None  # it has a name, or object_of had refused it
        validation.set_defaults(item)
        content.problems += (refused := validation.refusals(item)) + validation.remarks(kind, value, item)
        if refused:
            content.unreadable.add(at)
            continue
        interner.intern(item)
        if at in content.objects:
            _log.warning("Object is in a manifest twice; the second is used", kind=kind, object=at[1], file=name)
        content.objects[at] = item


def _relevant(content: Content, name: str, where: str, document: Any, default: str) -> Iterator[tuple[Kind, Any, str]]:
    """The objects in DOCUMENT that concern kproxy, those of lists included, each with its path in the file.

    default: the kind of an object that names none.
    """
    if not isinstance(document, dict):
        reason = f"Expected object, got {_json_type(document)}"
        content.problems.append(InvalidObject("manifest", name, where.rstrip("."), reason))
        return
    name_of_kind = document.get("kind") or default
    if not isinstance(name_of_kind, str) or not name_of_kind:
        reason = f"Expected str, got {_json_type(name_of_kind)}" if name_of_kind else "is missing"
        content.problems.append(InvalidObject("manifest", name, f"{where}kind", reason))
        return
    items = document.get("items")
    if name_of_kind.endswith("List") and isinstance(items, list):
        for number, item in enumerate(items):
            yield from _relevant(content, name, f"{where}items[{number}].", item, name_of_kind.removesuffix("List"))
    elif meant := [kind for kind in Kind if kind != name_of_kind and kind.lower() == name_of_kind.lower()]:
        reason = f"{name_of_kind!r} is no kind (is {meant[0]} meant?)"
        content.problems.append(InvalidObject("manifest", name, f"{where}kind", reason))
    elif name_of_kind in list(Kind):
        kind = Kind(name_of_kind)
        if _is_known_version(content, kind, document):
            yield kind, _with_namespace(kind, document), where


def _is_known_version(content: Content, kind: Kind, document: dict[str, Any]) -> bool:
    """Whether kproxy reads this version of the object; not so for a kind of the same name in another API group."""
    group, versions = _GROUPS[kind]
    given = document.get("apiVersion") or f"{group}/{versions[0]}"
    its_group, _, its_version = given.rpartition("/") if isinstance(given, str) else (group, "", "")
    if its_group != group or its_version in versions:
        return its_group == group
    at = _object_id(kind, _with_namespace(kind, document))
    label = at[1] if at else "(without a name)"
    shown = given if isinstance(given, str) else _json_type(given)
    reason = f"Expected {'/'.join(filter(None, (group, versions[0])))}, got {shown}"
    content.problems.append(InvalidObject(kind, label, "apiVersion", reason))
    if at:
        content.unreadable.add(at)
    return False


def _with_namespace(kind: Kind, value: dict[str, Any]) -> dict[str, Any]:
    metadata = value.get("metadata")
    if kind not in _NAMESPACED or not isinstance(metadata, dict) or metadata.get("namespace"):
        return value
    return {**value, "metadata": {**metadata, "namespace": "default"}}


def _object_id(kind: Kind, value: dict[str, Any]) -> ObjectId | None:
    """The identity of an object, None when it has no usable name."""
    metadata = value.get("metadata")
    name, namespace = (metadata.get("name"), metadata.get("namespace")) if isinstance(metadata, dict) else ("", "")
    if not isinstance(name, str) or not name:
        return None
    return kind, full_name(namespace if isinstance(namespace, str) else None, name)


def _json_type(value: Any) -> str:
    """The name of a value's type in JSON."""
    return {dict: "object", list: "array", type(None): "null"}.get(type(value), type(value).__name__)
