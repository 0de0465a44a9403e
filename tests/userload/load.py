"""Run as a process of its own: python load.py serve ADDRESS PORT | ask ADDRESS PORT RATE SECONDS.

serve answers each connection with a line and closes it. ask begins RATE connections a second, whatever becomes of those
before, and prints how many were answered, and what became of the others, as JSON.
"""

from __future__ import annotations

import collections
import json
import os
import select
import socket
import sys
import time

LINE = b"here\n"
PATIENCE = 10.0


def serve(address: str, port: int) -> None:
    listening = socket.create_server((address, port), backlog=4096)
    while True:
        connection, _ = listening.accept()
        connection.send(LINE)
        connection.close()


def ask(address: str, port: int, rate: float, seconds: float) -> dict[str, int]:
    """Outcomes: "answered", or the name of what went wrong."""
    waiting, clients = select.epoll(), dict[int, tuple[socket.socket, float]]()
    outcomes: collections.Counter[str] = collections.Counter()
    begin, started = time.monotonic(), 0
    while (now := time.monotonic()) < begin + seconds or clients:
        while now < begin + seconds and started < (now - begin) * rate:
            client = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            client.connect_ex((address, port))
            clients[client.fileno()] = client, now
            waiting.register(client, select.EPOLLIN)
            started += 1
        for fd, _ in waiting.poll(0.002):
            outcomes[_outcome(clients.pop(fd)[0])] += 1
        for fd in [fd for fd, (_, since) in clients.items() if now - since > PATIENCE]:
            clients.pop(fd)[0].close()
            outcomes["timed out"] += 1
    return dict(outcomes)


def _outcome(client: socket.socket) -> str:
    with client:
        try:
            return "answered" if client.recv(100) == LINE else "cut off"
        except OSError as error:
            return os.strerror(error.errno or 0)


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "serve":
        serve(words[0], int(words[1]))
    else:
        print(json.dumps(ask(words[0], int(words[1]), float(words[2]), float(words[3]))))
