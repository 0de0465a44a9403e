"""The command line as /flagz shows it: every flag, with the value that it was given or its default, as Go prints it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kproxy.cli import values
from kproxy.cli.flags import FLAGS, Flag

__all__ = ["flag_layer"]

# What Go prints for a value that was never set.
ZEROS = {"bool": "false", "version[=true]": "false", "int32": "0", "duration": "0s", "strings": "[]", "Level": "0"}
_PASSWORD = re.compile(r"(?<=://)[^/\s@]*@")


def flag_layer(texts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """TEXTS, the flags that were given, and the defaults of all others, by name. Without passwords inside of URLs.

    This is the command line alone: what the configuration file says in its place is at /configz.
    """
    return {flag.name: _PASSWORD.sub("(hidden)@", _value(flag, texts.get(flag.name, ()))) for flag in FLAGS}


def _value(flag: Flag, given: Sequence[str]) -> str:
    if not given:
        return flag.default or ZEROS.get(flag.type, "")
    if flag.type == "bool":
        return "true" if values.parse("bool", given) else "false"
    if flag.type == "strings":
        return f"[{','.join(values.parse('strings', given))}]"
    return given[-1] if flag.type not in values.REPEATABLE else ",".join(given)
