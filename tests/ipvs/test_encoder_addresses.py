"""The addresses of kube-ipvs0 as ip(8) shows them, and the connections to them that the kernel accepts."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator

import pytest

from kproxy.errors import NetlinkError
from kproxy.kernel.service_device import KernelAddresses
from kproxy.lab.namespaces import Namespace
from kproxy.model.node_info import SERVICE_DEVICE
from kproxy.model.plans import Family
from tests.ipvs.readers import by_ip

pytestmark = pytest.mark.ipvs_kernel

ADDRESSES = {Family.IPV4: frozenset({"10.96.0.1", "10.96.0.10"}), Family.IPV6: frozenset({"fd00::1", "fd00::a"})}
BOTH = ADDRESSES[Family.IPV4] | ADDRESSES[Family.IPV6]


@pytest.fixture
def addresses(space: Namespace) -> Iterator[KernelAddresses]:
    with space.call(KernelAddresses) as addresses:
        yield addresses


def test_the_device_is_a_dummy_without_arp(space: Namespace, addresses: KernelAddresses) -> None:
    addresses.ensure()
    addresses.ensure()
    (link,) = json.loads(space.run(["ip", "-d", "-j", "link", "show", "dev", SERVICE_DEVICE]))
    assert link["linkinfo"]["info_kind"] == "dummy"
    assert "NOARP" in link["flags"]
    assert "UP" not in link["flags"]


def test_addresses_are_hosts_without_routes_but_the_local_ones(space: Namespace, addresses: KernelAddresses) -> None:
    addresses.ensure()
    assert addresses.change(BOTH, ()) == {}
    assert by_ip(space) == {"10.96.0.1/32", "10.96.0.10/32", "fd00::1/128", "fd00::a/128"}
    assert {family: addresses.held(family) for family in Family} == ADDRESSES
    for option in ("-4", "-6"):
        routes = json.loads(
            space.run(["ip", "-j", option, "route", "show", "table", "all", "dev", SERVICE_DEVICE]) or "[]"
        )
        assert {route["dst"] for route in routes} == ADDRESSES[Family.IPV4 if option == "-4" else Family.IPV6]
        assert {(route["type"], route["table"]) for route in routes} == {("local", "local")}


@pytest.mark.parametrize("address", ["10.96.0.1", "fd00::1"])
def test_the_host_accepts_connections_to_an_address_at_once(
    space: Namespace, addresses: KernelAddresses, address: str
) -> None:
    def talk() -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 80), family=family) as listener:
            with socket.create_connection((address, 80), timeout=20) as client:
                client.sendall(b"hello")
            accepted, _ = listener.accept()
            with accepted:
                return accepted.recv(16)

    addresses.ensure()
    addresses.change([address], ())
    assert space.call(talk) == b"hello"


def test_what_is_there_or_gone_already_is_no_error(space: Namespace, addresses: KernelAddresses) -> None:
    addresses.ensure()
    addresses.change(BOTH, ())
    assert addresses.change(BOTH, ["10.99.0.1", "fd99::1"]) == {}
    assert addresses.change((), ["10.96.0.1", "fd00::1"]) == {}
    assert addresses.change((), ["10.96.0.1", "fd00::1"]) == {}
    assert by_ip(space) == {"10.96.0.10/32", "fd00::a/128"}


def test_refusals_name_the_address_and_all_others_are_done(space: Namespace, addresses: KernelAddresses) -> None:
    addresses.ensure()
    refused = addresses.change(["10.96.0.1", "ff02::1", "10.96.0.300", "fd00::1", "nothing"], ["10.0.0"])
    assert {address: error.errno for address, error in refused.items()} == {
        "ff02::1": errno.EADDRNOTAVAIL,
        "10.96.0.300": errno.EINVAL,
        "nothing": errno.EINVAL,
        "10.0.0": errno.EINVAL,
    }
    assert str(refused["ff02::1"]).startswith(f"address ff02::1 of {SERVICE_DEVICE}: Cannot assign requested address")
    assert by_ip(space) == {"10.96.0.1/32", "fd00::1/128"}


def test_addresses_of_other_devices_and_the_kernels_own_are_left_out(
    space: Namespace, addresses: KernelAddresses
) -> None:
    space.run(["ip", "link", "add", "other", "type", "dummy"])
    space.run(["ip", "address", "add", "10.7.0.1/24", "dev", "other"])
    addresses.ensure()
    space.run(["ip", "link", "set", SERVICE_DEVICE, "up"])  # which gives it a link-local address
    addresses.change(BOTH, ())
    assert {family: addresses.held(family) for family in Family} == ADDRESSES


def test_thousands_of_addresses(space: Namespace, addresses: KernelAddresses) -> None:
    many = [f"10.96.{i >> 8}.{i & 255}" for i in range(1200)]
    addresses.ensure()
    assert addresses.change(many, ()) == {}
    assert addresses.held(Family.IPV4) == set(many)
    assert addresses.change((), many[600:]) == {}
    assert by_ip(space) == {f"{address}/32" for address in many[:600]}


def test_without_the_device_there_is_nothing(space: Namespace, addresses: KernelAddresses) -> None:
    assert addresses.held(Family.IPV4) == addresses.held(Family.IPV6) == frozenset()
    assert addresses.change((), BOTH) == {}
    with pytest.raises(NetlinkError, match=f"add addresses to {SERVICE_DEVICE}: No such device"):
        addresses.change(["10.96.0.1"], ())
    assert not addresses.remove()


def test_removing_the_device_takes_the_addresses_along(space: Namespace, addresses: KernelAddresses) -> None:
    addresses.ensure()
    addresses.change(BOTH, ())
    assert addresses.remove()
    assert SERVICE_DEVICE not in space.run(["ip", "link"])
    assert not addresses.remove()
