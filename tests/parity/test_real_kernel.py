"""On the real kernel kproxy's rules list as kube-proxy's do: both are loaded, saved by the same tool, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from kproxy.kernel.commands import Commands
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.preview import Preview, load
from tests.fakes.iptables import FakeTables

pytestmark = pytest.mark.root

SHORT = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


@pytest.fixture(scope="module", params=list(Backend))
def namespaces(request: pytest.FixtureRequest) -> Iterator[tuple[Backend, Namespace, Namespace]]:
    """One for kube-proxy's rules, one for ours; emptied from case to case."""
    backend: Backend = request.param
    if reason := unavailable((f"iptables-{backend}-restore", f"ip6tables-{backend}-restore")):
        pytest.skip(reason)
    theirs, ours = Namespace("theirs"), Namespace("ours")
    try:
        yield backend, theirs, ours
    finally:
        theirs.close()
        ours.close()


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
    case: Any, family: str, namespaces: tuple[Backend, Namespace, Namespace], compare: ModuleType
) -> None:
    backend, theirs, ours = namespaces
    tool = f"{'iptables' if family == 'ipv4' else 'ip6tables'}-{backend}"
    expected = load_theirs(theirs, tool, case.raw["expect"]["iptables"][family]["rules"])
    state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
    preview = Preview(state, case.config, case.host)
    ours.run([f"{tool}-restore"], "*nat\nCOMMIT\n*filter\nCOMMIT\n")
    tables = HostTables(Inside(ours), SHORT[family], Command(backend, f"-{backend}", (1, 8, 9)))
    settings, plans = preview.settings(SHORT[family]), preview.families[SHORT[family]].plans
    assert not IptablesDataplane(settings, tables).apply(plans, None).rejected
    saved = tables.save()
    assert compare.differences(compare.canonical(saved), compare.canonical(expected)) == []
    # And a node that kube-proxy leaves needs nothing.
    first = IptablesDataplane(settings, _Unwritten(SHORT[family], backend, expected)).apply(plans, None)
    assert (first.transactions, first.bytes_written, first.rejected) == (0, 0, {})


class _Unwritten(FakeTables):
    """Tables as a tool saved them, which nobody may write to."""

    def __init__(self, family: Family, backend: Backend, saved: str) -> None:
        super().__init__(family, backend)
        self._saved = saved

    def save(self) -> str:
        return self._saved

    def restore(self, text: bytes | str) -> None:
        pytest.fail(f"written: {text!r}")


class Inside:
    """Commands in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace, self._commands = namespace, Commands()

    def run(self, argv: Any, stdin: bytes | None = None, timeout: float = 60.0) -> Any:
        return self._namespace.call(self._commands.run, argv, stdin, timeout)

    def which(self, name: str) -> str | None:
        return self._commands.which(name)
