"""Who serves the pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Identity"]


@dataclass(slots=True)
class Identity:
    """What this process says of itself, now: it is looked at for each page.

    mode: the proxy mode in use. config: the effective KubeProxyConfiguration, as JSON values. flags: every flag of the
    command line and its value as text.
    """

    version: str
    mode: str
    config: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
