"""python-iptables as a process: one family's legacy tables, read and written by code that is not ours.

    python python_iptables.py ipv4|ipv6

Each line of the standard input is a request in JSON, each line of the output its answer. {"read": ""} gives the tables
filter and nat as text that iptables-restore would load. {"prepare": TEXT} reads the tables and carries out such text on
what it read (it knows "*TABLE", ":CHAIN", "-A", "-D" and "-F"), {"commit": ""} hands the result to the kernel; both are
answered by "". {"error": WORDS} says what the library raised.

It is a process of its own since the library finds some extensions only for the first family that is asked for, and
catches what they print by taking the standard output away from everybody else. docs/decisions.md has what it cannot do.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import iptc

IPV6 = sys.argv[1:] == ["ipv6"]
TABLE, RULE = (iptc.Table6, iptc.Rule6) if IPV6 else (iptc.Table, iptc.Rule)
FIELDS = {"-s": "src", "-d": "dst", "-p": "protocol", "-i": "in_interface", "-o": "out_interface"}
NAMES = ("filter", "nat")


def read() -> str:
    return "".join(f"{line}\n" for name in NAMES for line in _table(iptc.easy.dump_table(name, IPV6), name))


def _table(chains: dict[str, list[dict[str, Any]]], name: str) -> Iterator[str]:
    yield f"*{name}"
    yield from (f":{chain} - [0:0]" for chain in chains)
    for chain, rules in chains.items():
        yield from (shlex.join(["-A", chain, *_words(rule)]) for rule in rules)
    yield "COMMIT"


def _words(rule: dict[str, Any]) -> Iterator[str]:
    for option, field in FIELDS.items():
        if value := rule.pop(field.replace("_", "-"), ""):
            yield from (*("!" * value.startswith("!")), option, value.removeprefix("!"))
    target = rule.pop("target", None)
    del rule["counters"]
    for match, options in rule.items():
        yield from ("-m", match, *_options(options))
    if isinstance(target, dict):
        ((name, options),) = target.items()
        yield from ("-j", name, *_options(options))
    elif target:
        yield from ("-j", target)


def _options(options: dict[str, str | list[str]]) -> Iterator[str]:
    for name, value in options.items():
        values = [value] if isinstance(value, str) else value
        yield from (*("!" * (values[0] == "!")), f"--{name}", *(word for word in values if word not in ("!", "")))


def prepare(text: str) -> str:
    for section in text.split("*")[1:]:
        name, *lines = section.splitlines()
        table = TABLE(name, autocommit=False)
        table.refresh()
        for line in lines:
            _carry_out(table, line)
    return ""


def commit() -> str:
    for table in (TABLE(name, autocommit=False) for name in NAMES):
        try:
            table.commit()
        finally:
            table.refresh()
    return ""


def _carry_out(table: Any, line: str) -> None:
    verb, *words = shlex.split(line)
    if verb.startswith(":") and not table.is_chain(verb[1:]):
        table.create_chain(verb[1:])
    elif verb == "-F":
        iptc.Chain(table, words[0]).flush()
    elif verb in ("-A", "-D"):
        chain, rule = iptc.Chain(table, words[0]), _rule(words[1:])
        (chain.append_rule if verb == "-A" else chain.delete_rule)(rule)


def _rule(words: list[str]) -> Any:
    rule, part, left, negated = RULE(), None, [*words], False
    while left:
        word = left.pop(0)
        values: list[str] = []
        while left and left[0] != "!" and not left[0].startswith("-"):
            values.append(left.pop(0))
        given = ["!"] * negated + values
        negated = word == "!"
        if word in FIELDS:
            setattr(rule, FIELDS[word], "".join(given))
        elif word == "-m":
            part = rule.create_match(values[0])
        elif word == "-j":
            part = rule.create_target(values[0])
        elif not negated:
            assert part, words
            part.set_parameter(word.removeprefix("--"), given or None)
    if not rule.target:
        rule.create_target("")
    return rule


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # for the library, standard output is a pipe now and then
    for request in sys.stdin:
        ((verb, text),) = json.loads(request).items()
        try:
            answer: object = prepare(text) if verb == "prepare" else {"read": read, "commit": commit}[verb]()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
