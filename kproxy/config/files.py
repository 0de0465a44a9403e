"""Reads and writes configuration files.

Reading is `decode` (form), `defaults` and `validate` (meaning) one after the other, with all problems at once. Written
is what kube-proxy writes: `--write-config-to` as YAML, /configz as values.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml
from msgspec.structs import replace

from kproxy.config import decode, defaults, minors, validate
from kproxy.config.durations import Duration, Nanoseconds
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode, Userspace
from kproxy.config.minors import KubernetesMinor
from kproxy.errors import InvalidConfig, KproxyError
from kproxy.files import read_file

# kube-proxy leaves these out when they are empty; every other field is always written.
_OMIT_EMPTY = {"featureGates", "vmodule", "windowsRunAsService", "splitStream"}
# kube-proxy does not know these: it can read a file that leaves them out.
_OMIT_STANDARD = {"userspace": Userspace(), "emulateVersion": minors.DEFAULT}


class Loaded(NamedTuple):
    """A complete, valid configuration.

    ignored: a line for each field of its file that is unknown, appears twice, or has an invalid value that is not used,
    and for further YAML documents. mode_given: whether the mode is more than the default.
    """

    config: KubeProxyConfiguration
    ignored: tuple[str, ...]
    mode_given: bool


# ---------------------------------------------------------------- reading


def load(path: Path, mode: ProxyMode | None = None, minor: KubernetesMinor | None = None) -> Loaded:
    """The configuration in the file PATH. Raises InvalidConfig, each problem with the name of the file in front.

    mode, minor: replace the file's before anything depends on them, such as defaults and what is valid.
    """
    try:
        return _load(read_file(path).decode(), mode, minor)
    except OSError as error:
        raise InvalidConfig([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidConfig([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except InvalidConfig as error:
        raise InvalidConfig([f"{path}: {problem}" for problem in error.problems]) from error


def read(path: Path) -> KubeProxyConfiguration:
    """The configuration in the file PATH, as `load` reads it."""
    return load(path).config


def from_text(text: str, minor: KubernetesMinor | None = None) -> KubeProxyConfiguration:
    """The complete, valid configuration in TEXT (YAML or JSON). Raises InvalidConfig with every problem.

    minor: as for `load`.
    """
    return _load(text, None, minor).config


def _load(text: str, mode: ProxyMode | None, minor: KubernetesMinor | None) -> Loaded:
    values, twice = decode.parse_text(text)
    config, problems = decode.decode(values)
    if mode is not None:
        config = replace(config, mode=mode)
    if minor is not None:
        config = replace(config, emulate_version=minor)
    broken = {p.split(": ", 1)[0] for p in problems}
    config = defaults.complete(config, frozenset(values))
    problems += [f"{field}: {reason}" for field, reason in validate.problems(config) if field not in broken]
    passed_over = (f"{field}: {reason}" for field, reason in validate.passed_over(config) if field not in broken)
    ignored = (*twice, *problems.unknown, *passed_over)
    if problems:  # whoever corrects the file will want to know of these too
        raise InvalidConfig([*problems, *ignored])
    return Loaded(defaults.without_unused(config), ignored, mode_given=bool(mode or values.get("mode")))


# ---------------------------------------------------------------- writing


def write(config: KubeProxyConfiguration, path: Path) -> None:
    """Write CONFIG to the file PATH as YAML. Raises KproxyError when it cannot be written."""
    try:
        path.write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise KproxyError(f"{path}: {error.strerror}") from error


def to_yaml(config: KubeProxyConfiguration) -> str:
    """CONFIG as the text of a file that `--config` reads back to an equal configuration."""
    # All but ASCII is escaped: PyYAML writes some line separators (U+0085) in a way that it does not read back itself.
    return yaml.safe_dump(to_values(config), default_flow_style=False, allow_unicode=False)


def to_values(config: KubeProxyConfiguration) -> dict[str, Any]:
    """CONFIG as values that any JSON or YAML writer takes, by the names of the file."""
    return _struct(config)


def _struct(value: msgspec.Struct) -> dict[str, Any]:
    fields = ((f.encode_name, getattr(value, f.name)) for f in msgspec.structs.fields(value))
    return {name: _plain(v) for name, v in fields if _written(name, v)}


def _written(name: str, value: Any) -> bool:
    if name in _OMIT_STANDARD:
        return bool(value != _OMIT_STANDARD[name])
    return bool(value) or name not in _OMIT_EMPTY


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _struct(value)
    if isinstance(value, Nanoseconds):
        return int(value)
    if isinstance(value, (Duration, StrEnum, KubernetesMinor)):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value] or None
    return value
