"""Reads IP addresses and CIDRs as tolerantly as Kubernetes does, and writes them as canonical text.

Every address that a user or the cluster gives is read here: of Services, EndpointSlices, Nodes, ServiceCIDRs, the
configuration and files of hosts. Objects that are older than strict validation (KEP-4858) may carry leading zeros
(010.0.0.1 is 10.0.0.1) and IPv4-mapped IPv6 addresses, which count as IPv4; spaces around a value are no part of it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_MAPPED_BITS = 96
_LEADING_ZEROS = re.compile(r"(?<![0-9A-Fa-f])0+(?=[0-9A-Fa-f])")


def canonical_ip(text: str) -> str | None:
    """TEXT as the kernel's tools print it, or None when it is not an IP address."""
    if ":" not in text:
        try:
            socket.inet_pton(socket.AF_INET, text)
            return text  # inet_pton(3) takes four numbers without leading zeros, and nothing around them
        except (OSError, ValueError):
            pass
    packed = _packed(text)
    return None if packed is None else _text(packed)


def canonical_cidr(text: str) -> str | None:
    """TEXT as network/length with the host bits cleared, or None when it is not a CIDR."""
    found = parse_prefix(text)
    return found and str(ipaddress.ip_network(found, strict=False))


def parse_prefix(text: str) -> tuple[str, int] | None:
    """The address, canonical, and the length of the prefix in TEXT ("10.0.0.1/24"); None when it is none.

    The length of an IPv4-mapped prefix is IPv4's: ::ffff:10.0.0.0/104 is 10.0.0.0/8. One of fewer than 96 bits also
    covers addresses that are not IPv4-mapped, belongs to neither family, and is none.
    """
    address, slash, length = text.strip().partition("/")
    packed = _packed(address) if slash and address == address.strip() else None
    bits = None if packed is None else _number(length, 8 * len(packed))
    if packed is None or bits is None:
        return None
    if packed.startswith(_MAPPED):
        bits -= _MAPPED_BITS
    return (_text(packed), bits) if bits >= 0 else None


def _text(packed: bytes) -> str:
    if packed.startswith(_MAPPED):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _packed(text: str) -> bytes | None:
    """The 4 or 16 bytes of the address TEXT; None when it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        plain = _LEADING_ZEROS.sub("", text.strip())
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)
    except (OSError, ValueError):
        return None


def _number(text: str, largest: int) -> int | None:
    """The decimal number TEXT, leading zeros allowed; None if it is not one or exceeds LARGEST (below 1000)."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    # Three digits are enough to decide, and int() raises for more than 4,300.
    number = int(digits or "0") if len(digits) <= 3 else largest + 1
    return number if number <= largest else None


def contains(cidr: str, ip: str) -> bool:
    """Whether IP lies in CIDR; both canonical. Different families never do."""
    if (":" in cidr) != (":" in ip):
        return False
    return ipaddress.ip_address(ip) in ipaddress.ip_network(cidr)


def collapsed(cidrs: Iterable[str]) -> tuple[str, ...]:
    """The fewest CIDRs that hold the same addresses as CIDRS, which are canonical, of one family and may overlap."""
    networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    merged: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network] = ipaddress.collapse_addresses(networks)  # type: ignore[type-var]
    return tuple(map(str, merged))


def is_loopback(ip: str) -> bool:
    """Whether IP, canonical, is in 127.0.0.0/8 or is ::1."""
    return ip.startswith("127.") or ip == "::1"


def is_link_local(ip: str) -> bool:
    """Whether IP, canonical, is an IPv6 address in fe80::/10, which means nothing without an interface."""
    return ":" in ip and ipaddress.ip_address(ip).is_link_local
