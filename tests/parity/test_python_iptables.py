"""python-iptables reads legacy tables that kproxy wrote, and writes some that kproxy takes over and mends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from msgspec.structs import replace

from kproxy.kernel import nfacct
from kproxy.kernel.constants import NFACCT_COUNTERS
from kproxy.kernel.iptables import Backend, Command, HostTables
from kproxy.kernel.legacy_tables import LegacyDrift
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.preview import Preview, load
from tests.network_namespaces import InNamespace
from tests.parity.conftest import Case, cases
from tests.parity.test_real_kernel import SHORT, load_theirs, loadable

pytestmark = pytest.mark.root

SOME = cases()[::8]  # all of them agree, in half a minute
RICH = max(cases(), key=lambda case: min(case.raw["expect"]["iptables"][f]["rules"].count("\n-A") for f in SHORT))
EMPTY = "*nat\nCOMMIT\n*filter\nCOMMIT\n"
OTHERS = """\
*filter
:OTHERS - [0:0]
-A FORWARD -i eth7 -p tcp -m tcp --dport 22 -j OTHERS
-A OTHERS -m comment --comment "somebody else's" -j DROP
COMMIT
*nat
:KUBE-MARK-DROP - [0:0]
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A POSTROUTING ! -o eth7 -m mark --mark 0x8/0x8 -j MASQUERADE
COMMIT
"""


class Node:
    """A namespace with legacy tables of one family, kproxy's dataplane over them, and python-iptables."""

    def __init__(self, space: Namespace, family: str) -> None:
        self.family, self._space = family, space
        for counter in NFACCT_COUNTERS:  # rules name them, and the daemon makes them
            space.call(nfacct.ensure, counter)
        self._tool = f"{'iptables' if family == 'ipv4' else 'ip6tables'}-legacy"
        script = Path(__file__).with_name("python_iptables.py")
        self._process: subprocess.Popen[str] = space.call(
            subprocess.Popen,
            [sys.executable, str(script), family],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, verb: str, text: str = "") -> str:
        """python-iptables' answer."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({verb: text}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, str), answer
        return answer

    def write(self, text: str) -> None:
        self.ask("prepare", text)
        self.ask("commit")

    def theirs(self, case: Case) -> str:
        """kube-proxy's rules, loaded and saved by the legacy tools, which are empty then."""
        saved = load_theirs(self._space, self._tool, case.raw["expect"]["iptables"][self.family]["rules"])
        self._space.run([f"{self._tool}-restore"], EMPTY)
        return saved

    def serve(self, case: Case) -> IptablesDataplane:
        """kproxy's new dataplane, still without an apply; `check` does that."""
        state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
        preview, family = Preview(state, case.config, case.host), SHORT[self.family]
        self.plans = dict(preview.families[family].plans)
        self._kproxy = HostTables(InNamespace(self._space), family, Command(Backend.LEGACY, "-legacy", (1, 8, 9)))
        return IptablesDataplane(preview.settings(family), self._kproxy, LegacyDrift(family))

    def check(self, dataplane: IptablesDataplane) -> int:
        """How many transactions a full check needs."""
        outcome = self._space.call(dataplane.apply, self.plans, None)
        assert not outcome.rejected
        return outcome.transactions

    def drifted(self, dataplane: IptablesDataplane) -> bool:
        return self._space.call(dataplane.drifted)

    def close(self) -> None:
        with self._process:
            self._process.terminate()


@pytest.fixture(scope="module", params=list(SHORT))
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    if reason := unavailable(("iptables-legacy-restore", "ip6tables-legacy-restore")):
        pytest.skip(reason)
    with closing(Namespace("witness")) as space, closing(Node(space, request.param)) as made:
        yield made


def rules(text: str, compare: ModuleType) -> dict[str, dict[str, list[object]]]:
    found: dict[str, dict[str, list[object]]] = compare.canonical(text)
    return found


def test_it_reads_ours_as_kube_proxys_and_what_it_writes_is_taken_over(node: Node, compare: ModuleType) -> None:
    for case in SOME:
        expected = node.theirs(case)
        node.check(node.serve(case))
        assert compare.differences(rules(node.ask("read"), compare), rules(expected, compare)) == [], case.raw["id"]
        node.theirs(case)
        node.write(loadable(case.raw["expect"]["iptables"][node.family]["rules"]))
        node.write(OTHERS)
        assert node.check(node.serve(case)) == 0, case.raw["id"]


def delete_first_jump(read: str, chain: str) -> str:
    """The line that deletes CHAIN's first jump to one of our chains."""
    return next(f"-D{line[2:]}" for line in read.splitlines() if line.startswith(f"-A {chain} ") and "-j KUBE-" in line)


@pytest.mark.parametrize(
    "edit",
    [
        "*nat\n-F KUBE-SERVICES\n",
        "*nat\n-F PREROUTING\n*filter\n-F INPUT\n-F OUTPUT\n",
        "*nat\nKUBE-SERVICES\n",
        "*nat\nPREROUTING\n*filter\nFORWARD\n",
        "*nat\n-A KUBE-MARK-MASQ -j RETURN\n-A KUBE-POSTROUTING -j ACCEPT\n",
        "*filter\n-A KUBE-NODEPORTS -p tcp -m tcp --dport 30000 -j DROP\n",
        "*nat\n:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n-A KUBE-SEP-AAAAAAAAAAAAAAAA -j ACCEPT\n",
    ],
)
def test_what_it_spoils_is_noticed_and_mended_and_what_is_its_own_stays(
    node: Node, compare: ModuleType, edit: str
) -> None:
    node.theirs(RICH)
    node.write(OTHERS)
    dataplane = node.serve(RICH)
    node.check(dataplane)
    before = node.ask("read")
    assert "-j OTHERS" in before
    lines = edit.splitlines()
    node.write("\n".join(line if line[0] in "*:-" else delete_first_jump(before, line) for line in lines))
    assert node.drifted(dataplane)
    assert node.check(dataplane) > 0
    assert compare.differences(rules(node.ask("read"), compare), rules(before, compare)) == []
    assert not node.drifted(dataplane)
    assert node.check(dataplane) == 0


def test_what_it_read_before_our_change_and_writes_after_it_undoes_the_change_until_the_next_check(node: Node) -> None:
    """It takes no lock, and the kernel lets it: the number of entries is the same."""
    node.theirs(RICH)
    dataplane = node.serve(RICH)
    node.check(dataplane)
    node.ask("prepare", OTHERS)
    key, plan = next((key, plan) for key, plan in node.plans.items() if plan.has_endpoints)
    moved = "10.96.99.99" if node.family == "ipv4" else "fd00:10:96::9999"
    node.plans[key] = replace(plan, cluster_ip=moved)
    assert node.check(dataplane) > 0
    node.ask("commit")
    assert moved not in node.ask("read")
    assert node.drifted(dataplane)
    assert node.check(dataplane) > 0
    assert {moved, "OTHERS"} <= set(node.ask("read").replace("/", " ").split())
    assert node.check(dataplane) == 0


def test_what_it_read_before_a_change_of_another_size_it_cannot_write(node: Node) -> None:
    node.theirs(RICH)
    dataplane = node.serve(RICH)
    node.check(dataplane)
    node.ask("prepare", OTHERS[OTHERS.index("*nat") :])
    del node.plans[next(iter(node.plans))]
    assert node.check(dataplane) > 0
    with pytest.raises(AssertionError, match="Resource temporarily unavailable"):
        node.ask("commit")
    assert not node.drifted(dataplane)
    assert node.check(dataplane) == 0
