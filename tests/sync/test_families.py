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


SAVE, RESTORE = "-nft-save", "-nft-restore"


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ((), (Family.IPV4, Family.IPV6)),
        ((f"ip6tables{SAVE}",), (Family.IPV4, Family.IPV6)),  # others may have something there that it cannot read
        ((f"iptables{SAVE}", f"ip6tables{SAVE}"), (Family.IPV4, Family.IPV6)),
        ((f"ip6tables{SAVE}", f"ip6tables{RESTORE}"), (Family.IPV4,)),
    ],
)
def test_a_family_counts_if_its_tables_can_be_read_or_written(
    broken: tuple[str, ...], found: tuple[Family, ...]
) -> None:
    assert families(Tools(*broken), COMMAND) == found


def test_without_ipv4_tables_there_is_nothing_to_do() -> None:
    with pytest.raises(KernelError, match="Table does not exist"):
        families(Tools(f"iptables{SAVE}", f"iptables{RESTORE}"), COMMAND)
