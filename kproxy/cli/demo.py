"""`kproxy demo`: a small cluster in network namespaces, with the real daemon and real packets.

It shows rules, which pods answer at each address of a Service, and how soon traffic follows an edit. Without permission
to create namespaces it prints what would be programmed instead. The host's own network is not touched, and everything
is removed at the end.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.live import Live

import kproxy
from kproxy.cli import demo_views as views
from kproxy.config.fields import ProxyMode
from kproxy.lab import probes
from kproxy.lab.clusters import CLIENT, Cluster, Pod, build, node_address
from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.lab.probes import Answered, Nothing, Outcome
from kproxy.lab.proxies import Proxy, choose_backend
from kproxy.model.plans import Family

PODS = (Pod("web-1", 1, 11), Pod("web-2", 1, 12), Pod("shell", 1, 13), Pod("web-3", 2, 11), Pod("dns-1", 2, 12))
PORTS = {"web-1": (8080,), "web-2": (8080,), "web-3": (8080,), "dns-1": (5353,)}
WEB = re.compile(r"shop/web:|(10\.96\.0\.80|203\.0\.113\.80):80 |:30080 ")  # by name, or by address
ROUNDS = 60  # requests at each address
PACE = 0.02  # seconds between rounds: enough to watch
RUN = 25  # answers in a row from the expected pods that prove an edit; the odds of chance are 1 to 3**25
STEADY = 1.0  # seconds of traffic before and after an edit
LATE = 10.0  # seconds after which an edit has failed


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--mode", type=click.Choice([m.value for m in ProxyMode]), default="iptables", show_default=True)
def command(mode: str) -> int:
    """Run a small cluster in network namespaces, with real rules and real traffic, and remove it again."""
    console = views.console()
    reason = unavailable()
    if reason:
        console.print(f"No cluster can be built here: {reason}. This is what kproxy would program:\n")
        return _only_render(mode)
    with tempfile.TemporaryDirectory(prefix="kproxy-demo-") as folder, build(PODS, PORTS) as cluster:
        return _Demo(console, cluster, Path(folder), mode).play()


def examples() -> Path:
    """Return the folder of example manifests, in the installed package or at the top of the source tree."""
    package = Path(kproxy.__file__).parent
    return next(p for p in (package / "examples", package.parent / "examples") if p.is_dir())


def _only_render(mode: str) -> int:
    from kproxy.cli.render import command as render

    host = '{"nodeIPs": ["172.30.0.11", "fd00:30::11"], "interfaces": []}'
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(host)
        file.flush()
        words = ["--mode", mode, "--node", "node1", "--host", file.name, "-f", str(examples())]
        render.main(words, prog_name="kproxy render", standalone_mode=False)
    return 0


class _Demo:
    """The parts of the demo, in order, on one cluster."""

    def __init__(self, console: Console, cluster: Cluster, folder: Path, mode: str) -> None:
        self._console, self._cluster, self._mode = console, cluster, mode
        self._manifests = folder / "manifests"
        shutil.copytree(examples(), self._manifests)
        self._web = list(yaml.safe_load_all((self._manifests / "web.yaml").read_text()))
        self._spare = folder / "web.yaml"
        self._proxy = Proxy(
            self._node, self._manifests, folder / "kproxy.log", ["--proxy-mode", mode, "--conntrack-max-per-core", "0"]
        )
        self._steps: list[views.Step] = []

    @property
    def _node(self) -> Namespace:
        return self._cluster.spaces["node1"]

    def play(self) -> int:
        backend = next((b for b in ("nft", "legacy") if shutil.which(f"iptables-{b}-save")), "")
        began = time.monotonic()
        views.introduce(self._console, self._mode, examples())
        if backend:
            choose_backend(self._node, backend)
        started = time.monotonic()
        self._proxy.start()
        try:
            self._proxy.await_ready(lambda: isinstance(self._ask(), Answered))
            self._console.print(
                f"kproxy answers for its Services {time.monotonic() - started:.2f} s after its start.\n"
            )
            self._show_rules(backend)
            self._ask_everywhere()
            self._edit_and_watch()
        finally:
            if self._proxy.running():
                self._proxy.stop()
        views.summarise(self._console, self._steps, time.monotonic() - began)
        return 0

    def _ask(self, timeout: float = 2) -> Outcome:
        return self._cluster.spaces["shell"].call(probes.tcp, "10.96.0.80", 80, timeout)

    def _show_rules(self, backend: str) -> None:
        command = self._listing(backend)
        shown = self._node.run(command).splitlines() if shutil.which(command[0]) else []
        views.show_rules(self._console, " ".join(command), [line for line in shown if WEB.search(line)])

    def _listing(self, backend: str) -> list[str]:
        """Return the command that lists the rules of the mode."""
        match ProxyMode(self._mode):
            case ProxyMode.NFTABLES:
                return ["nft", "list", "table", "ip", "kproxy"]
            case ProxyMode.IPVS:
                return ["ipvsadm", "-Sn"]
            case _:
                return [f"iptables-{backend}-save" if backend else "iptables-save", "-t", "nat"]

    def _ask_everywhere(self) -> None:
        ways = self._ways()
        with Live(console=self._console, auto_refresh=False) as live:
            for _ in range(ROUNDS):
                for way in ways:
                    way.note(self._cluster.spaces[way.source].call(way.function, way.ip, way.port, 2.0, ""))
                live.update(views.ways_table(ways, self._owner), refresh=self._console.is_terminal)
                time.sleep(PACE)
        self._console.print()

    def _ways(self) -> list[views.Way]:
        node, client = node_address(1, Family.IPV4), "client"
        return [
            views.Way("shell", "cluster IP", probes.tcp, "10.96.0.80", 80),
            views.Way("shell", "the same, IPv6", probes.tcp, "fd00:96::80", 80),
            views.Way("node1", "cluster IP", probes.tcp, "10.96.0.80", 80),
            views.Way("shell", "DNS by UDP", probes.udp, "10.96.0.10", 53),
            views.Way(client, "node port", probes.tcp, node, 30080),
            views.Way(client, "load balancer IP", probes.tcp, "203.0.113.80", 80),
            views.Way(client, "node port, policy Local", probes.tcp, node, 30081),
        ]

    def _owner(self, address: str) -> str:
        """Return the name of the one whose address a pod saw."""
        if address in CLIENT.values():
            return "client"
        names = ["node1", "node2", *self._cluster.pods]
        return next((n for n in names for f in Family if address in self._cluster.addresses_of(n, f)), "?")

    def _edit_and_watch(self) -> None:
        """Scale the web Service to one pod, to none and back, under steady traffic."""
        every = {"web-1", "web-2", "web-3"}
        self._console.print("[bold]3. Traffic follows the manifests[/], while a pod asks 10.96.0.80 all the time")
        with Live(console=self._console, auto_refresh=False) as live:

            def show() -> None:
                live.update(views.steps_table(self._steps), refresh=self._console.is_terminal)

            self._edit({"web-3"}, views.Step("leave only web-3", "answer"), _by_web_3, RUN, show)
            self._edit(set(), views.Step("leave no pod", "refusal"), lambda o: o is Nothing.REFUSED, 1, show)
            self._edit(every, views.Step("all three again", "answer"), lambda o: isinstance(o, Answered), 1, show)

    def _edit(
        self, pods: set[str], step: views.Step, proves: Callable[[Outcome], bool], run: int, show: Callable[[], None]
    ) -> None:
        """Send requests all the time, edit the manifest meanwhile, and note when the answers show it."""
        self._steps.append(step)
        self._traffic(step.before, show)
        edited = self._scale(pods)
        proof = _Run(proves, run)
        while step.delay is None and time.monotonic() < edited + LATE:
            asked = time.monotonic()
            if proof.complete(asked, self._ask()):
                step.delay = proof.began - edited
        if step.delay is None:
            raise click.ClickException(f"traffic did not follow the edit '{step.edit}': {self._proxy.tail()}")
        self._traffic(step.after, show)

    def _traffic(self, answers: Counter[str], show: Callable[[], None]) -> None:
        until = time.monotonic() + STEADY
        while time.monotonic() < until:
            answers[views.name_of(self._ask())] += 1
            show()
            time.sleep(PACE / 4)

    def _scale(self, pods: set[str]) -> float:
        """Leave only these pods in the Service's slices; returns the monotonic time of the edit."""
        wanted = {p.ip(f) for p in PODS if p.name in pods for f in Family}
        self._spare.write_text(yaml.safe_dump_all([_only(document, wanted) for document in self._web]))
        self._spare.replace(self._manifests / "web.yaml")
        return time.monotonic()


def _only(document: dict[str, Any], addresses: set[str]) -> dict[str, Any]:
    ends = document.get("endpoints")
    return document if ends is None else document | {"endpoints": [e for e in ends if e["addresses"][0] in addresses]}


def _by_web_3(outcome: Outcome) -> bool:
    return isinstance(outcome, Answered) and outcome.pod == "web-3"


class _Run:
    """Outcomes in a row that all show the new state. began: when the first of them was requested."""

    def __init__(self, proves: Callable[[Outcome], bool], length: int) -> None:
        self._proves, self._length, self._seen = proves, length, 0
        self.began = 0.0

    def complete(self, asked: float, outcome: Outcome) -> bool:
        """Add one outcome; returns whether the run is long enough."""
        if not self._proves(outcome):
            self._seen = 0
            return False
        if not self._seen:
            self.began = asked
        self._seen += 1
        return self._seen >= self._length
