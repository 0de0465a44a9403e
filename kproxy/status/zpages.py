"""/statusz and /flagz in the form of Kubernetes' components (KEP-4827, KEP-4828): text, or JSON on request. Pure.

    Accept: application/json;v=v1beta1;g=config.k8s.io;as=Statusz

The binary version is kproxy's own, and the Go version names Python's; the emulation version is kube-proxy's.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kproxy.clocks import rfc3339

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

_COMPONENT = "kube-proxy"
_GROUP = "config.k8s.io"
_VERSIONS = ("v1beta1", "v1alpha1")
# Word for word as in Kubernetes, since tools recognise the pages by it.
_WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is "
    "for debugging purposes only."
)


@dataclass(frozen=True, slots=True)
class Uptime:
    """When the process started, in UTC, and for how many seconds it has run."""

    started: datetime
    seconds: int

    def __str__(self) -> str:
        """3 hr 04 min 05 sec"""
        return f"{self.seconds // 3600} hr {self.seconds // 60 % 60:02} min {self.seconds % 60:02} sec"


def negotiate(accept: str, kind: str) -> str | None:
    """Return the API version of `kind` (Statusz, Flagz) that the request's header Accept asks for.

    "" for text; None when no form that it accepts is available, which is HTTP status 406.
    """
    if not accept.strip():
        return ""
    for entry in accept.split(","):
        media, *parameters = (part.strip() for part in entry.split(";"))
        given = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in parameters)}
        if media in ("text/plain", "text/*", "*/*") and not given.keys() & {"as", "v", "g"}:
            return ""
        if media == JSON and given.get("as") == kind and given.get("g") == _GROUP and given.get("v") in _VERSIONS:
            return given["v"]
    return None


def statusz(uptime: Uptime, version: str, emulates: str, paths: Iterable[str], api: str = "") -> bytes:
    """Return the page /statusz.

    version: kproxy's. emulates: the minor of Kubernetes that is followed. paths: of this server. api: as `negotiate`
    returned it.
    """
    python = f"none (Python {platform.python_version()})"
    shown = sorted(path for path in paths if path != "/")
    if api:
        return _structured(
            "Statusz",
            api,
            startTime=rfc3339(uptime.started.replace(microsecond=0)),
            uptimeSeconds=uptime.seconds,
            goVersion=python,
            binaryVersion=version,
            emulationVersion=emulates,
            paths=shown,
        )
    return _text(
        "statusz",
        "",
        f"Started: {uptime.started:%a %b %e %H:%M:%S UTC %Y}",
        f"Up: {uptime}",
        f"Go version: {python}",
        f"Binary version: {version}",
        f"Emulation version: {emulates}",
        f"Paths: {' '.join(shown)}",
    )


def flagz(flags: Mapping[str, str], api: str = "") -> bytes:
    """Return the page /flagz, sorted by name. api: as `negotiate` returned it."""
    if api:
        return _structured("Flagz", api, flags=dict(sorted(flags.items())))
    return _text("flagz", *(f"{name}={value}" for name, value in sorted(flags.items())))


def _text(page: str, *lines: str) -> bytes:
    return "\n".join(["", f"{_COMPONENT} {page}", _WARNING, *lines, ""]).encode()


def _structured(kind: str, api: str, **fields: Any) -> bytes:
    head = {"kind": kind, "apiVersion": f"{_GROUP}/{api}", "metadata": {"name": _COMPONENT}}
    return json.dumps({**head, **fields}, indent=2).encode() + b"\n"
