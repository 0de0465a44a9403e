"""The API stand-in as a process of its own, so that what it costs is not counted as the proxy's.

python -m benchmarks.server SERVICES ENDPOINTS ADDRESS PORT_FILE: writes its port to PORT_FILE once all objects are in,
and serves until it is ended.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

from benchmarks.cluster import Shape, items
from kproxy.model.objects import Kind
from tests.fakes.apiserver import ApiServer


def main(arguments: list[str]) -> None:
    services, endpoints, address, file = arguments
    shape = Shape(int(services), int(endpoints))
    with ApiServer(address=address) as server:
        for kind in Kind:
            for item in items(shape, kind):
                server.apply(item)
        gc.freeze()  # what is in by now stays, and need not be looked through again while somebody waits
        spare = Path(f"{file}.part")
        spare.write_text(str(server.port))
        os.replace(spare, file)  # so that a reader never sees half of it
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(sys.argv[1:])
