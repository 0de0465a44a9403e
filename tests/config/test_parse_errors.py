"""What a library refuses is told in kproxy's own words: by the error's type and place, or by the text and the value."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.config.parse_errors import json_problem, mismatch, of_text
from kproxy.config.yaml_reader import TOO_DEEP, Loader, YamlError, load_all

BAD_YAML = {
    "a: ]": ("line 1, column 4", "does not end"),
    "a:\n  - b\n c": ("line 3, column 2", "is missing"),
    "\tx: 1": ("line 1, column 1", "not allowed here"),
    "a: *b": ("line 1, column 4", "alias"),
    "a: !!python/name:os.system x": ("line 1, column 4", "tag"),
    "? [a]\n: b": ("line 1, column 3", "key"),
    "a: b\nc: \x00": ("", "a character"),
    "a: 2026-13-45": ("", "a value"),
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_bad_yaml_is_described_by_the_type_of_the_error_and_its_place(text: str) -> None:
    with pytest.raises(YamlError) as caught:
        load_all(text, Loader)
    where, words = BAD_YAML[text]
    place = f"line {caught.value.line}, column {caught.value.column}" if caught.value.line else ""
    assert (place, words in caught.value.reason) == (where, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"a": 1', "is no JSON: it ends too early"),
        ('{"a": 1}\n}', "line 2, column 1: is no JSON"),
        ('{"a": x}', "line 1, column 7: is no JSON"),
        (b'{"a": "\xff"}', "byte 7: is not UTF-8 text"),
        ("[" * 100_000, TOO_DEEP),
        ("[" + "9" * 5000 + "]", "has a number that is too long"),
        ('{"a": 1}', "has not the form that it should have"),
    ],
)
def test_json_is_told_by_the_text(text: str | bytes, told: str) -> None:
    assert of_text(text) == told


def test_good_json_has_no_problem() -> None:
    assert json_problem('{"a": [1]}') == ("", "")


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    numbers: list[int] = []


class Outer(msgspec.Struct, rename="camel"):
    inner_one: Inner | None = None
    many: list[Inner] | None = None
    labels: dict[str, str | None] | None = None
    either: int | str = 0
    pair: tuple[bool, ...] = ()


MISFITS: list[tuple[Any, tuple[str, str]]] = [
    (1, ("", "Expected object, got int")),
    ({"innerOne": []}, ("innerOne", "Expected object, got array")),
    ({"innerOne": {}}, ("innerOne.name", "is missing")),
    ({"innerOne": {"name": "a", "nmae": "b"}}, ("innerOne.nmae", "unknown field")),
    ({"many": {}}, ("many", "Expected array, got object")),
    ({"many": [{"name": "a"}, {"name": None}]}, ("many[1].name", "Expected str, got null")),
    ({"many": [{"name": "a", "numbers": [1, 2.5]}]}, ("many[0].numbers[1]", "Expected int, got float")),
    ({"labels": {"a": None, "b": 1}}, ("labels[...]", "Expected str, got int")),
    ({"either": []}, ("either", "Expected int | str, got array")),
    ({"pair": [True, 0]}, ("pair[1]", "Expected bool, got int")),
    ({"other": 1}, ("", "cannot be used")),  # nothing is wrong with it
]


@pytest.mark.parametrize(("value", "told"), MISFITS, ids=[told[0] or "all" for _, told in MISFITS])
def test_a_value_that_does_not_fit_is_found(value: Any, told: tuple[str, str]) -> None:
    assert mismatch(value, Outer) == told


@pytest.mark.parametrize("value", [value for value, told in MISFITS if told[1] != "cannot be used"])
def test_what_is_found_is_what_the_library_refuses(value: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(value, Outer)
