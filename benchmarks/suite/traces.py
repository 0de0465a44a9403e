"""What strace wrote, and how many bytes of it went to the kernel's tables. Pure.

Counted are messages on netlink sockets (nf_tables, IPVS, ipset, conntrack, addresses) and the options by which the
legacy tables and IPVS are replaced. Reading is not counted, though a request to list something is a few bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

CALLS = ("sendto", "sendmsg", "write", "writev", "setsockopt")

_BEGUN = re.compile(r"^(?P<pid>\d+) +(?P<text>.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)$")
_CALL = re.compile(r"^\d+ +(?P<name>\w+)\(\d+<(?P<what>[A-Za-z0-9]+)\S*, (?P<rest>.*)\) += (?P<result>-?\d+)")
_OPTION = re.compile(r"^SOL_(?:IP|IPV6|RAW), (?P<name>.+), [^,]+, (?P<size>\d+)$")
# IPT_SO_SET_* and IP6T_SO_SET_* (64 and 65), IP_VS_SO_SET_* (1153 up): include/uapi/linux/netfilter_ipv4/ip_tables.h
# and include/uapi/linux/ip_vs.h. strace knows some of the names.
_TABLES = re.compile(r"IP6?T_SO_SET|IP_VS_SO_SET|^0x4[01]\b|^0x48[0-9a-f]\b")


def written(lines: Iterable[str]) -> int:
    """Bytes, by the calls that succeeded."""
    total, begun = 0, dict[str, str]()
    for line in lines:
        line = line.rstrip("\n")
        if start := _BEGUN.match(line):
            begun[start["pid"]] = f"{start['pid']} {start['text']}"
            continue
        if end := _RESUMED.match(line):
            line = begun.pop(end["pid"], "") + end["rest"]
        total += _bytes(line)
    return total


def _bytes(line: str) -> int:
    call = _CALL.match(line)
    if call is None or int(call["result"]) < 0:
        return 0
    if call["name"] == "setsockopt":
        option = _OPTION.match(call["rest"])
        return int(option["size"]) if option and _TABLES.search(option["name"]) else 0
    return int(call["result"]) if call["what"] == "NETLINK" else 0
