"""Independent readers of IPVS mode's part of the kernel: ipvsadm, ipset, ip, pyroute2 and gnlpy."""

from __future__ import annotations

import array
import json
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from kproxy.lab.namespaces import Namespace
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.modes.ipvs.native import Outcome

PROTOCOLS = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP", socket.IPPROTO_SCTP: "SCTP"}


class Shown(NamedTuple):
    """Lines of ipvsadm-save, lines of ipset-save without sizes, addresses of the device with their lengths."""

    servers: frozenset[str]
    sets: frozenset[str]
    addresses: frozenset[str]


def shown(space: Namespace) -> Shown:
    return Shown(by_ipvsadm(space), by_ipset(space), by_ip(space))


def wanted(outcomes: Iterable[Outcome]) -> Shown:
    """What they should show for these outcomes of the two families: the texts that these very tools would load."""
    servers, sets, addresses = set[str](), set[str](), set[str]()
    for outcome in outcomes:
        sections = [part.splitlines()[1:] for part in outcome.native().split("# ")[1:]]
        servers |= set(sections[0])
        sets |= {_without_sizes(line) for line in sections[1]}
        addresses |= {line.split()[2] for line in sections[2] if line.startswith("address add ")}
    return Shown(frozenset(servers), frozenset(sets), frozenset(addresses))


def by_ipvsadm(space: Namespace) -> frozenset[str]:
    return frozenset(line.strip() for line in space.run(["ipvsadm", "-Sn"]).splitlines())


def by_ipset(space: Namespace) -> frozenset[str]:
    return frozenset(_without_sizes(line) for line in space.run(["ipset", "save"]).splitlines())


def by_ip(space: Namespace) -> frozenset[str]:
    """The kernel's own IPv6 address left out, and nothing where there is no such device."""
    links = json.loads(space.run(["ip", "-j", "address"]))
    held = (info for link in links if link.get("ifname") == SERVICE_DEVICE for info in link["addr_info"])
    return frozenset(f"{info['local']}/{info['prefixlen']}" for info in held if info["scope"] == "global")


def by_pyroute2(space: Namespace) -> dict[tuple[object, ...], set[tuple[object, ...]]]:
    """Virtual servers with their real servers: protocol, address, port, scheduler, flags, timeout; address, port,
    weight, forwarding method."""
    return space.call(_by_pyroute2)


def _by_pyroute2() -> dict[tuple[object, ...], set[tuple[object, ...]]]:
    from pyroute2 import IPVS, IPVSService

    def nla(message: object, name: str) -> dict[str, object]:
        return dict(message.get(name)["attrs"])  # type: ignore[attr-defined]

    found: dict[tuple[object, ...], set[tuple[object, ...]]] = {}
    with closing(IPVS()) as kernel:
        for message in kernel.service("dump"):
            said = {key.removeprefix("IPVS_SVC_ATTR_"): value for key, value in nla(message, "service").items()}
            flags = said["FLAGS"]["flags"] & ~0x2  # type: ignore[index]
            reals: set[tuple[object, ...]] = set()
            for answer in kernel.dest("dump", service=IPVSService.from_message(message)):
                dest = {key.removeprefix("IPVS_DEST_ATTR_"): value for key, value in nla(answer, "dest").items()}
                reals.add((dest["ADDR"], dest["PORT"], dest["WEIGHT"], dest["FWD_METHOD"]))
            key = (PROTOCOLS[said["PROTOCOL"]], said["ADDR"], said["PORT"])  # type: ignore[index]
            found[(*key, said["SCHED_NAME"], flags, said["TIMEOUT"])] = reals
    return found


@cache
def gnlpy() -> Any:
    """gnlpy.ipvs, put right where Python and the kernel have moved on: arrays lost a method in Python 3.9, and from
    Linux 5.3 on real servers are listed with attributes of tunnels, of which it would know nothing."""
    from gnlpy import netlink

    class Array(array.array):  # type: ignore[type-arg]  # of Python 3.12 on
        def fromstring(self, data: Any) -> None:
            self.frombytes(data.encode() if isinstance(data, str) else bytes(data))

    def with_tunnels(name: str, *fields: tuple[str, Any]) -> Any:
        newer = ("TUN_TYPE", netlink.U8Type), ("TUN_PORT", netlink.Net16Type), ("TUN_FLAGS", netlink.U16Type)
        return made(name, *fields, *(newer if name == "IpvsDestAttrList" else ()))

    made, netlink.create_attr_list_type = netlink.create_attr_list_type, with_tunnels
    netlink.array = SimpleNamespace(array=Array)
    from gnlpy import ipvs

    return ipvs


@contextmanager
def gnlpy_client(space: Namespace) -> Iterator[Any]:
    """Its IpvsClient, whose socket is in the namespace, whatever thread calls it."""
    client = space.call(gnlpy().IpvsClient)
    with closing(client.nlsock):
        yield client


def by_gnlpy(space: Namespace) -> dict[tuple[object, ...], set[tuple[object, ...]]]:
    """What by_pyroute2 gives. Servers are asked for by its messages: its Service has no SCTP, flags or timeouts."""
    found: dict[tuple[object, ...], set[tuple[object, ...]]] = {}
    with gnlpy_client(space) as client:
        request = gnlpy().IpvsMessage("get_service", flags=gnlpy().netlink.MessageFlags.MATCH_ROOT_REQUEST)
        for message in client.nlsock.query(request):
            said = message.get_attr_list().get("service")
            family, protocol, port = (said.get(name) for name in ("af", "protocol", "port"))
            address = socket.inet_ntop(family, said.get("addr")[: 4 if family == socket.AF_INET else 16])
            flags = struct.unpack("=II", said.get("flags"))[0] & ~0x2
            found[PROTOCOLS[protocol], address, port, said.get("sched_name"), flags, said.get("timeout")] = {
                (each.ip(), each.port(), each.weight(), each.fwd_method()) for each in client.get_dests(said)
            }
    return found


def _without_sizes(line: str) -> str:
    """Of a set its name and type; of an entry everything."""
    return " ".join(line.split()[:3]) if line.startswith("create ") else line.strip()
