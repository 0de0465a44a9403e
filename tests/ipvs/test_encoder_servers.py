"""Virtual servers that we write, ipvsadm, pyroute2 and gnlpy read; those that ipvsadm and gnlpy write, we read."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import closing

import pytest

from kproxy.kernel.constants import ADDRESS_FAMILY, PROTOCOL_NUMBERS
from kproxy.kernel.ipvs import Held, KernelIpvs
from kproxy.kernel.ipvs_codec import Operation, RealState, Timeouts, Verb
from kproxy.kernel.virtual_servers import PERSISTENT, SOURCE_PORT, RealKey, RealServer, ServerKey, VirtualServer
from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family, Protocol
from tests.ipvs.readers import by_gnlpy, by_ipvsadm, by_pyroute2, gnlpy, gnlpy_client

pytestmark = pytest.mark.ipvs_kernel

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq", "fo", "ovf")
ADDRESSES = {Family.IPV4: ("10.96.0.1", "10.0.0.1", "10.0.0.2"), Family.IPV6: ("fd00::1", "fd01::1", "fd01::2")}
OPTIONS = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}
Wanted = Mapping[VirtualServer, tuple[RealServer, ...]]


def wanted() -> dict[VirtualServer, tuple[RealServer, ...]]:
    """Every protocol in both families, every scheduler, with and without persistence, with 0 to 2 real servers."""
    found: dict[VirtualServer, tuple[RealServer, ...]] = {}
    for vip, *ips in ADDRESSES.values():
        reals = tuple(RealServer(RealKey(ip, 8080), weight) for ip, weight in zip(ips, (1, 0), strict=True))
        for protocol in Protocol:
            for port, scheduler in enumerate(SCHEDULERS, start=80):
                found[VirtualServer(ServerKey(protocol, vip, port), scheduler)] = reals[: port % 3]
            key = ServerKey(protocol, vip, 8000)
            found[VirtualServer(key, "rr", PERSISTENT, 10800)] = (RealServer(RealKey(ips[0], 65535), 65535),)
            found[VirtualServer(key._replace(port=8001), "sh", SOURCE_PORT)] = reals
            found[VirtualServer(key._replace(port=8002), "mh", PERSISTENT | SOURCE_PORT, 1)] = reals
    return found


def additions(servers: Wanted) -> list[Operation]:
    return [
        Operation(Verb.ADD_REAL if real else Verb.ADD_SERVER, server, real)
        for server, reals in servers.items()
        for real in (None, *reals)
    ]


def listed(ipvs: KernelIpvs) -> dict[ServerKey, Held]:
    return {**ipvs.servers(Family.IPV4), **ipvs.servers(Family.IPV6)}


def held(servers: Wanted) -> dict[ServerKey, Held]:
    return {
        server.key: Held(server, {real.key: RealState(real.weight) for real in reals})
        for server, reals in servers.items()
    }


def ipvsadm(servers: Wanted) -> set[str]:
    """As `ipvsadm -Sn` says it."""
    lines = set()
    for server, reals in servers.items():
        (protocol, address, port), scheduler, flags, timeout = server
        name = f"{OPTIONS[protocol]} {f'[{address}]' if ':' in address else address}:{port}"
        line = f"-A {name} -s {scheduler}"
        line += f" -p {timeout}" if flags & PERSISTENT else ""
        lines.add(line + (f" -b {scheduler}-port" if flags & SOURCE_PORT else ""))
        lines |= {f"-a {name} -r {real.key} -m -w {real.weight}" for real in reals}
    return lines


def rows(servers: Wanted) -> dict[tuple[object, ...], set[tuple[object, ...]]]:
    """As pyroute2 and gnlpy say it."""
    return {
        (*server.key, server.scheduler, server.flags, server.timeout): {(*real.key, real.weight, 0) for real in reals}
        for server, reals in servers.items()
    }


def test_what_we_write_all_readers_agree_on(space: Namespace, ipvs: KernelIpvs) -> None:
    servers = wanted()
    assert ipvs.apply(additions(servers)) == {}
    assert listed(ipvs) == held(servers)
    assert by_ipvsadm(space) == ipvsadm(servers)
    assert by_pyroute2(space) == by_gnlpy(space) == rows(servers)


def test_each_verb_does_what_it_says(space: Namespace, ipvs: KernelIpvs) -> None:
    for vip, one, two in ADDRESSES.values():
        before = VirtualServer(ServerKey(Protocol.TCP, vip, 80), "rr")
        after = before._replace(scheduler="sh", flags=PERSISTENT, timeout=300)
        first, second = RealServer(RealKey(one, 80), 5), RealServer(RealKey(two, 80), 0)
        steps: list[tuple[Operation, Wanted]] = [
            (Operation(Verb.ADD_SERVER, before), {before: ()}),
            (Operation(Verb.ADD_REAL, before, first), {before: (first,)}),
            (Operation(Verb.EDIT_SERVER, after), {after: (first,)}),
            (Operation(Verb.ADD_REAL, before, second), {after: (first, second)}),
            (Operation(Verb.EDIT_REAL, after, second._replace(weight=7)), {after: (first, second._replace(weight=7))}),
            (Operation(Verb.EDIT_REAL, after, first._replace(weight=0)), {}),
            (Operation(Verb.DELETE_REAL, after, second), {after: (first._replace(weight=0),)}),
            (Operation(Verb.EDIT_SERVER, before), {before: (first._replace(weight=0),)}),
            (Operation(Verb.DELETE_SERVER, after._replace(scheduler="")), {}),
        ]
        assert {operation.verb for operation, _ in steps} == set(Verb)
        for operation, then in steps:
            assert ipvs.apply([operation]) == {}
            if then or operation.verb is Verb.DELETE_SERVER:
                assert listed(ipvs) == held(then)
                assert by_ipvsadm(space) == ipvsadm(then)


FOREIGN = """\
-A -t 10.1.0.1:80 -s rr
-a -t 10.1.0.1:80 -r 10.2.0.1:80 -g -w 3
-a -t 10.1.0.1:80 -r 10.2.0.2:80 -i -w 3
-a -t 10.1.0.1:80 -r 10.2.0.3:8080 -m -w 3
-A -u 10.1.0.1:53 -s rr -o
-A -t 10.1.0.2:80 -s wlc -p 60 -M 255.255.255.0
-A -t [fd02::2]:80 -s wlc -p 60 -M 64
-a -t [fd02::2]:80 -r [fd02::3]:80 -m -w 1
-A -f 7 -s rr
-a -f 7 -r 10.2.0.1 -m -w 1
-A -f 8 -6 -s rr
"""


def test_what_others_wrote_is_listed_and_firewall_marks_are_not(space: Namespace, ipvs: KernelIpvs) -> None:
    space.run(["ipvsadm", "-R"], FOREIGN)
    http, dns, nets, six = (
        ServerKey(Protocol.TCP, "10.1.0.1", 80),
        ServerKey(Protocol.UDP, "10.1.0.1", 53),
        ServerKey(Protocol.TCP, "10.1.0.2", 80),
        ServerKey(Protocol.TCP, "fd02::2", 80),
    )
    elsewhere = RealState(3, masqueraded=False)
    assert ipvs.servers(Family.IPV4) == {
        http: Held(
            VirtualServer(http, "rr"),
            {
                RealKey("10.2.0.1", 80): elsewhere,
                RealKey("10.2.0.2", 80): elsewhere,
                RealKey("10.2.0.3", 8080): RealState(3),
            },
        ),
        dns: Held(VirtualServer(dns, "rr", 0x4), {}),
        nets: Held(VirtualServer(nets, "wlc", PERSISTENT, 60), {}, per_client=False),
    }
    assert ipvs.servers(Family.IPV6) == {
        six: Held(VirtualServer(six, "wlc", PERSISTENT, 60), {RealKey("fd02::3", 80): RealState(1)}, per_client=False)
    }
    assert set(ipvs.reals(http)) == {RealKey("10.2.0.1", 80), RealKey("10.2.0.2", 80), RealKey("10.2.0.3", 8080)}
    ours = VirtualServer(nets, "rr", PERSISTENT, 60)
    assert ipvs.apply([Operation(Verb.EDIT_SERVER, ours)]) == {}
    assert ipvs.servers(Family.IPV4)[nets] == Held(ours, {}, per_client=True), "an edit sets the mask of one client"


def test_what_gnlpy_writes_is_listed_and_each_edits_what_the_other_wrote(space: Namespace, ipvs: KernelIpvs) -> None:
    library = gnlpy()
    masquerading, elsewhere = library.IPVS_MASQUERADING, RealState(65535, masqueraded=False)
    with gnlpy_client(space) as client:
        for family, (vip, one, two) in ADDRESSES.items():
            servers: dict[VirtualServer, tuple[RealServer, ...]] = {}
            for protocol in (Protocol.TCP, Protocol.UDP):
                number = PROTOCOL_NUMBERS[protocol.lower()]
                for port, scheduler in enumerate(SCHEDULERS, start=80):
                    client.add_service(vip, port, number, scheduler)
                    client.add_dest(vip, port, one, 8080, number, port, masquerading)
                    key = ServerKey(protocol, vip, port)
                    servers[VirtualServer(key, scheduler)] = (RealServer(RealKey(one, 8080), port),)
            client.add_fwm_service(7, "rr", ADDRESS_FAMILY[family])
            assert ipvs.servers(family) == held(servers)

            key = ServerKey(Protocol.TCP, vip, 80)
            ours = VirtualServer(key, "sh", PERSISTENT, 300)
            client.add_dest(vip, 80, two, 81, weight=65535, method=library.IPVS_TUNNELING)
            client.add_dest(vip, 80, two, 82, weight=65535, method=library.IPVS_ROUTING)
            added = Operation(Verb.ADD_REAL, ours, RealServer(RealKey(two, 8080), 5))
            assert ipvs.apply([Operation(Verb.EDIT_SERVER, ours), added]) == {}
            client.update_dest(vip, 80, two, 8080, weight=0, method=masquerading)
            client.del_dest(vip, 80, one, 8080)
            assert ipvs.servers(family)[key] == Held(
                ours, {RealKey(two, 8080): RealState(0), RealKey(two, 81): elsewhere, RealKey(two, 82): elsewhere}
            )
            assert ipvs.apply([Operation(Verb.DELETE_SERVER, server) for server in servers]) == {}
            with pytest.raises(OSError, match="No such process"):
                client.del_service(vip, 80)
            assert ipvs.apply([Operation(Verb.ADD_SERVER, ours)]) == {}
            client.del_service(vip, 80)
            assert ipvs.servers(family) == {}
        marks = [(pool.service().fwmark(), pool.service().af()) for pool in client.get_pools()]
        assert sorted(marks) == [(7, family) for family in sorted(ADDRESS_FAMILY.values())]


def test_persistence_written_by_gnlpys_messages_is_listed(space: Namespace, ipvs: KernelIpvs) -> None:
    """Its client knows of none."""
    library = gnlpy()
    with gnlpy_client(space) as client:
        for family, (vip, *_) in ADDRESSES.items():
            af, address = ADDRESS_FAMILY[family], socket.inet_pton(ADDRESS_FAMILY[family], vip).ljust(16, b"\0")
            whole, network = (0xFFFFFFFF, 0x00FFFFFF) if family is Family.IPV4 else (128, 64)
            found = {}
            for port, (flags, netmask) in enumerate([(1, whole), (0x11, whole), (1, network)], start=80):
                service = library.IpvsServiceAttrList(
                    af=af,
                    protocol=socket.IPPROTO_SCTP,
                    addr=address,
                    port=port,
                    sched_name="mh",
                    flags=struct.pack("=II", flags, 0xFFFFFFFF),
                    timeout=60 * port,
                    netmask=netmask,
                )
                client.nlsock.execute(
                    library.IpvsMessage("new_service", attr_list=library.IpvsCmdAttrList(service=service))
                )
                key = ServerKey(Protocol.SCTP, vip, port)
                found[key] = Held(VirtualServer(key, "mh", flags, 60 * port), {}, per_client=netmask == whole)
            assert ipvs.servers(family) == found


def test_refusals_name_the_operation_and_all_others_are_done(space: Namespace, ipvs: KernelIpvs) -> None:
    good = VirtualServer(ServerKey(Protocol.TCP, "10.96.0.1", 80), "rr")
    missing = VirtualServer(ServerKey(Protocol.TCP, "10.96.0.2", 80), "rr")
    six = VirtualServer(ServerKey(Protocol.UDP, "fd00::1", 53), "rr")
    real, other = RealServer(RealKey("10.0.0.1", 80)), RealServer(RealKey("10.0.0.2", 80))
    told: list[tuple[Operation, str]] = [
        (Operation(Verb.ADD_SERVER, good), ""),
        (Operation(Verb.ADD_SERVER, good), "add virtual server TCP 10.96.0.1:80: File exists"),
        (Operation(Verb.ADD_REAL, missing, real), "add real server 10.0.0.1:80 of TCP 10.96.0.2:80: No such process"),
        (Operation(Verb.ADD_REAL, good, real), ""),
        (Operation(Verb.ADD_REAL, good, real), "add real server 10.0.0.1:80 of TCP 10.96.0.1:80: File exists"),
        (
            Operation(Verb.EDIT_REAL, good, other),
            "edit real server 10.0.0.2:80 of TCP 10.96.0.1:80: No such file or directory",
        ),
        (Operation(Verb.EDIT_SERVER, missing), "edit virtual server TCP 10.96.0.2:80: No such process"),
        (
            Operation(Verb.ADD_SERVER, missing._replace(scheduler="none-such")),
            "add virtual server TCP 10.96.0.2:80: No such file or directory",
        ),
        (
            Operation(Verb.ADD_SERVER, missing._replace(key=missing.key._replace(address="10.96.0.300"))),
            "add virtual server TCP 10.96.0.300:80: Invalid argument: ",
        ),
        (Operation(Verb.DELETE_REAL, good, other), ""),
        (Operation(Verb.DELETE_REAL, missing, real), ""),
        (Operation(Verb.DELETE_SERVER, missing), ""),
        (Operation(Verb.ADD_SERVER, six), ""),
        (Operation(Verb.ADD_REAL, six, real), "add real server 10.0.0.1:80 of UDP [fd00::1]:53: "),
        (Operation(Verb.ADD_REAL, good, other), ""),
    ]
    errors = ipvs.apply([operation for operation, _ in told])
    assert set(errors) == {index for index, (_, words) in enumerate(told) if words}
    for index, error in errors.items():
        assert str(error).startswith(told[index][1])
    assert listed(ipvs) == held({good: (real, other), six: ()})


def test_a_server_that_is_not_there_has_no_real_ones(ipvs: KernelIpvs) -> None:
    assert ipvs.reals(ServerKey(Protocol.TCP, "10.96.0.1", 80)) == {}
    assert ipvs.reals(ServerKey(Protocol.TCP, "fd00::1", 80)) == {}
    assert ipvs.servers(Family.IPV4) == {}
    assert ipvs.apply([]) == {}


def many(count: int) -> Iterable[tuple[VirtualServer, tuple[RealServer, ...]]]:
    for i in range(count):
        key = ServerKey(Protocol.TCP, f"10.96.{i >> 8}.{i & 255}", 80)
        yield VirtualServer(key, "rr"), tuple(RealServer(RealKey(f"10.{n}.{i >> 8}.{i & 255}", 80)) for n in range(5))


def test_more_operations_than_one_batch_and_all_of_them_refused(space: Namespace, ipvs: KernelIpvs) -> None:
    servers = dict(many(400))
    operations = additions(servers)
    assert ipvs.apply(operations) == {}
    assert by_ipvsadm(space) == ipvsadm(servers)
    assert ipvs.servers(Family.IPV4) == held(servers)
    assert set(ipvs.apply(operations)) == set(range(len(operations)))
    assert ipvs.apply([Operation(Verb.DELETE_SERVER, server) for server in servers]) == {}
    assert by_ipvsadm(space) == set()


def test_connections_are_counted(space: Namespace, ipvs: KernelIpvs) -> None:
    space.run(["ip", "address", "add", "10.96.0.1/32", "dev", "lo"])
    server, real = VirtualServer(ServerKey(Protocol.TCP, "10.96.0.1", 80), "rr"), RealServer(RealKey("127.0.0.1", 8080))
    ipvs.apply(additions({server: (real,)}))

    def connect() -> tuple[socket.socket, socket.socket, socket.socket]:
        listener = socket.create_server(("127.0.0.1", 8080))
        client = socket.create_connection(("10.96.0.1", 80), timeout=20)
        return listener, client, listener.accept()[0]

    sockets = space.call(connect)
    try:
        assert ipvs.reals(server.key) == {real.key: RealState(1, active=1)}
        assert ipvs.servers(Family.IPV4)[server.key].reals == {real.key: RealState(1, active=1)}
        assert not ipvs.reals(server.key)[real.key].idle
    finally:
        for each in sockets:
            each.close()


def test_timeouts_are_set_and_those_of_0_stay(space: Namespace, ipvs: KernelIpvs) -> None:
    ipvs.set_timeouts(Timeouts(1000, 20, 30))
    assert "Timeout (tcp tcpfin udp): 1000 20 30" in space.run(["ipvsadm", "-L", "--timeout"])
    ipvs.set_timeouts(Timeouts(udp=40))
    ipvs.set_timeouts(Timeouts())
    assert "Timeout (tcp tcpfin udp): 1000 20 40" in space.run(["ipvsadm", "-L", "--timeout"])


def test_schedulers_are_found_and_nothing_is_left(space: Namespace, ipvs: KernelIpvs) -> None:
    for name in SCHEDULERS:
        assert ipvs.has_scheduler(name), name
    for name in ("none-such", "", "none", "x" * 15, "x" * 16, "../rr"):
        assert not ipvs.has_scheduler(name), name
    assert by_ipvsadm(space) == set()
    blocked = VirtualServer(ServerKey(Protocol.TCP, "::", 80), "rr")
    ipvs.apply([Operation(Verb.ADD_SERVER, blocked)])
    assert ipvs.has_scheduler("rr")
    assert listed(ipvs) == held({blocked: ()})


def test_each_network_namespace_has_its_own(space: Namespace, ipvs: KernelIpvs) -> None:
    server = VirtualServer(ServerKey(Protocol.TCP, "10.96.0.1", 80), "rr")
    with closing(Namespace("other")) as other, other.call(KernelIpvs) as theirs:
        assert theirs.apply([Operation(Verb.ADD_SERVER, server)]) == {}
        assert listed(ipvs) == {}
        assert listed(theirs) == held({server: ()})
