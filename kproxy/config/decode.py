"""Decodes the text of a configuration file into its fields, and finds every problem of form at once.

msgspec stops at the first problem, so the Structs are decoded field by field, with msgspec for single values. This
module checks form alone (known fields, types); `validate` checks what values mean, `defaults` replaces zero values.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Hashable
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, get_args, get_origin

import msgspec
import yaml

from kproxy.config import durations, minors
from kproxy.config.durations import Duration, Nanoseconds, NumericDuration
from kproxy.config.fields import API_VERSION, KIND, KubeProxyConfiguration
from kproxy.config.minors import KubernetesMinor
from kproxy.config.yaml_reader import Loader, YamlError, load_first
from kproxy.errors import InvalidConfig

NAMES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}
MISSING = object()
_POINTERS = (
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
    "userspace.udpIdleTimeout",
    "userspace.drainTimeout",
)
"""The durations that may be null."""


class _Invalid(Exception):
    """Ends the decoding of a value whose problem has been recorded."""


# ---------------------------------------------------------------- text


def _number(text: str) -> int | float:
    """The integer TEXT, in decimal. One that needs more than 64 bits is a float, and so of a wrong type anywhere."""
    return int(text) if len(text) <= len(str(-(2**63))) else float(text)


class _Loader(Loader):
    """Reads YAML and records keys that appear twice in a mapping; the last one counts."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                self.twice.append(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_text(text: str) -> tuple[Any, list[str]]:
    """The plain values in TEXT, one JSON value or the first YAML document, and a line for each key that appears twice
    in one mapping, and for what follows the document: kube-proxy looks at neither. Raises InvalidConfig when it is no
    JSON or YAML."""
    if text.lstrip().startswith("{"):
        # Much faster than YAML, of which JSON is nearly a part; what fails here may still be YAML's flow style.
        with contextlib.suppress(ValueError, RecursionError):
            return _parse_json(text)
    try:
        document, more, loader = load_first(text, _Loader)
    except YamlError as error:
        where = f"line {error.line}: " if error.line else ""
        raise InvalidConfig([f"{where}not YAML or JSON: {error.reason}"]) from error
    lines = [*loader.twice, *([f"line {more}: what follows the first YAML document"] if more else [])]
    return ({} if document is None else document), lines


def _parse_json(text: str) -> tuple[Any, list[str]]:
    twice: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice.extend(f"the key {key!r} stands twice" for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=collect, parse_int=_number), twice


# ---------------------------------------------------------------- values


class Problems(list[str]):
    """A "field: reason" line for each field of a wrong form.

    unknown: likewise for each field that does not exist. kube-proxy ignores these: after strict decoding of v1alpha1
    failed, it decodes leniently.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unknown: list[str] = []


def decode(values: Any) -> tuple[KubeProxyConfiguration, Problems]:
    """The configuration in plain VALUES, and the problems of their form.

    A field with a problem has its default in the result, so that the rest can still be validated. Raises InvalidConfig
    when VALUES are no KubeProxyConfiguration v1alpha1 at all.
    """
    if not isinstance(values, dict):
        raise InvalidConfig([f"must be a mapping with apiVersion and kind, is {_shown(values)}"])
    header = [
        f"{name}: {'missing, ' if name not in values else ''}must be {expected}"
        + (f", is {_shown(values[name])}" if name in values else "")
        for name, expected in (("apiVersion", API_VERSION), ("kind", KIND))
        if values.get(name) != expected
    ]
    if header:
        raise InvalidConfig(header)
    problems = Problems()
    return _struct(values, KubeProxyConfiguration, "", problems), problems


def _struct(values: Any, cls: Any, path: str, problems: Problems) -> Any:
    if not isinstance(values, dict):
        raise _problem(problems, path, f"must be a mapping, is {_shown(values)}")
    known = _fields(cls)
    for name in values:
        if name not in known:
            problems.unknown.append(f"{_join(path, name)}: unknown field{_suggestion(name, known)}")
    found = {}
    for name, (attribute, kind) in known.items():
        value, here = values.get(name), _join(path, name)
        # null stands for an absent field, as in Go, but for durations that are no pointers there.
        if value is None and not (kind is Duration and name in values and here not in _POINTERS):
            continue
        try:
            found[attribute] = _value(value, kind, here, problems)
        except _Invalid:
            continue
    return cls(**found)


def _value(value: Any, kind: Any, path: str, problems: Problems) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(value, kind, path, problems)
    if isinstance(kind, type) and issubclass(kind, Duration):
        if kind is NumericDuration and type(value) is int and abs(value) <= durations.LARGEST:
            return Nanoseconds(value)
        return _duration(value, path, problems)
    if kind is KubernetesMinor:
        return _minor(value, path, problems)
    origin = get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise _problem(problems, path, f"must be a list, is {_shown(value)}")
        items = (_try(item, get_args(kind)[0], f"{path}[{i}]", problems) for i, item in enumerate(value))
        return tuple(item for item in items if item is not MISSING)
    if origin is dict:
        if not isinstance(value, dict):
            raise _problem(problems, path, f"must be a mapping, is {_shown(value)}")
        pairs = {k: _try(v, get_args(kind)[1], f"{path}.{k}", problems) for k, v in value.items()}
        return {str(k): v for k, v in pairs.items() if v is not MISSING}
    return _scalar(value, kind, path, problems)


def _scalar(value: Any, kind: Any, path: str, problems: Problems) -> Any:
    if isinstance(kind, type) and issubclass(kind, StrEnum) and value == "":
        return next(iter(kind))  # blank means the default, which stands first
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise _problem(problems, path, f"must be {_expected(kind)}, is {_shown(value)}") from None


def _duration(value: Any, path: str, problems: Problems) -> Duration:
    if not isinstance(value, str):
        raise _problem(problems, path, f'must be text with a unit, such as "30s", is {_shown(value)}')
    try:
        return durations.parse(value)
    except ValueError as error:
        raise _problem(problems, path, f"{error}, is {_shown(value)}") from None


def _minor(value: Any, path: str, problems: Problems) -> KubernetesMinor:
    try:  # unquoted, 1.37 is a number, and 1.40 is 1.4
        return minors.parse(str(value))
    except ValueError as error:
        hint = "; write it in quotes" if isinstance(value, float) else ""
        raise _problem(problems, path, f"{error}, is {_shown(value)}{hint}") from None


def _try(value: Any, kind: Any, path: str, problems: Problems) -> Any:
    try:
        return _value(value, kind, path, problems)
    except _Invalid:
        return MISSING


# ---------------------------------------------------------------- messages


def _problem(problems: list[str], path: str, reason: str) -> _Invalid:
    problems.append(f"{path}: {reason}")
    return _Invalid()


def _expected(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    if get_origin(kind) is Annotated:
        return "a 32-bit whole number"
    parts = [kind] if isinstance(kind, type) else get_args(kind)
    return " or ".join(NAMES[p] for p in parts)


def _shown(value: Any) -> str:
    """VALUE as in the file, cut short; of a collection only its kind."""
    if isinstance(value, (dict, list)):
        return NAMES[type(value)]
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _suggestion(name: Any, known: dict[str, tuple[str, Any]]) -> str:
    """A hint for a name that differs only in case from a known one."""
    near = next((k for k in known if k.lower() == str(name).lower()), None)
    return f" (is {near} meant?)" if near else ""


@cache
def _fields(cls: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    """Attribute and type of each field of CLS, by the field's name in the file."""
    return {f.encode_name: (f.name, f.type) for f in msgspec.structs.fields(cls)}
