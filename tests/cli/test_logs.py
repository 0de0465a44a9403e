"""Lines of logs: form, verbosity, secrets."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leave logging as it was found."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logs.get("test")._logger.setLevel(logging.NOTSET)
    logging.getLogger("kproxy").setLevel(logging.NOTSET)


def lines(form: str, verbosity: int = 0, modules: dict[str, int] | None = None) -> io.StringIO:
    stream = io.StringIO()
    logs.setup(form, verbosity, modules, stream)
    return stream


def test_a_line_of_text_has_severity_time_part_message_and_values() -> None:
    stream = lines("text")
    logs.get("test").info("Synced", family="IPv4", seconds=0.25, count=3, ok=True, nothing=None)
    assert re.fullmatch(
        r'I\d{4} \d\d:\d\d:\d\d\.\d{6} test\] "Synced" family="IPv4" seconds=0.25 count=3 ok=true nothing=null\n',
        stream.getvalue(),
    )


def test_a_line_of_json_has_the_same() -> None:
    stream = lines("json", 3)
    logs.get("test").v(2).info("Synced", family="IPv4", seconds=0.25, places=("a", "b"))
    line = json.loads(stream.getvalue())
    assert line.pop("ts") > 1.7e12
    places = ["a", "b"]
    assert line == {
        "level": "info",
        "v": 2,
        "logger": "test",
        "msg": "Synced",
        "family": "IPv4",
        "seconds": 0.25,
        "places": places,
    }


def test_a_value_cannot_take_the_place_of_the_lines_own_fields() -> None:
    stream = lines("json")
    logs.get("test").info("Said", msg="other", message="m", level=1, error="e")
    line = json.loads(stream.getvalue())
    assert (line["msg"], line["msg_"], line["message"], line["level"], line["level_"]) == (
        "Said",
        "other",
        "m",
        "info",
        1,
    )


@pytest.mark.parametrize("verbosity", range(11))
def test_verbosity_says_what_is_written(verbosity: int) -> None:
    stream = lines("text", verbosity)
    log = logs.get("test")
    for n in range(11):
        log.v(n).info(f"line {n}")
        assert bool(log.v(n)) is (n <= verbosity)
    assert len(stream.getvalue().splitlines()) == verbosity + 1


def test_warnings_and_errors_are_always_written() -> None:
    stream = lines("text")
    logs.get("test").warning("Careful", n=1)
    logs.get("test").error("Failed", ValueError("why"), n=2)
    first, second = stream.getvalue().splitlines()
    assert (first[0], second[0]) == ("W", "E")
    assert second.endswith('"Failed" err="why" n=2')


@pytest.mark.parametrize(("verbosity", "follows"), [(3, False), (4, True)])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_follows_an_error_from_verbosity_four_on(form: str, verbosity: int, follows: bool) -> None:
    stream = lines(form, verbosity)
    try:
        raise ValueError("why")
    except ValueError as error:
        logs.get("test").error("Failed", error)
    assert ("Traceback" in stream.getvalue()) is follows
    assert logs.traceback_wanted() is follows


def test_a_part_may_have_a_verbosity_of_its_own() -> None:
    stream = lines("text", 0, {"test": 4})
    logs.get("test").v(4).info("in detail")
    logs.get("other").v(1).info("not wanted")
    assert len(stream.getvalue().splitlines()) == 1
    lines("text", 0)
    assert not logs.get("test").v(1)


def test_libraries_lines_come_out_in_the_same_form() -> None:
    stream = lines("json")
    logging.getLogger("some.library").warning("took %s tries", 3)
    logging.getLogger("some.library").info("chatter")
    line = json.loads(stream.getvalue())
    assert (line["logger"], line["level"], line["msg"]) == ("some.library", "warning", "took 3 tries")


SECRETS = [
    {"token": "s3cr3t-value"},
    {"bearer_token": "s3cr3t-value"},
    {"password": "s3cr3t-value"},
    {"client_key_data": "s3cr3t-value"},
    {"headers": {"Authorization": "s3cr3t-value"}},
    {"header": "Bearer s3cr3t-value"},
    {"header": "authorization: Basic s3cr3t-value="},
    {"url": "https://user:s3cr3t-value@10.0.0.1/"},
    {"options": ["a", "Bearer s3cr3t-value"]},
    {"text": "got eyJhbGciOi.eyJzdWIiOiJ4.s3cr3t-value back"},
]


@pytest.mark.parametrize("fields", SECRETS, ids=range(len(SECRETS)))
@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_not_written(form: str, fields: dict[str, object]) -> None:
    stream = lines(form, 4)
    logs.get("test").info("Connected", **fields)
    logs.get("test").error("Failed", ValueError(f"{fields}") if "header" in fields else None)
    assert "s3cr3t-value" not in stream.getvalue()
    assert "(hidden)" in stream.getvalue()


@given(st.text(), st.text(), st.sampled_from(["text", "json"]))
def test_any_text_stays_on_one_line(message: str, value: str, form: str) -> None:
    stream = lines(form)
    logs.get("test").info(message, value=value)
    assert stream.getvalue().count("\n") == 1
    assert "\r" not in stream.getvalue()


def test_values_that_json_does_not_know_become_text() -> None:
    stream = lines("json")
    logs.get("test").info("x", infinite=float("inf"), these={"b", "a"}, path=re.compile("p"), by={1: {2: None}})
    line = json.loads(stream.getvalue())
    assert (line["infinite"], line["these"], line["by"]) == ("inf", ["a", "b"], {"1": {"2": None}})
