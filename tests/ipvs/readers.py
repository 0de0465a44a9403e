"""Independent readers of IPVS mode's part of the kernel: ipvsadm, ipset, ip and pyroute2."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from kproxy.lab.namespaces import Namespace
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.modes.ipvs.native import Outcome


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
    protocols = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP", socket.IPPROTO_SCTP: "SCTP"}
    with closing(IPVS()) as kernel:
        for message in kernel.service("dump"):
            said = {key.removeprefix("IPVS_SVC_ATTR_"): value for key, value in nla(message, "service").items()}
            flags = said["FLAGS"]["flags"] & ~0x2  # type: ignore[index]
            reals: set[tuple[object, ...]] = set()
            for answer in kernel.dest("dump", service=IPVSService.from_message(message)):
                dest = {key.removeprefix("IPVS_DEST_ATTR_"): value for key, value in nla(answer, "dest").items()}
                reals.add((dest["ADDR"], dest["PORT"], dest["WEIGHT"], dest["FWD_METHOD"]))
            key = (protocols[said["PROTOCOL"]], said["ADDR"], said["PORT"])  # type: ignore[index]
            found[(*key, said["SCHED_NAME"], flags, said["TIMEOUT"])] = reals
    return found


def _without_sizes(line: str) -> str:
    """Of a set its name and type; of an entry everything."""
    return " ".join(line.split()[:3]) if line.startswith("create ") else line.strip()
