"""Random changes under random trouble: whatever happens, in the end the source knows what the server has."""

from __future__ import annotations

import random

import pytest

from tests.fakes.apifaults import Cut, CutBody, EndAtOnce, ErrorEvent, Fault, Garbled, Hang, Refuse, Unended
from tests.fakes.apihandler import Rules
from tests.fakes.apiserver import ApiServer
from tests.sources.cluster import agrees, endpoint_slice, fill, service
from tests.sources.conftest import Follow

FAULTS: list[tuple[str, Fault]] = [
    *[("watch", fault) for fault in (Cut(0), Cut(2), Garbled(0), Garbled(1), EndAtOnce(), ErrorEvent(410))],
    *[("watch", fault) for fault in (ErrorEvent(500), Refuse(410), Refuse(500), Hang())],
    *[
        ("stream", fault)
        for fault in (Cut(2), Garbled(1), EndAtOnce(), Unended(), Refuse(422), ErrorEvent(504), Hang())
    ],
    *[("list", fault) for fault in (CutBody(), Refuse(500), Refuse(410), Hang())],
]


@pytest.mark.parametrize("seed", range(6))
def test_the_truth_wins(follow: Follow, seed: int) -> None:
    draw = random.Random(seed)
    rules = Rules(gone_as=draw.choice(("status", "event")))
    with ApiServer(bookmark_seconds=0.1, history=draw.choice([5, 1000]), rules=rules) as server:
        fill(server)
        mirror, _ = follow(server, streamed=bool(seed % 2), read_timeout=0.3)
        for _ in range(12):
            for _ in range(draw.randrange(3)):
                verb, fault = draw.choice(FAULTS)
                server.inject(fault, verb, draw.choice(["Service", "EndpointSlice"]))
            for _ in range(draw.randrange(12)):
                name = f"s{draw.randrange(6)}"
                match draw.randrange(4):
                    case 0:
                        server.delete("Service", "default", name)
                    case 1:
                        server.apply(endpoint_slice(name, f"10.244.0.{draw.randrange(9)}"))
                    case _:
                        server.apply(service(name, ip=f"10.96.0.{draw.randrange(9)}"))
            match draw.randrange(5):
                case 0:
                    server.compact()
                case 1:
                    server.break_connections()
                case 2:
                    server.go_down()
                    server.come_up()
            mirror.wait(lambda m: agrees(server, m), draw.random() / 2)
        server.clear_faults()
        server.break_connections()  # a watch may still hold a fault that waits for its turn
        assert mirror.wait(lambda m: agrees(server, m))
