"""The file of --host: the addresses of a host other than this one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kproxy.config.parse_errors import mismatch, of_text
from kproxy.errors import InvalidConfig
from kproxy.files import read_file
from kproxy.model.node_info import SERVICE_DEVICE, NodeInfo, family_of


class _Interface(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    addresses: list[str] = []


class _File(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    node_ips: list[str] = msgspec.field(name="nodeIPs", default_factory=list)
    interfaces: list[_Interface] = msgspec.field(default_factory=list)


def read(path: Path) -> NodeInfo:
    """Read a host from a JSON file: {"nodeIPs": [IP], "interfaces": [{"name", "addresses": ["IP/LENGTH"]}]}.

    Raises InvalidConfig, each problem with the name of the file in front.
    """
    try:
        return from_text(read_file(path))
    except OSError as error:
        raise InvalidConfig([f"{path}: {error.strerror}"]) from error
    except InvalidConfig as error:
        raise InvalidConfig([f"{path}: {problem}" for problem in error.problems]) from error


def from_text(text: bytes) -> NodeInfo:
    """Parse the JSON of a host. Raises InvalidConfig with every problem in its values."""
    try:
        found = msgspec.json.decode(text, type=_File)
    except msgspec.ValidationError as error:
        raise InvalidConfig([": ".join(filter(None, mismatch(msgspec.json.decode(text), _File)))]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig([of_text(text)]) from error
    if problems := list(_problems(found)):
        raise InvalidConfig(problems)
    addresses = [
        ipaddress.ip_interface(a).ip for i in found.interfaces if i.name != SERVICE_DEVICE for a in i.addresses
    ]
    return NodeInfo(
        ips=tuple(str(ipaddress.ip_address(ip)) for ip in found.node_ips),
        addresses=tuple(str(address) for address in addresses),
    )


def _problems(found: _File) -> Iterator[str]:
    for i, ip in enumerate(found.node_ips):
        if not _is_address(ip, "ip"):
            yield f'nodeIPs[{i}]: must be an IP address, is "{ip}"'
    if len({family_of(ip) for ip in found.node_ips}) < len(found.node_ips):
        yield "nodeIPs: must hold at most one address of each IP family"
    for i, interface in enumerate(found.interfaces):
        for j, address in enumerate(interface.addresses):
            if not _is_address(address, "ip/length"):
                yield f'interfaces[{i}].addresses[{j}]: must be IP/LENGTH, is "{address}"'


def _is_address(text: str, form: str) -> bool:
    # Python also accepts netmasks and zones, and an address in place of a network.
    length = text.partition("/")[2]
    if "%" in text or (form == "ip/length") != length.isdecimal() or not text.isascii():
        return False
    try:
        return bool(ipaddress.ip_interface(text) if form == "ip/length" else ipaddress.ip_address(text))
    except ValueError:
        return False
