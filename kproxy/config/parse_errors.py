"""Describes, in kproxy's own words, what is wrong with text or values that a library refused.

Libraries word a refusal anew with every version, and some point at a place only in their text. So each function goes by
the error's type and position, or looks at the refused text or value itself. They are for what was refused already: that
they find nothing is possible (libraries differ), and then they say only that it cannot be used. Pure.
"""

from __future__ import annotations

import json
from types import NoneType
from typing import Any, get_args, get_origin

import msgspec

from kproxy.config.yaml_reader import TOO_DEEP

_SORTS = {dict: "object", list: "array", NoneType: "null"}


def json_problem(text: str | bytes) -> tuple[str, str]:
    """The place in `text` ("" if unknown) where it stops being JSON, and the reason; both "" when it is JSON."""
    try:
        json.loads(text)
    except RecursionError:
        return "", TOO_DEEP
    except UnicodeDecodeError as error:
        return f"byte {error.start}", "is not UTF-8 text"
    except json.JSONDecodeError as error:
        if not error.doc.strip():
            return "", "is empty"
        if error.pos >= len(error.doc.rstrip()):
            return "", "is no JSON: it ends too early"
        return f"line {error.lineno}, column {error.colno}", "is no JSON"
    except ValueError:
        return "", "has a number that is too long"
    return "", ""


def of_text(text: str | bytes) -> str:
    """One line about `text` that was refused as JSON of a certain form."""
    where, why = json_problem(text)
    return ": ".join(filter(None, (where, why))) or "has not the form that it should have"


def mismatch(value: Any, kind: Any, path: str = "") -> tuple[str, str]:
    """The first place in the plain `value` that does not fit the type `kind`, and why; "" for the place that is all of
    it.

    The place is written from `path` on, as in spec.ports[0].port. Where nothing is found, the reason is no more than
    that it cannot be used.
    """
    return _mismatch(value, kind, path) or (path, "cannot be used")


def _mismatch(value: Any, kind: Any, path: str) -> tuple[str, str] | None:
    choices = get_args(kind) if type(kind) is not type and get_origin(kind) not in (list, dict, tuple) else ()
    if value is None and NoneType in choices:
        return None
    wanted = [choice for choice in choices if choice is not NoneType] or [kind]
    if len(wanted) > 1:
        return _leaf(value, kind, path)
    (only,) = wanted
    origin = get_origin(only) or only
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        return _in_struct(value, origin, path) if isinstance(value, dict) else (path, _expected("object", value))
    if origin is dict:
        if not isinstance(value, dict):
            return path, _expected("object", value)
        _, item = get_args(only) or (Any, Any)
        return _first((each, item, f"{path}[...]") for each in value.values())
    if origin in (list, tuple):
        if not isinstance(value, list):
            return path, _expected("array", value)
        item = (get_args(only) or (Any,))[0]
        return _first((each, item, f"{path}[{number}]") for number, each in enumerate(value))
    return _leaf(value, only, path)


def _in_struct(value: dict[str, Any], kind: type[msgspec.Struct], path: str) -> tuple[str, str] | None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, item in value.items():
        where = f"{path}.{name}" if path else str(name)
        if name in fields:
            if found := _mismatch(item, fields[name].type, where):
                return found
        elif kind.__struct_config__.forbid_unknown_fields:
            return where, "unknown field"
    for name, field in fields.items():
        if field.required and name not in value:
            return f"{path}.{name}" if path else name, "is missing"
    return None


def _first(items: Any) -> tuple[str, str] | None:
    return next(filter(None, (_mismatch(*item) for item in items)), None)


def _leaf(value: Any, kind: Any, path: str) -> tuple[str, str] | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return path, _expected(getattr(kind, "__name__", str(kind)), value)
    except RecursionError:
        return path, TOO_DEEP
    return None


def _expected(kind: str, value: Any) -> str:
    got = _SORTS.get(type(value), type(value).__name__)
    return f"Expected {kind}, got {got}" if got != kind else f"is no {kind} that can be used"
