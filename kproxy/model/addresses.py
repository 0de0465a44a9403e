"""Reads IP addresses and CIDRs as tolerantly as Kubernetes does, and writes them as canonical text.

Objects that are older than strict validation may carry leading zeros (010.0.0.1 is 10.0.0.1, KEP-4858), and an
IPv4-mapped IPv6 address counts as IPv4.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96


def canonical_ip(text: str) -> str | None:
    """TEXT as the kernel's tools print it, or None when it is not an IP address."""
    try:
        if ":" not in text:
            socket.inet_pton(socket.AF_INET, text)
            return text  # inet_pton(3) takes four decimal numbers without leading zeros, and nothing else
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return _ipv4_with_leading_zeros(text)
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _ipv4_with_leading_zeros(text: str) -> str | None:
    octets = [_number(part, 255) for part in text.split(".")] if text.count(".") == 3 else []
    return ".".join(map(str, octets)) if octets and None not in octets else None


def _number(text: str, largest: int) -> int | None:
    """The decimal number TEXT, leading zeros allowed; None if it is not one or exceeds LARGEST (below 1000)."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    # Three digits are enough to decide, and int() raises for more than 4,300.
    number = int(digits or "0") if len(digits) <= 3 else largest + 1
    return number if number <= largest else None


def canonical_cidr(text: str) -> str | None:
    """TEXT as network/length with the host bits cleared, or None when it is not a CIDR."""
    address, slash, length = text.partition("/")
    ip = canonical_ip(address)
    if ip is None or not slash:
        return None
    bits = _number(length, 128 if ":" in ip else 32)
    return None if bits is None else str(ipaddress.ip_network(f"{ip}/{bits}", strict=False))


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
