"""IP addresses and CIDRs as canonical text, read as tolerantly as Kubernetes reads them.

Objects that are older than strict validation may carry leading zeros (010.0.0.1 is 10.0.0.1, KEP-4858), and an
IPv4-mapped IPv6 address counts as IPv4.
"""

from __future__ import annotations

import ipaddress
import socket

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96


def canonical_ip(text: str) -> str | None:
    """TEXT as the kernel's tools print it, or None when it is no IP address."""
    try:
        if ":" not in text:
            socket.inet_pton(socket.AF_INET, text)
            return text  # inet_pton(3) takes four decimal numbers without leading zeros, and nothing else
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return _sloppy(text)
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _sloppy(text: str) -> str | None:
    parts = text.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and int(p) < 256 for p in parts):
        return None
    return ".".join(str(int(p)) for p in parts)


def canonical_cidr(text: str) -> str | None:
    """TEXT as network/length with the host bits cleared, or None when it is no CIDR."""
    address, slash, length = text.partition("/")
    ip = canonical_ip(address)
    if ip is None or not slash or not (length.isascii() and length.isdigit()):
        return None
    try:
        return str(ipaddress.ip_network(f"{ip}/{int(length)}", strict=False))
    except ValueError:
        return None


def contains(cidr: str, ip: str) -> bool:
    """Whether IP lies in CIDR; both canonical. Different families never do."""
    if (":" in cidr) != (":" in ip):
        return False
    return ipaddress.ip_address(ip) in ipaddress.ip_network(cidr)


def is_loopback(ip: str) -> bool:
    """Whether IP, canonical, is in 127.0.0.0/8 or is ::1."""
    return ip.startswith("127.") or ip == "::1"


def is_link_local(ip: str) -> bool:
    """Whether IP, canonical, is an IPv6 address in fe80::/10, which means nothing without an interface."""
    return ":" in ip and ipaddress.ip_address(ip).is_link_local
