"""Debian's Chromium without a window, driven over the DevTools protocol.

    with Browser() as browser:
        sight = browser.look(url, width=400)

Scripts of pages are off. Source: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

START = 60.0  # seconds
HEIGHT = 900


def program() -> str | None:
    """Return the path of Chromium, None when it is not installed."""
    return shutil.which("chromium")


@dataclass(frozen=True, slots=True)
class Sight:
    """A page as it was laid out. text: all that is visible. outside: the texts of boxes beyond the right edge."""

    content_width: float
    text: str
    outside: tuple[str, ...]
    links: Mapping[str, str]


class Browser:
    """A process with a profile of its own, within `with`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kproxy-browser-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Browser:
        found = program()
        assert found is not None
        self._process = subprocess.Popen(
            [
                *(found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
                *("--remote-debugging-port=0", f"--user-data-dir={self._folder.name}", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def look(self, url: str, width: int, dark: bool = False) -> Sight:
        """Load a page in a window of `width` CSS pixels, and return what is there."""
        return asyncio.run(self._look(url, width, dark))

    def _port(self) -> int:
        file = Path(self._folder.name, "DevToolsActivePort")
        until = time.monotonic() + START
        while not (file.exists() and file.read_text().strip()):
            assert self._process is not None
            assert self._process.poll() is None, "the browser ended"
            assert time.monotonic() < until, "the browser did not start"
            time.sleep(0.05)
        return int(file.read_text().split()[0])

    async def _look(self, url: str, width: int, dark: bool) -> Sight:
        base = f"http://127.0.0.1:{self._port()}"
        async with ClientSession() as session:
            async with session.put(f"{base}/json/new?about:blank") as answer:
                target = await answer.json()
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                sight = await _Tab(socket).look(url, width, dark)
            async with session.get(f"{base}/json/close/{target['id']}"):
                return sight


class _Tab:
    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._events: list[str] = []

    async def look(self, url: str, width: int, dark: bool) -> Sight:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._call("Page.enable")
        await self._call("Emulation.setScriptExecutionDisabled", value=True)
        await self._call("Emulation.setEmulatedMedia", features=[scheme])
        await self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=width < 600
        )
        self._events.clear()
        await self._call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._note(await self._socket.receive_json(timeout=START))
        metrics = await self._call("Page.getLayoutMetrics")
        snapshot = await self._call("DOMSnapshot.captureSnapshot", computedStyles=[])
        texts, outside = _laid_out(snapshot, width)
        return Sight(metrics["cssContentSize"]["width"], texts, outside, _links(snapshot))

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = await self._socket.receive_json(timeout=START)
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: Mapping[str, Any]) -> None:
        self._events.append(message.get("method", ""))


def _laid_out(snapshot: Mapping[str, Any], width: int) -> tuple[str, tuple[str, ...]]:
    """Return all text that is laid out, and the texts of boxes that end beyond `width`."""
    strings, layout = snapshot["strings"], snapshot["documents"][0]["layout"]
    boxes = [
        (strings[text].strip(), bounds)
        for text, bounds in zip(layout["text"], layout["bounds"], strict=True)
        if text >= 0 and strings[text].strip()
    ]
    outside = tuple(text for text, (left, _, wide, _) in boxes if left + wide > width + 1 and wide > 1)
    return "\n".join(text for text, _ in boxes), outside


def _links(snapshot: Mapping[str, Any]) -> dict[str, str]:
    """Return the targets of links by their texts."""
    strings, document = snapshot["strings"], snapshot["documents"][0]
    nodes = document["nodes"]
    found: dict[str, str] = {}
    for index, name in enumerate(nodes["nodeName"]):
        if strings[name] == "#text" and strings[nodes["nodeName"][nodes["parentIndex"][index]]] == "A":
            attributes = [strings[i] for i in nodes["attributes"][nodes["parentIndex"][index]]]
            values = dict(zip(attributes[::2], attributes[1::2], strict=True))
            found[strings[nodes["nodeValue"][index]].strip()] = values.get("href", "")
    return found
