"""Which families a host can be programmed for: both, or IPv4 alone, or an error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kproxy.errors import KernelError
from kproxy.kernel.commands import Completed
from kproxy.kernel.iptables import Backend, Command
from kproxy.model.plans import Family
from kproxy.sync.host_setup import families

COMMAND = Command(Backend.NFT, "-nft", (1, 8, 9))


class Tools:
    """A host on which some of the commands fail."""

    def __init__(self, *broken: str) -> None:
        self._broken = broken

    def run(self, argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0) -> Completed:
        broken = argv[0] in self._broken
        return Completed(int(broken), stderr="Table does not exist" if broken else "")

    def which(self, name: str) -> str | None:
        return name


def test_ipv4_alone_where_ipv6_tables_cannot_be_had() -> None:
    assert families(Tools("ip6tables-nft-save"), COMMAND) == (Family.IPV4,)


def test_without_ipv4_tables_there_is_nothing_to_do() -> None:
    with pytest.raises(KernelError, match="Table does not exist"):
        families(Tools("iptables-nft-save"), COMMAND)
