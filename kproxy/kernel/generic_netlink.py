"""Generic netlink: families that the kernel knows by name, and the header that their messages share.

Sources: include/uapi/linux/genetlink.h, net/netlink/genetlink.c.
"""

from __future__ import annotations

import struct

from kproxy.kernel import netlink
from kproxy.kernel.netlink_sockets import Socket

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_VERSION = 0x10, 3, 2
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2

_HEADER = struct.Struct("=BBH")  # struct genlmsghdr
HEADER = _HEADER.size


def header(command: int, version: int) -> bytes:
    """struct genlmsghdr, with which every payload of generic netlink begins."""
    return _HEADER.pack(command, version, 0)


def family_id(kernel: Socket, name: str) -> int:
    """The message type of a family. The kernel loads the module that has it, where the module says so.

    Raises NetlinkError, ENOENT when there is no such family.
    """
    asked = header(CTRL_CMD_GETFAMILY, CTRL_VERSION) + netlink.text(CTRL_ATTR_FAMILY_NAME, name)
    (answer, *_) = kernel.ask(GENL_ID_CTRL, asked, f"find generic netlink family {name}")
    found = netlink.attributes(answer.payload, start=HEADER)
    (number,) = struct.unpack("=H", found[CTRL_ATTR_FAMILY_ID])
    return int(number)
