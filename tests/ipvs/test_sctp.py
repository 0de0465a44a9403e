"""SCTP associations through a virtual server."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from kproxy.model.plans import Family, Protocol, ServicePlan
from tests.ipvs.nodes import CLIENTS, PATIENCE, PODS, TARGET, Node, with_pods

pytestmark = pytest.mark.ipvs_kernel

RECVERR = {  # the kernel's report of a refusal is for whoever asks for it (ip(7), ipv6(7))
    Family.IPV4: (socket.IPPROTO_IP, 11),
    Family.IPV6: (socket.IPPROTO_IPV6, 25),
}
SOL_SCTP, SCTP_RTOINFO = 132, 0  # include/uapi/linux/sctp.h
# A refusal that comes during the call that asks is lost, so the client asks again: after 200 ms instead of 3 s.
SOON = struct.pack("=iIII", 0, 200, 60000, 100)


def endpoint(family: Family, address: str, port: int = 0) -> socket.socket:
    kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    made = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    made.settimeout(PATIENCE)
    made.setsockopt(SOL_SCTP, SCTP_RTOINFO, SOON)
    made.bind((address, port))  # else it would name all addresses of its namespace to the other side
    return made


@pytest.fixture(params=list(Family), ids=lambda f: f.value)
def served(request: pytest.FixtureRequest, node: Node) -> Iterator[tuple[ServicePlan, socket.socket]]:
    """A Service with one endpoint, and the socket that listens there."""
    family: Family = request.param
    plan = node.plan(family, Protocol.SCTP, pods=["a"])
    node.serve(family, plan)
    with node.pods.call(endpoint, family, PODS["a"].ip(family), TARGET) as listener:
        listener.listen()
        yield plan, listener


def test_an_association_is_served_and_refused_without_endpoints(
    node: Node, served: tuple[ServicePlan, socket.socket]
) -> None:
    plan, listener = served
    with node.client.call(endpoint, plan.family, CLIENTS[plan.family][0]) as client:
        client.connect((plan.cluster_ip, plan.port))
        client.sendall(b"hello")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            assert accepted.recv(16) == b"hello"
            accepted.sendall(b"welcome")
            assert client.recv(16) == b"welcome"

    node.change(with_pods(plan, ()))
    assert node.weights(plan) == {}
    with node.client.call(endpoint, plan.family, CLIENTS[plan.family][0]) as client:
        client.setsockopt(*RECVERR[plan.family], 1)
        client.setblocking(False)
        assert client.connect_ex((plan.cluster_ip, plan.port)) == errno.EINPROGRESS
        poll = select.poll()
        poll.register(client, select.POLLERR)
        assert poll.poll(PATIENCE * 1000)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
