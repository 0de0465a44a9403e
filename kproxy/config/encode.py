"""From the configuration's fields back to plain values and YAML, as `--write-config-to` and /configz give them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
import yaml

from kproxy.config.durations import Duration
from kproxy.config.fields import KubeProxyConfiguration, Userspace

# kube-proxy leaves these out when they are empty; every other field is always written.
OMIT_EMPTY = {"featureGates", "vmodule", "windowsRunAsService", "splitStream"}
# kube-proxy does not know these: a file that says nothing of them can be read by it.
OMIT_STANDARD = {"userspace": Userspace()}


def to_values(config: KubeProxyConfiguration) -> dict[str, Any]:
    """CONFIG as values that any JSON or YAML writer takes, by the names of the file."""
    return _struct(config)


def to_yaml(config: KubeProxyConfiguration) -> str:
    """CONFIG as a file that `--config` reads back to an equal configuration."""
    # All but ASCII is escaped: PyYAML writes some line separators (U+0085) in a way that it does not read back itself.
    return yaml.safe_dump(to_values(config), default_flow_style=False, allow_unicode=False)


def _struct(value: msgspec.Struct) -> dict[str, Any]:
    fields = ((f.encode_name, getattr(value, f.name)) for f in msgspec.structs.fields(value))
    return {name: _plain(v) for name, v in fields if _written(name, v)}


def _written(name: str, value: Any) -> bool:
    if name in OMIT_STANDARD:
        return bool(value != OMIT_STANDARD[name])
    return bool(value) or name not in OMIT_EMPTY


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _struct(value)
    if isinstance(value, (Duration, StrEnum)):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value] or None
    return value
