"""Which loopback networks are served, and what nftables mode's rules do with each protocol there."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

import pytest

from kproxy.config.files import from_text
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family, Protocol
from kproxy.modes.nftables.names import LOCALHOST_REFUSE, TABLE
from kproxy.modes.nftables.text import table_text
from kproxy.modes.settings import localhost_networks
from kproxy.netfilter.kernel import KernelNftables
from tests.nftables.plans import build_plan, layout_of

V4, V6 = Family.IPV4, Family.IPV6
GATE = "KubeProxyNFTablesLocalhostNodePorts"
ALL_OF_IT = (("127.0.0.0/8",), ("::1/128",))
NETWORKS = {
    (): ((), ()),
    ("primary",): ((), ()),
    ("all",): ((), ()),
    ("0.0.0.0/0", "::/0"): ((), ()),
    ("localhost",): ALL_OF_IT,
    ("primary", "localhost"): ALL_OF_IT,
    ("all", "localhost"): ALL_OF_IT,
    ("127.0.0.0/8", "::1/128", "127.0.0.1/32"): ALL_OF_IT,
    ("127.0.0.1/32",): (("127.0.0.1/32",), ()),
    ("127.0.0.4/32", "127.0.0.5/32"): (("127.0.0.4/31",), ()),
    ("::1/128", "10.0.0.0/8"): ((), ("::1/128",)),
    ("126.0.0.0/7", "::/127"): ((), ()),
}


@pytest.mark.parametrize("asked", NETWORKS, ids=",".join)
@pytest.mark.parametrize(
    ("minor", "gates", "on"),
    [("1.37", {}, False), ("1.37", {GATE: True}, True), ("1.38", {}, True), ("1.38", {GATE: False}, False)],
)
def test_loopback_is_served_where_it_is_named(
    asked: tuple[str, ...], minor: str, gates: dict[str, bool], on: bool
) -> None:
    header = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables"}
    fields = {"nodePortAddresses": list(asked), "featureGates": gates, "emulateVersion": minor}
    config = from_text(json.dumps({**header, **fields}))
    assert tuple(localhost_networks(config, family) for family in Family) == (NETWORKS[asked] if on else ((), ()))


@pytest.fixture
def node() -> Iterator[Namespace]:
    if reason := unavailable(("nft", "ip")):
        pytest.skip(reason)
    made = Namespace("loopback")
    try:
        made.run(["ip", "link", "set", "lo", "up"])
        yield made
    finally:
        made.close()


def refuses_sctp(family: Family, port: int) -> bool:
    """Send the first packet of an association to PORT of loopback, for which the kernel needs to know no SCTP. Returns
    whether a rule refuses it."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    kind = socket.AF_INET if family is V4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_SCTP) as raw:
        try:
            raw.sendto(struct.pack("!HHII", 40000, port, 0, 0) + chunk, ("127.0.0.1" if family is V4 else "::1", 0))
        except PermissionError:
            return True
    return False


@pytest.mark.root
@pytest.mark.parametrize("family", Family)
def test_sctp_is_refused_and_counted(node: Namespace, family: Family) -> None:
    def counts() -> list[int]:
        with KernelNftables() as kernel:
            return kernel.counts(family, TABLE, LOCALHOST_REFUSE)

    assert node.call(counts) == [], "without a table"
    plan = build_plan(family=family, protocol=Protocol.SCTP, node_port=30080)
    served = ("127.0.0.0/8",) if family is V4 else ("::1/128",)
    for networks in (served, ()):
        layout = layout_of(plan, refuses_localhost=True, localhost_networks=networks)
        node.run(["nft", "-f", "-"], table_text(layout))
        assert node.call(counts) == [0, 0, 0]
        assert [node.call(refuses_sctp, family, port) for port in (30080, 30081)] == [True, False]
        assert node.call(counts) == [0, 0, 1]
