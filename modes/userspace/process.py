"""A worker of the forwarder: python -m kproxy.modes.userspace.process CONTROL TURNS INDEX NUMBER SETTINGS.

CONTROL is the descriptor of a connected stream socket over which the daemon asks (see messages); TURNS that of a file
in memory that all workers share; the worker is number INDEX of NUMBER; SETTINGS are JSON. The process ends, and with it
every connection, when the daemon closes its end, by intent or by dying.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys

import msgspec

from kproxy import logs
from kproxy.modes.userspace.descriptors import Descriptors, raise_limit
from kproxy.modes.userspace.engine import Crew, Engine
from kproxy.modes.userspace.loop import READ, Loop
from kproxy.modes.userspace.messages import Ask, Count, Counted, Messages, Request, Settings, Update, Updated, packed

ONCE = 65_536

log = logs.get("userspace")


class Control:
    """Answers the daemon, one request a round, so that many of them do not hold up the connections."""

    def __init__(self, engine: Engine, loop: Loop, daemon: socket.socket) -> None:
        self._engine = engine
        self._loop = loop
        self._daemon = daemon
        self._messages = Messages(Ask)
        daemon.setblocking(True)
        loop.add(daemon.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        data = self._daemon.recv(ONCE)
        if not data:
            self._loop.stop()
        for request in self._messages.feed(data):
            self._daemon.sendall(packed(self._answer(request)))

    def abort(self) -> None:
        """It is of no use without the daemon."""
        self._loop.stop()

    def _answer(self, request: Request) -> Updated | Counted:
        match request:
            case Update(family, changes):
                return Updated(self._engine.update(family, changes))
            case Count():
                return Counted(self._engine.statistics())


def main(argv: list[str]) -> None:
    control, turns, index, number = map(int, argv[1:5])
    settings = msgspec.json.decode(argv[5], type=Settings)
    logs.setup(settings.log_format, settings.verbosity)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the daemon decides when it is over
    limit = raise_limit()
    loop = Loop()
    crew = Crew(index, number, memoryview(mmap.mmap(turns, 0)).cast("I"))
    engine = Engine(settings, loop, Descriptors(min(limit, settings.descriptors or limit)), crew)
    Control(engine, loop, socket.socket(fileno=control))
    # What is there now stays; connections come and go without leaving anything for the collector.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        loop.run()
    except Exception as error:
        log.error("The forwarder ends by an unexpected error, which is a bug; another is started", error)
        os._exit(1)
    os._exit(0)  # without tidying up thousands of connections one by one


if __name__ == "__main__":
    main(sys.argv)
