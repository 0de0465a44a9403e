"""The whole suite at a tiny size: every quantity is there and can be true."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import main
from benchmarks.cluster import node
from benchmarks.suite.options import read
from benchmarks.suite.results import Quantity, Run, decode
from benchmarks.suite.runs import measure
from kproxy.lab.namespaces import unavailable
from kproxy.lab.proxies import wait_for
from tests.fakes.apihandler import CLUSTER_IPS, Rules
from tests.fakes.apiserver import ApiServer
from tests.fakes.apistore import Selection

TOOLS = ("iptables-nft-restore", "nft", "strace")
TINY = ["--changes", "3", "--starts", "1", "--storm-seconds", "0.3", "--packet-seconds", "0.2"]
# Between these a figure can be true, in the unit of its quantity.
PLAUSIBLE = {
    Quantity.COLD_START: (0.1, 60),
    Quantity.ENDPOINT_CHANGE: (0.0005, 30),
    Quantity.NEW_SERVICE: (0.0005, 30),
    Quantity.DELETED_SERVICE: (0.0005, 30),
    Quantity.CPU_PER_CHANGE: (0, 2),
    Quantity.BYTES_PER_CHANGE: (100, 1e6),
    Quantity.MEMORY: (20e6, 1e9),
    Quantity.MEMORY_PEAK: (20e6, 2e9),
    Quantity.STORM: (0.0005, 60),
    Quantity.STORM_SETTLED: (0, 60),
    Quantity.STORM_CPU: (0, 60),
    Quantity.CONNECTIONS: (10, 1e6),
    Quantity.FIRST_PACKET: (1e-6, 5),
}

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable(TOOLS)), reason=unavailable(TOOLS))]


def measured(folder: Path, *arguments: str) -> Run:
    assert main([*arguments, *TINY, "--out", str(folder)]) == 0
    return decode((folder / "suite.json").read_bytes())


def check(run: Run, *subjects: str) -> None:
    """Each of SUBJECTS has all quantities, each in its bounds, and nothing went wrong."""
    assert run.problems == ()
    assert {subject.name for subject in run.subjects} == set(subjects)
    found = {(each.subject, each.quantity) for each in run.measurements}
    assert found == {(subject, quantity) for subject in subjects for quantity in Quantity}
    for each in run.measurements:
        low, high = PLAUSIBLE[each.quantity]
        assert all(low <= sample <= high for sample in each.samples), (each.subject, each.quantity, each.samples)


def test_a_mode_is_measured_in_full(tmp_path: Path) -> None:
    run = measured(tmp_path, "--modes", "iptables", "--services", "20", "--endpoints", "2")
    check(run, "kproxy iptables")
    counts = {each.quantity: len(each.samples) for each in run.measurements}
    assert counts[Quantity.NEW_SERVICE] == counts[Quantity.DELETED_SERVICE] == 3
    assert (tmp_path / "suite.html").exists()


def test_a_baseline_stands_beside_it_against_any_api_server_twice_in_a_row(tmp_path: Path) -> None:
    """By TLS through the relay, in nftables mode with a ServiceCIDR, where packets to a deleted Service are dropped.

    Nothing is left on that server but a namespace on its way out, and what was there before is. The second run waits
    for that namespace, and for the Node that a run which was killed had left.
    """
    with ApiServer(tls=True, tokens=["secret"], rules=Rules(termination_seconds=3.0)) as server:
        server.apply({"kind": "Service", "metadata": {"name": "theirs"}, "spec": {"clusterIP": "10.99.0.1"}})
        server.apply({"kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": [str(CLUSTER_IPS)]}})
        before = content(server)
        config = tmp_path / "kubeconfig"
        config.write_text(yaml.safe_dump(kubeconfig(server, "secret")))
        command = f"other={sys.executable} -m kproxy run --config {{config}} --v 1"
        sizes = ("--services", "10", "--endpoints", "1")
        run = measured(tmp_path, "--modes", "nftables", *sizes, "--kubeconfig", str(config), "--baseline", command)
        check(run, "kproxy nftables", "other nftables")
        assert [subject.baseline for subject in run.subjects] == [False, True]
        assert (tmp_path / "comparison.png").exists()
        server.apply(node())
        check(measured(tmp_path, "--modes", "nftables", *sizes, "--kubeconfig", str(config)), "kproxy nftables")
        assert wait_for(lambda: content(server) == before, 10), content(server)


def content(server: ApiServer) -> list[str]:
    kinds = ("Service", "EndpointSlice", "Node", "Namespace")
    return [f"{kind} {item.name}" for kind in kinds for item in server.store.objects(Selection(kind))[1]]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("sh -c 'echo first; echo no good; exit 3'", "it ended with status 3: no good"),
        ("/no/such/proxy", "it ended with status"),
    ],
)
def test_a_proxy_that_ends_is_told_and_the_run_goes_on(command: str, why: str) -> None:
    options = read(["--modes", "nftables", "--services", "1,2", "--baseline", f"bad={command}", "--starts", "1"])
    bad = [launch for launch in options.launches if launch.subject.baseline]
    run = measure(replace(options, launches=(*bad, *bad)), (), Silent())
    assert {problem.subject for problem in run.problems} == {"bad nftables"}
    assert all(problem.why.startswith(why) for problem in run.problems)
    assert run.measurements == ()


class Silent:
    def begin(self, subject: str, services: int, what: str, total: int) -> None: ...
    def step(self) -> None: ...
    def say(self, line: str) -> None: ...


def kubeconfig(server: ApiServer, token: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server.url, "certificate-authority": str(server.ca_file)}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
