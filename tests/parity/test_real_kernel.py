"""On the real kernel kproxy's rules list as kube-proxy's do: both are loaded, saved by the same tool, and compared.

nftables mode has rules of its own, but kube-proxy's cases are states that the kernel must take them for.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family
from kproxy.modes.iptables.apply import IptablesDataplane
from tests.fakes.iptables import FakeTables
from tests.network_namespaces import InNamespace, fresh_namespace
from tests.parity.conftest import Case

pytestmark = pytest.mark.root

SHORT = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


@pytest.fixture(scope="module", params=list(Backend))
def namespaces(request: pytest.FixtureRequest) -> Iterator[tuple[Backend, Namespace, Namespace]]:
    """One for kube-proxy's rules, one for ours; emptied from case to case."""
    backend: Backend = request.param
    tools = (f"iptables-{backend}-restore", f"ip6tables-{backend}-restore")
    with fresh_namespace("theirs", *tools) as theirs, fresh_namespace("ours", *tools) as ours:
        yield backend, theirs, ours


def loadable(rules: str) -> str:
    """kube-proxy's rules as iptables-restore takes them: comments quoted that stand bare in the recording, policies."""
    lines = []
    for line in rules.splitlines():
        head, mark, rest = line.partition("--comment ")
        if mark and not rest.startswith('"'):
            words = rest.split(" -")
            line = f'{head}--comment "{words[0]}"' + "".join(f" -{word}" for word in words[1:])
        if line.startswith(":") and not line.startswith(":KUBE-"):
            line = f"{line.split()[0]} ACCEPT [0:0]"
        lines.append(line)
    return "\n".join(lines) + "\n"


def load_theirs(namespace: Namespace, tool: str, rules: str) -> str:
    namespace.run([f"{tool}-restore"], loadable(rules))
    return namespace.run([f"{tool}-save"])


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_saved_rules_are_equal(
    case: Case, family: str, namespaces: tuple[Backend, Namespace, Namespace], compare: ModuleType
) -> None:
    backend, theirs, ours = namespaces
    tool = f"{'iptables' if family == 'ipv4' else 'ip6tables'}-{backend}"
    expected = load_theirs(theirs, tool, case.raw["expect"]["iptables"][family]["rules"])
    ours.run([f"{tool}-restore"], "*nat\nCOMMIT\n*filter\nCOMMIT\n")
    tables = HostTables(InNamespace(ours), SHORT[family], Command(backend, f"-{backend}", (1, 8, 9)))
    settings, plans = case.preview.settings(SHORT[family]), case.preview.families[SHORT[family]].plans
    assert not IptablesDataplane(settings, tables).apply(plans, None).rejected
    saved = tables.save()
    assert compare.differences(compare.canonical(saved), compare.canonical(expected)) == []
    # And a node that kube-proxy leaves needs nothing.
    first = IptablesDataplane(settings, _Unwritten(SHORT[family], backend, expected)).apply(plans, None)
    assert (first.transactions, first.bytes_written, first.rejected) == (0, 0, {})


@pytest.fixture(scope="module")
def netns() -> Iterator[Namespace]:
    with fresh_namespace("nftables", "nft") as space:
        yield space


def test_the_kernel_takes_the_text_of_every_case(case: Case, netns: Namespace) -> None:
    for family in Family:
        netns.run(["nft", "-f", "-"], case.preview.nftables(family))


class _Unwritten(FakeTables):
    """Tables as a tool saved them, which nobody may write to."""

    def __init__(self, family: Family, backend: Backend, saved: str) -> None:
        super().__init__(family, backend)
        self._saved = saved

    def save(self) -> str:
        return self._saved

    def restore(self, text: bytes | str) -> None:
        pytest.fail(f"written: {text!r}")
