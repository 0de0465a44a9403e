"""Lines of the log: form, verbosity, secrets, and that logging never raises."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy import logs


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
    values = {"family": "IPv4", "seconds": 0.25, "places": ["a", "b"]}
    assert line == {"level": "info", "v": 2, "logger": "test", "msg": "Synced", **values}


def test_a_value_cannot_take_the_place_of_the_lines_own_fields() -> None:
    stream = lines("json")
    logs.get("test").info("Said", msg="other", message="m", level=1, error="e")
    line = json.loads(stream.getvalue())
    own = ("Said", "other", "m", "info", 1)
    assert tuple(line[name] for name in ("msg", "msg_", "message", "level", "level_")) == own


@pytest.mark.parametrize("verbosity", range(11))
def test_verbosity_selects_lines(verbosity: int) -> None:
    stream = lines("text", verbosity)
    log = logs.get("test")
    for n in range(11):
        log.v(n).info(f"line {n}")
        assert bool(log.v(n)) is (n <= verbosity)
    assert len(stream.getvalue().splitlines()) == verbosity + 1


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


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_librarys_lines_come_out_in_the_same_form_with_its_fields(form: str) -> None:
    stream = lines(form)
    library = logging.getLogger("some.library")
    library.warning("took %s tries", 3, extra={"server": "10.0.0.1", "token": "s3cr3t", "fields": "odd"})
    library.info("chatter")
    (line,) = stream.getvalue().splitlines()
    if form == "text":
        assert line.endswith('some.library] "took 3 tries" fields="odd" server="10.0.0.1" token="(hidden)"')
    else:
        found = json.loads(line)
        assert (found["logger"], found["level"], found["msg"]) == ("some.library", "warning", "took 3 tries")
        assert (found["server"], found["token"]) == ("10.0.0.1", "(hidden)")


ROOT = Path(__file__).parents[2]


def test_there_is_one_dialect_of_logging() -> None:
    """Only kproxy.logs uses the standard library's: fields that other modules gave to it would be in another form."""
    files = [file for folder in ("kproxy", "modes") for file in (ROOT / folder).rglob("*.py")]
    trees = {file: ast.walk(ast.parse(file.read_text())) for file in files if file != ROOT / "kproxy" / "logs.py"}
    assert len(trees) > 100
    assert [file for file, nodes in trees.items() if any(map(_uses_logging, nodes))] == []


def _uses_logging(node: ast.AST) -> bool:
    imported = {a.name for a in node.names} if isinstance(node, ast.Import) else set()
    return "logging" in imported or (isinstance(node, ast.ImportFrom) and node.module == "logging")


# ---------------------------------------------------------------- what fails


class Odd:
    """A value without a text."""

    def __str__(self) -> str:
        raise ZeroDivisionError("a bug")


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_value_without_a_text_costs_that_value_alone(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    stream = lines(form)
    logs.get("test").error("Failed", None, odd=Odd(), loop=loop, fine=1)
    (handler,) = [h for h in logging.getLogger().handlers if isinstance(h, logs._Handler)]
    handler.handle(logging.LogRecord("library", logging.ERROR, "", 0, "%d of %s", ("x", Odd()), None))
    first, second = stream.getvalue().splitlines()
    assert "(Odd without a text: ZeroDivisionError)" in first
    assert "RecursionError" in first
    assert "fine" in first
    assert "%d of %s" in second
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", ["broken", "closed"])
def test_a_stream_that_fails_neither_raises_nor_prints(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = Broken() if stream == "broken" else io.StringIO()
    if stream == "closed":
        found.close()
    logs.setup("text", 0, None, found)
    for _ in range(3):
        logs.get("test").error("Failed", ZeroDivisionError("oh"))
    assert capsys.readouterr() == ("", "")


def test_a_listener_gets_warnings_and_errors_without_secrets_and_may_fail() -> None:
    heard: list[logs.Line] = []

    def listener(line: logs.Line) -> None:
        heard.append(line)
        raise ZeroDivisionError("a bug")

    stream = lines("text")
    with logs.listening(listener):
        logs.get("test").info("not this")
        logs.get("test").warning("Careful", token="s3cr3t", n=1)
        logs.get("test").error("Failed", ValueError("why"))
    logs.get("test").error("too late")
    assert [(line.level, line.part, line.message) for line in heard] == [
        ("warning", "test", "Careful"),
        ("error", "test", "Failed"),
    ]
    assert [dict(line.fields) for line in heard] == [{"token": "(hidden)", "n": 1}, {"err": "why"}]
    assert len(stream.getvalue().splitlines()) == 4
