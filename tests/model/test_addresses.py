"""IP addresses and CIDRs become the text that the kernel's tools print, or nothing."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.addresses import canonical_cidr, canonical_ip, contains


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.0.0.001", "10.0.0.1"),
        ("FD00::1", "fd00::1"),
        ("fd00:0:0:0:0:0:0:1", "fd00::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("::", "::"),
        ("10.0.0", None),
        ("10.0.0.256", None),
        ("10.0.0.1.1", None),
        ("10.0.0.+1", None),
        ("10.0.0.\u0661", None),
        (" 10.0.0.1\n", "10.0.0.1"),
        ("::ffff:010.0.0.001", "10.0.0.1"),
        ("fd00:00000::00001", "fd00::1"),
        ("::ffff:10.0.0.256", None),
        ("10. 0.0.1", None),
        ("fd00::00x1", None),
        ("10.0.0.", None),
        ("0000000000010.0.0.1", "10.0.0.1"),
        ("10.0.0.1/32", None),
        ("fd00::1%eth0", None),
        ("fd00:::1", None),
        ("a\0b", None),
        ("None", None),
        ("", None),
    ],
)
def test_addresses(text: str, expected: str | None) -> None:
    assert canonical_ip(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("010.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1/32", "10.0.0.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("FD00::1/64", "fd00::/64"),
        ("10.0.0.0/33", None),
        ("fd00::/129", None),
        ("10.0.0.0", None),
        ("10.0.0.0/", None),
        ("10.0.0.0/-1", None),
        ("10.0.0.0/255.0.0.0", None),
        ("10.0.0.0/8/8", None),
        ("10.0.0.0/ 8", None),
        ("10.0.0.0 /8", None),
        (" 10.0.0.0/8\t", "10.0.0.0/8"),
        ("10.0.0.0/008", "10.0.0.0/8"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::FFFF:0a01:203/128", "10.1.2.3/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:10.0.0.0/95", None),
        ("::ffff:10.0.0.0/8", None),
        ("::ffff:10.0.0.0/129", None),
        ("/8", None),
        ("", None),
    ],
)
def test_cidrs(text: str, expected: str | None) -> None:
    assert canonical_cidr(text) == expected


@pytest.mark.parametrize(
    ("cidr", "ip", "expected"),
    [
        ("10.0.0.0/8", "10.255.255.255", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("fd00::/64", "fd00::1", True),
        ("fd00::/64", "fd00:0:0:1::1", False),
        ("0.0.0.0/0", "fd00::1", False),
        ("::/0", "10.0.0.1", False),
    ],
)
def test_an_address_lies_in_a_cidr_of_its_family(cidr: str, ip: str, expected: bool) -> None:
    assert contains(cidr, ip) is expected


@given(st.ip_addresses())
def test_reading_is_stable_and_keeps_the_address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = canonical_ip(ip.exploded)
    assert text is not None
    assert canonical_ip(text) == text
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    assert ipaddress.ip_address(text) == (mapped or ip)


@given(st.text())
def test_any_text_is_an_address_or_nothing(text: str) -> None:
    ip, cidr = canonical_ip(text), canonical_cidr(text)
    assert ip is None or ipaddress.ip_address(ip)
    assert cidr is None or ipaddress.ip_network(cidr)
