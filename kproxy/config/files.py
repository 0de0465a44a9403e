"""Reading and writing a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kproxy.config import decode, defaults, encode, validate
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.errors import InvalidConfig, KproxyError

__all__ = ["Loaded", "from_text", "load", "read", "write"]


class Loaded(NamedTuple):
    """A complete, valid configuration, and a line for each field of its file that is unknown, stands twice, or has a
    wrong value which nothing uses."""

    config: KubeProxyConfiguration
    unknown: tuple[str, ...]


def from_text(text: str) -> KubeProxyConfiguration:
    """The complete, valid configuration in TEXT (YAML or JSON). Raises InvalidConfig with every problem."""
    return _load(text).config


def _load(text: str) -> Loaded:
    values, twice = decode.parse_text(text)
    config, problems = decode.decode(values)
    config = defaults.complete(config, frozenset(values))
    broken = {p.split(": ", 1)[0] for p in problems}
    problems += [f"{field}: {reason}" for field, reason in validate.problems(config) if field not in broken]
    dormant = (f"{field}: {reason}" for field, reason in validate.dormant(config) if field not in broken)
    unknown = (*twice, *problems.unknown, *dormant)
    if problems:  # whoever mends the file will want to know of these too
        raise InvalidConfig([*problems, *unknown])
    return Loaded(config, unknown)


def read(path: Path) -> KubeProxyConfiguration:
    """The configuration in the file PATH, as `load` reads it."""
    return load(path).config


def load(path: Path) -> Loaded:
    """What the file PATH holds. Raises InvalidConfig, each problem with the name of the file in front."""
    try:
        return _load(path.read_bytes().decode())
    except OSError as error:
        raise InvalidConfig([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidConfig([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except InvalidConfig as error:
        raise InvalidConfig([f"{path}: {problem}" for problem in error.problems]) from error


def write(config: KubeProxyConfiguration, path: Path) -> None:
    """Write CONFIG to the file PATH as YAML. Raises KproxyError when it cannot be written."""
    try:
        path.write_text(encode.to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise KproxyError(f"{path}: {error.strerror}") from error
