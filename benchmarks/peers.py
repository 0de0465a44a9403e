"""Servers and clients for measuring what carries connections: python -m benchmarks.peers ROLE ARGUMENT...

Each is a process of its own that costs as little as can be: data is sent from a file and thrown away by the kernel.
    serve              prints two ports, each served until standard input ends: one answers a request and closes, one
                       sends without end
    answer PORT        answers requests on all addresses; several processes may share a port. Prints a line when ready
    connect SECONDS PORT [ADDRESS...]   opens connections, OPEN at the same time, to each address in turn; asks, hears,
                       closes; prints how many a second
    ask COUNT PORT ADDRESS...   opens one connection after the other; prints the seconds from the first packet to the
                       first answer of each
    pull SECONDS PORT      reads from one connection; prints how many bytes a second
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence

REQUEST = b"GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PIECE = 8 << 20
OPEN = 16
HOST = "127.0.0.1"


def serve() -> None:
    answering, sending = socket.create_server((HOST, 0), backlog=4096), socket.create_server((HOST, 0))
    for call, listening in ((_answer, answering), (_send, sending)):
        threading.Thread(target=call, args=(listening,), daemon=True).start()
    print(answering.getsockname()[1], sending.getsockname()[1], flush=True)
    sys.stdin.read()


def answer(port: int) -> None:
    listening = socket.create_server(("", port), backlog=4096, reuse_port=True)
    print("ready", flush=True)
    _answer(listening)


def connect(seconds: float, port: int, addresses: Sequence[str] = (HOST,)) -> float:
    waiting, clients, turns = select.epoll(), dict[int, socket.socket](), itertools.cycle(addresses)

    def begin() -> None:
        client = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client.connect_ex((next(turns), port))
        clients[client.fileno()] = client
        waiting.register(client, select.EPOLLOUT)

    for _ in range(OPEN):
        begin()
    count, began = 0, time.monotonic()
    while time.monotonic() < began + seconds:
        for fd, events in waiting.poll(1):
            if events & select.EPOLLOUT:
                clients[fd].send(REQUEST)
                waiting.modify(fd, select.EPOLLIN)
                continue
            client = clients.pop(fd)
            if client.recv(1000) != ANSWER:
                raise SystemExit("an answer was lost")
            client.close()
            begin()
            count += 1
    return count / (time.monotonic() - began)


def ask(count: int, port: int, addresses: Sequence[str]) -> list[float]:
    took, room = [], len(ANSWER)
    for address in itertools.islice(itertools.cycle(addresses), count):
        with socket.socket() as client:
            client.settimeout(10)
            began = time.monotonic()
            client.connect((address, port))
            client.send(REQUEST)
            if client.recv(room) != ANSWER:
                raise SystemExit("an answer was lost")
            took.append(time.monotonic() - began)
    return took


def pull(seconds: float, port: int) -> float:
    got, began = 0, time.monotonic()
    room = bytearray(PIECE)
    with socket.create_connection((HOST, port)) as client:
        while time.monotonic() < began + seconds:
            got += client.recv_into(room, PIECE, socket.MSG_TRUNC)
    return got / (time.monotonic() - began)


def main(argv: list[str]) -> None:
    match argv:
        case ["serve"]:
            serve()
        case ["answer", port]:
            answer(int(port))
        case ["connect", seconds, port, *addresses]:
            print(connect(float(seconds), int(port), addresses or (HOST,)))
        case ["ask", count, port, *addresses]:
            print(json.dumps(ask(int(count), int(port), addresses)))
        case ["pull", seconds, port]:
            print(pull(float(seconds), int(port)))
        case _:
            raise SystemExit(__doc__)


def _answer(listening: socket.socket) -> None:
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)  # no waiting for what was not asked yet
    while True:
        client, _ = listening.accept()
        with client, contextlib.suppress(OSError):
            client.recv(1000)
            client.send(ANSWER)


def _send(listening: socket.socket) -> None:
    file = os.memfd_create("piece")
    os.truncate(file, PIECE)
    while True:
        client, _ = listening.accept()
        threading.Thread(target=_send_on, args=(client, file), daemon=True).start()


def _send_on(client: socket.socket, file: int) -> None:
    with client:
        try:
            while True:
                os.sendfile(client.fileno(), file, 0, PIECE)
        except OSError:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
