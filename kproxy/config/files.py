"""Reading and writing a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from kproxy.config import decode, defaults, encode, validate
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.errors import InvalidConfig, KproxyError


class Loaded(NamedTuple):
    """A complete, valid configuration, and a line for each field of its file that is unknown, stands twice, or has a
    wrong value which nothing uses."""

    config: KubeProxyConfiguration
    unknown: tuple[str, ...]


def from_text(text: str) -> KubeProxyConfiguration:
    """The complete, valid configuration in TEXT (YAML or JSON). Raises InvalidConfig with every problem."""
    return _load(text).config


def _load(text: str, mode: ProxyMode | None = None) -> Loaded:
    values, twice = decode.parse_text(text)
    config, problems = decode.decode(values)
    if mode is not None:
        config = replace(config, mode=mode)
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


def load(path: Path, mode: ProxyMode | None = None) -> Loaded:
    """What the file PATH holds. Raises InvalidConfig, each problem with the name of the file in front.

    mode: takes the place of the file's, before anything depends on it: defaults that differ by mode are MODE's.
    """
    try:
        return _load(path.read_bytes().decode(), mode)
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
