"""After `kproxy cleanup` the kernel is as if no Service proxy had ever been there; nothing of others' is touched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kproxy.kernel import nfacct
from kproxy.kernel.constants import INVALID_DROPPED, NFACCT_COUNTERS
from kproxy.lab.proxies import Proxy

if TYPE_CHECKING:
    from tests.cleanup.conftest import Node

TAKEN_OVER = Path(__file__).parents[1] / "iptables" / "data"
NFT_RULES = Path(__file__).parent / "data" / "kube-proxy.nft"
STEMS = ("iptables", "ip6tables")


def kproxy_ran(node: Node, backend: str) -> None:
    """A real run over the cluster of the recorded node, ended by SIGTERM."""
    manifests = node.folder / f"manifests-{backend}"
    manifests.mkdir()
    shutil.copy(TAKEN_OVER / "objects.json", manifests)
    log = node.folder / "log"
    log.unlink(missing_ok=True)
    proxy = Proxy(node.space, manifests, log, (f"--iptables-backend={backend}", "--logging-format=json"))
    proxy.start()
    proxy.await_ready(lambda: log.read_text().count('"Synced"') >= 2)
    assert proxy.stop() == 0


def kube_proxy_ran(node: Node, backend: str) -> None:
    """kube-proxy's counters and rules, as they were recorded."""
    for name in NFACCT_COUNTERS:
        node.space.call(nfacct.ensure, name)
    for stem in STEMS:
        # Over what is there, with its own declarations of built-in chains left out.
        text = (TAKEN_OVER / f"{stem}-nft-save.txt").read_text()
        node.run(f"{stem}-{backend}-restore", "--noflush", given=without_firewall(text))


def without_firewall(text: str) -> str:
    """Without the chain that kubelet and kube-proxy share: declaring it would empty it, which kube-proxy does not."""
    return re.sub(r"^:KUBE-FIREWALL .*\n|^-A (INPUT|OUTPUT) -j KUBE-FIREWALL\n", "", text, flags=re.MULTILINE)


def kube_proxy_ran_on_nftables(node: Node, backend: str) -> None:
    node.run("nft", "-f", str(NFT_RULES))


