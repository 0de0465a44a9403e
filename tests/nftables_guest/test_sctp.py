"""SCTP associations in nftables mode: by cluster IP and node port, with affinity, and refused without endpoints."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial

import pytest

from kproxy.lab.clusters import gateway_of
from kproxy.lab.deployment import Deployment
from kproxy.lab.proxies import wait_for
from kproxy.lab.scenarios import End, Port, Scenario, Via
from kproxy.model.plans import Family, Protocol

pytestmark = pytest.mark.ipvs_kernel

SCTP = Port("sig", Protocol.SCTP, 3868, 3868)
SERVICE = Scenario("several-ports", (End("a"), End("b")), (), type="NodePort", ports=(SCTP,))
STICKY = {"sessionAffinity": "ClientIP"}
PATIENCE = 20.0
MANY = 8  # attempts; that all reach the same of two pods by chance happens once in 128 times
REFUSED = "refused"
RECVERR = {  # the kernel's report of a refusal is for whoever asks for it (ip(7), ipv6(7))
    Family.IPV4: (socket.IPPROTO_IP, 11),
    Family.IPV6: (socket.IPPROTO_IPV6, 25),
}
SOL_SCTP, SCTP_RTOINFO = 132, 0  # include/uapi/linux/sctp.h
# A refusal that comes during the call that asks is lost, so the client asks again: after 200 ms instead of 3 s.
SOON = struct.pack("=iIII", 0, 200, 60000, 100)


def endpoint(address: str, port: int = 0) -> socket.socket:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    made.settimeout(PATIENCE)
    made.setsockopt(SOL_SCTP, SCTP_RTOINFO, SOON)
    made.bind((address, port))  # else it would name all addresses of its namespace to the other side
    return made


class Lab:
    """Who listens, and whom a client reaches."""

    def __init__(self, running: Deployment, listeners: dict[tuple[str, Family], socket.socket]) -> None:
        self.running, self.listeners = running, listeners

    def serve(self, *pods: str, **spec: str) -> None:
        """The Service with these endpoints."""
        service = Scenario(SERVICE.name, tuple(map(End, pods)), (), type=SERVICE.type, ports=SERVICE.ports, spec=spec)
        self.running.manifests.put(SERVICE.name, service.objects())

    def ask(self, source: str, via: Via, family: Family) -> str:
        """The pod that accepts, with the address that it sees; REFUSED where nobody may."""
        own = next(iter(self.running.cluster.addresses_of(source, family) - {gateway_of(1, family)}))
        with self.running.cluster.spaces[source].call(endpoint, own) as client:
            client.setsockopt(*RECVERR[family], 1)
            client.setblocking(False)
            client.connect_ex((SERVICE.address(via, family), SERVICE.port(via, SCTP)))
            poll = select.poll()
            poll.register(client, select.POLLOUT)
            assert poll.poll(PATIENCE * 1000), "neither accepted nor refused"
            if error := client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return REFUSED if error == errno.ECONNREFUSED else errno.errorcode[error]
            return self._accepted(client, family)

    def _accepted(self, client: socket.socket, family: Family) -> str:
        """Passes over associations of clients that were refused at first, came through after all, and are gone."""
        at = {listener: pod for (pod, of), listener in self.listeners.items() if of is family}
        client.setblocking(True)
        client.settimeout(PATIENCE)
        hello = b"from port %d" % client.getsockname()[1]
        client.sendall(hello)
        while True:
            ready, _, _ = select.select(list(at), [], [], PATIENCE)
            assert ready, "accepted by nobody"
            connection, peer = ready[0].accept()
            with connection:
                connection.settimeout(PATIENCE)
                if connection.recv(64) == hello:
                    connection.sendall(b"welcome")
                    assert client.recv(64) == b"welcome"
                    return f"{at[ready[0]]} {peer[0]}"

    def comes_to(self, expected: set[str], source: str, via: Via, family: Family) -> bool:
        """Whether clients come to reach just these; each of two is reached within some attempts."""
        return wait_for(lambda: {self.ask(source, via, family) for _ in range(MANY)} == expected, PATIENCE)

    def refuses(self, source: str, via: Via, family: Family) -> bool:
        return self.ask(source, via, family) == REFUSED

    def sticks(self, source: str, via: Via, family: Family) -> bool:
        """Whether one client comes to reach always the same pod."""
        return wait_for(lambda: len({self.ask(source, via, family) for _ in range(MANY)}) == 1, PATIENCE)


@pytest.fixture(scope="session")
def lab(running: Deployment) -> Iterator[Lab]:
    cluster = running.cluster
    with ExitStack() as stack:
        listeners = {}
        for pod in ("a", "b"):
            for family in Family:
                listener = cluster.spaces[pod].call(endpoint, cluster.pods[pod].ip(family), SCTP.target)
                listeners[pod, family] = stack.enter_context(closing(listener))
                listener.listen()
        yield Lab(running, listeners)


FAMILIES = pytest.mark.parametrize("family", Family)


@FAMILIES
def test_associations_are_spread_and_masqueraded_as_the_way_asks(lab: Lab, family: Family) -> None:
    lab.serve("a", "b")
    caller, node = lab.running.cluster.pods["caller"].ip(family), gateway_of(1, family)
    assert lab.comes_to({f"a {caller}", f"b {caller}"}, "caller", Via.CLUSTER_IP, family)
    assert lab.comes_to({f"a {node}", f"b {node}"}, "client", Via.NODE_PORT, family)


@FAMILIES
def test_a_client_keeps_its_endpoint_with_affinity(lab: Lab, family: Family) -> None:
    lab.serve("a", "b", **STICKY)
    for source, via in (("caller", Via.CLUSTER_IP), ("client", Via.NODE_PORT)):
        assert lab.sticks(source, via, family)


@FAMILIES
def test_without_endpoints_it_is_refused(lab: Lab, family: Family) -> None:
    lab.serve()
    for source, via in (("caller", Via.CLUSTER_IP), ("node1", Via.CLUSTER_IP), ("client", Via.NODE_PORT)):
        assert wait_for(partial(lab.refuses, source, via, family), PATIENCE)
