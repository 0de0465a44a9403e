"""python -m benchmarks.suite.relay FD HOST PORT: carry connections from one network namespace into another.

FD is an inherited socket that listens in the one; HOST and PORT are reached in the one where this process runs. So a
proxy in a namespace of its own reaches an API server that only its host can reach. Bytes pass as they are, TLS too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

PIECE = 1 << 18


async def main(fd: int, host: str, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(host, port)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        writer.close()

    server = await asyncio.start_server(carry, sock=socket.socket(fileno=fd))
    await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