RUNS: dict[str, tuple[Callable[[Node, str], None], str]] = {
    "kproxy, nft": (kproxy_ran, "nft"),
    "kproxy, legacy": (kproxy_ran, "legacy"),
    "kube-proxy, nft": (kube_proxy_ran, "nft"),
    "kube-proxy, legacy": (kube_proxy_ran, "legacy"),
    "kube-proxy in nftables mode": (kube_proxy_ran_on_nftables, "nft"),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_kernel_is_as_before(shared: Node, run: str) -> None:
    before, theirs = shared.holds(), shared.handles()
    act, backend = RUNS[run]
    act(shared, backend)
    assert shared.holds() != before
    status, said = shared.clean_up()
    assert status == 0, said
    assert shared.holds() == before
    assert theirs == shared.handles(), "rules of others were written anew"


def test_all_of_it_at_once_and_then_once_more(shared: Node) -> None:
    before, theirs = shared.holds(), shared.handles()
    for act, backend in RUNS.values():
        act(shared, backend)
    assert shared.clean_up()[0] == 0
    assert shared.holds() == before
    generation = shared.run("nft", "-j", "list", "ruleset")
    assert shared.clean_up()[0] == 0
    assert shared.holds() == before
    assert shared.handles() == theirs
    assert shared.run("nft", "-j", "list", "ruleset") == generation


@pytest.mark.parametrize("command", [("cleanup",), ("run", "--cleanup"), ("run", "--cleanup", "--proxy-mode=iptables")])
def test_the_flag_of_kube_proxy_does_the_same(node: Node, command: tuple[str, ...]) -> None:
    kproxy_ran(node, "nft")
    status, said = node.clean_up(*command)
    assert status == 0, said
    assert not any(node.holds().values())


def test_a_node_without_any_rules(node: Node) -> None:
    status, said = node.clean_up()
    assert status == 0, said
    assert not any(node.holds().values())
    assert not [line for line in said if "Cleaned" in line]


def test_the_counters_go_too(shared: Node) -> None:
    shared.space.call(nfacct.ensure, "others")
    kproxy_ran(shared, "nft")
    assert INVALID_DROPPED in shared.space.call(nfacct.counters)
    assert shared.clean_up()[0] == 0
    assert shared.space.call(nfacct.counters).keys() == {"others"}


def test_a_counter_that_others_count_in_stays(shared: Node) -> None:
    kproxy_ran(shared, "nft")
    shared.run("iptables-nft", "-A", "DOCKER-USER", "-m", "nfacct", "--nfacct-name", INVALID_DROPPED)
    assert shared.clean_up()[0] == 0
    assert shared.space.call(nfacct.counters).keys() == {INVALID_DROPPED}


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_others_need_stays(shared: Node, backend: str) -> None:
    """Some network plugins mark packets by a chain of kube-proxy's."""
    before = shared.holds()[f"iptables-{backend}"]
    kproxy_ran(shared, backend)
    theirs = "-p tcp -m tcp --dport 11 -j KUBE-MARK-MASQ"
    shared.run(f"iptables-{backend}", "-t", "nat", "-A", "CNI-0123", *theirs.split())
    for _ in range(2):
        status, said = shared.clean_up()
        assert status == 0, said
        assert sum("KUBE-MARK-MASQ" in line for line in said) == 1
        assert sorted(set(shared.holds()[f"iptables-{backend}"]) - set(before)) == [
            f"*nat -A CNI-0123 {theirs}",
            "*nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "*nat :KUBE-MARK-MASQ -",
        ]


def test_it_can_be_run_again_after_it(node: Node) -> None:
    kproxy_ran(node, "nft")
    before = {tool: lines for tool, lines in node.holds().items() if tool.endswith("nft")}
    node.clean_up()
    shutil.rmtree(node.folder / "manifests-nft")
    kproxy_ran(node, "nft")
    assert {tool: sorted(lines) for tool, lines in node.holds().items() if tool in before} == before


def test_what_it_did_is_said_in_one_line_each(node: Node) -> None:
    kproxy_ran(node, "nft")
    kube_proxy_ran_on_nftables(node, "nft")
    _, said = node.clean_up()
    assert sum("Cleaned" in line for line in said) >= len(STEMS)
    assert sum("Deleted an nf_tables table" in line for line in said) == len(STEMS)
    assert "Traceback" not in "".join(said)


NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")
WITHOUT_THE_RIGHT = {"not root": NOBODY, "root without NET_ADMIN": ("--bounding-set=-net_admin",)}


@pytest.mark.parametrize("command", [("cleanup",), ("run", "--cleanup")])
@pytest.mark.parametrize("confined", WITHOUT_THE_RIGHT.values(), ids=WITHOUT_THE_RIGHT.keys())
def test_who_may_not_clean_is_told_so_in_one_line(
    node: Node, command: tuple[str, ...], confined: tuple[str, ...]
) -> None:
    node.run("nft", "-f", str(NFT_RULES))
    before = node.holds()
    status, said = node.clean_up(*command, confined=confined)
    assert (status, len(said)) == (1, 1)
    assert said[0].endswith("nothing was cleaned: it takes root, or at least the capability NET_ADMIN")
    assert node.holds() == before


def test_what_may_not_be_looked_at_is_told_and_the_rest_goes(node: Node) -> None:
    """Who is not root but has NET_ADMIN may change nf_tables, and may not read which legacy tables there are."""
    for backend in ("nft", "legacy"):
        kproxy_ran(node, backend)
    before = node.holds()
    confined = (*NOBODY, "--inh-caps=+net_admin,+net_raw", "--ambient-caps=+net_admin,+net_raw")
    status, said = node.clean_up(confined=confined)
    assert status == 1
    assert [bool(after) for tool, after in node.holds().items() if tool.endswith("nft")] == [False] * 3
    assert node.holds()["iptables-legacy"] == before["iptables-legacy"]
    cleaned = [line for line in said if "Cleaned" in line]
    assert len(cleaned) == len(STEMS)
    assert not [line for line in cleaned if "legacy" in line]
    assert re.match("kproxy: error: .*legacy IPv4: .*Permission denied.*legacy IPv6: .*Permission denied", said[-1])
