"""The file of --host: the addresses of a host other than this one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from kproxy.config.parse_errors import mismatch, of_text
from kproxy.errors import InvalidConfig
from kproxy.files import read_file
from kproxy.model.addresses import canonical_ip, parse_prefix
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
    prefixes = [parse_prefix(a) for i in found.interfaces if i.name != SERVICE_DEVICE for a in i.addresses]
    return NodeInfo(
        ips=tuple(filter(None, map(canonical_ip, found.node_ips))),
        addresses=tuple([prefix[0] for prefix in prefixes if prefix]),
    )


def _problems(found: _File) -> Iterator[str]:
    ips = [canonical_ip(ip) for ip in found.node_ips]
    for i, ip in enumerate(ips):
        if ip is None:
            yield f'nodeIPs[{i}]: must be an IP address, is "{found.node_ips[i]}"'
    if len({family_of(ip) for ip in ips if ip}) < len([ip for ip in ips if ip]):
        yield "nodeIPs: must hold at most one address of each IP family"
    for i, interface in enumerate(found.interfaces):
        for j, address in enumerate(interface.addresses):
            if parse_prefix(address) is None:
                yield f'interfaces[{i}].addresses[{j}]: must be IP/LENGTH, is "{address}"'
