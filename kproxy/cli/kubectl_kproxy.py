"""`kubectl kproxy`: runs kproxy's commands in its pod on a node, or on every node with one merged table.

kubectl finds the program as its plugin. It needs the standard library and click only, so that one file can hold it: see
scripts/build_plugin.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, NamedTuple

import click

from kproxy import __version__
from kproxy.cli import node_answers
from kproxy.cli.exits import DONE, FAILED, REFUSED, guard
from kproxy.cli.kubectl import Kubectl, ProxyPod, Result, reason
from kproxy.cli.node_answers import COMMANDS, Answer
from kproxy.errors import InvalidInput, KproxyError, one_line

PROGRAM = "kubectl-kproxy"
_ACCESS = ("context", "cluster", "user", "kubeconfig", "as")
"""Options of kubectl that say which cluster and who asks."""
_OBJECT = re.compile(r"(pod|po|pods|service|svc|services)/([a-z0-9][a-z0-9.-]*)(?::(\S+))?")
_LOCAL = ("-f", "--filename", "--host")
"""Options of kproxy that name files, which the pod does not have."""


class Words(NamedTuple):
    """The arguments of a command with objects resolved. node: that of the pod FROM, "" if there is none."""

    words: tuple[str, ...]
    node: str = ""


def _access_options(function: Callable[..., object]) -> Callable[..., object]:
    for name in reversed(_ACCESS):
        function = click.option(f"--{name}", f"access_{name}", metavar=name.upper(), help="As of kubectl.")(function)
    return function


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "ignore_unknown_options": True}


@click.command(PROGRAM, context_settings=_CONTEXT)
@click.argument("command", type=click.Choice(COMMANDS))
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS OF THE COMMAND]")
@click.option("--node", "wanted", multiple=True, help="Ask on this node; repeatable.")
@click.option("--all-nodes", is_flag=True, help="Ask on every node.  [default: that of FROM pod/NAME, else every node]")
@click.option("-n", "--namespace", default="", help="Of pod/NAME and svc/NAME.  [default: the context's]")
@click.option("--proxy-namespace", default="kube-system", show_default=True, help="Where kproxy's pods are.")
@click.option("--timeout", type=click.FloatRange(1), default=120, show_default=True, help="Seconds for each node.")
@click.option("--parallel", type=click.IntRange(1, 100), default=10, show_default=True, help="Nodes asked at once.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_access_options
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def command(
    command: str,
    words: tuple[str, ...],
    wanted: tuple[str, ...],
    all_nodes: bool,
    namespace: str,
    proxy_namespace: str,
    timeout: float,
    parallel: int,
    form: str,
    **access: str | None,
) -> int:
    """Run a command of kproxy in its pods, by kubectl and with your rights; several nodes in one table.

    `trace` takes pod/NAME as FROM, and pod/NAME:PORT or svc/NAME[:PORT] as TO. Other arguments are the command's own:
    see `kproxy COMMAND --help`. Exit status 0: done; 1: differences, an unhealthy or a failing node; 2: bad arguments.
    """
    if wanted and all_nodes:
        raise click.UsageError("--node and --all-nodes are mutually exclusive")
    if local := next((word for word in words if word.split("=")[0] in _LOCAL), None):
        raise click.UsageError(f"{local}: the pods do not have your files; use kproxy itself")
    flags = [f"--{name}={value}" for name in _ACCESS if (value := access[f"access_{name}"])]
    kubectl = Kubectl(flags, namespace, timeout)
    asked = resolve(words, kubectl.get) if command == "trace" else Words(words)
    pods = kubectl.proxy_pods(proxy_namespace)
    nodes = sorted(set(wanted)) or ([asked.node] if asked.node and not all_nodes else _every_node(kubectl, pods))
    if command == "top" and len(nodes) == 1 and form == "text" and "--once" not in words:
        return kubectl.attach(_usable(pods, nodes[0]), _on_node(command, asked.words, pods[nodes[0]]))
    if len(nodes) == 1 and form == "text":
        return _one(kubectl, _usable(pods, nodes[0]), command, asked.words)
    with ThreadPoolExecutor(parallel) as pool:
        answers = list(pool.map(lambda node: _answer(kubectl, pods, node, command, asked.words), nodes))
    return _show(command, answers, form)


def main(args: Sequence[str] | None = None) -> int:
    """Run `kubectl kproxy ...` and return the exit status, as kproxy.cli.main.main does."""
    words = list(sys.argv[1:] if args is None else args)
    return guard(PROGRAM, lambda: command.main(words, prog_name="kubectl kproxy", standalone_mode=False))


# ---------------------------------------------------------------- on which nodes


def _every_node(kubectl: Kubectl, pods: Mapping[str, ProxyPod]) -> list[str]:
    """All nodes, those without a pod included; those with one where the user may not list nodes."""
    try:
        return sorted({*kubectl.nodes(), *pods})
    except KproxyError as error:
        click.echo(f"{PROGRAM}: only nodes with a pod of kproxy are asked: {error}", err=True)
        return sorted(pods)


def _usable(pods: Mapping[str, ProxyPod], node: str) -> ProxyPod:
    """The pod of a node. Raises KproxyError when nothing can run in it."""
    problem = pods[node].problem if node in pods else "no pod of kproxy is there"
    if problem:
        raise KproxyError(f"node {node}: {problem}")
    return pods[node]


def _on_node(command: str, words: Sequence[str], pod: ProxyPod, *more: str) -> list[str]:
    """The command line in the pod: with the name that its Node has, and the daemon's own configuration."""
    given = {word.split("=")[0] for word in words}
    own = ["--node", pod.node] if command != "status" else []
    if pod.config and not given & {"--config", "--address"}:
        own += ["--config", pod.config]
    return ["kproxy", command, *own, *more, *words]


def _one(kubectl: Kubectl, pod: ProxyPod, command: str, words: Sequence[str]) -> int:
    """One node's answer as the command prints it."""
    done = kubectl.execute(pod, _on_node(command, words, pod))
    click.echo(done.out, nl=False)
    if done.status and not done.out:
        click.echo(f"{PROGRAM}: error: node {pod.node}: {one_line(reason(done))}", err=True)
    else:
        click.echo("".join(f"{line}\n" for line in done.errors), nl=False, err=True)
    return done.status


def _answer(kubectl: Kubectl, pods: Mapping[str, ProxyPod], node: str, command: str, words: Sequence[str]) -> Answer:
    more = {"status": ("--json",), "top": ("--once", "--format", "json")}.get(command, ("--format", "json"))
    try:
        pod = _usable(pods, node)
        return _read(node, command, kubectl.execute(pod, _on_node(command, words, pod, *more)))
    except KproxyError as error:
        return Answer(node, FAILED, error=str(error).removeprefix(f"node {node}: "))


def _read(node: str, command: str, done: Result) -> Answer:
    try:
        value = json.loads(done.out)
        node_answers.groups(command, [Answer(node, done.status, value)]) if command != "top" else value["services"]
    except (ValueError, KeyError, TypeError, AttributeError):
        what = reason(done) if done.status else f"kproxy answered something else than expected: {done.out[:60]!r}"
        return Answer(node, done.status or FAILED, error=one_line(what))
    return Answer(node, done.status, value, notes=done.errors)


def _show(command: str, answers: Sequence[Answer], form: str) -> int:
    if form == "json":
        click.echo(json.dumps(node_answers.as_json(command, answers), indent=2))
    else:
        click.echo(node_answers.as_text(command, answers), nl=False)
    for note in dict.fromkeys(note for each in answers for note in each.notes):
        nodes = [each.node for each in answers if note in each.notes]
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        click.echo(f"{PROGRAM}: node {nodes[0]}{more}: {one_line(note)}", err=True)
    for each in answers:
        if each.value is None:
            click.echo(f"{PROGRAM}: error: node {each.node}: {each.error}", err=True)
    statuses = {each.status for each in answers}
    return REFUSED if REFUSED in statuses else FAILED if statuses - {DONE} else DONE


# ---------------------------------------------------------------- pod/NAME and svc/NAME


def resolve(words: Sequence[str], get: Callable[[str, str], Mapping[str, Any]]) -> Words:
    """WORDS with pods and Services as kproxy takes them: addresses and NAMESPACE/NAME. get: as Kubectl.get.

    Raises InvalidInput for what there is not, and a pod that has no address of the other end's family.
    """
    found = {at: match for at, word in enumerate(words) if (match := _OBJECT.fullmatch(word))}
    objects = {at: get("service" if match[1].startswith("s") else "pod", match[2]) for at, match in found.items()}
    families = {4, 6}
    for at, word in enumerate(words):
        families &= _families(_addresses(objects[at]) if at in objects else [_host(word)])
    result, node = list(words), ""
    for at, match in found.items():
        item, port = objects[at], match[3]
        if item["kind"] == "Service":
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            result[at] = f"{name}:{port}" if port else name
            continue
        ip = next((ip for ip in _addresses(item) if _families([ip]) <= families), "")
        if not ip:
            raise InvalidInput(f"{words[at]}: the pod has no IP address of the family of the other end")
        if port:
            result[at] = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
        else:
            result[at], node = "node" if item["spec"].get("hostNetwork") else ip, item["spec"]["nodeName"]
    return Words(tuple(result), node)


def _addresses(item: Mapping[str, Any]) -> list[str]:
    """The addresses of a pod, or the cluster IPs of a Service. Raises InvalidInput when it has none."""
    spec, status = item["spec"], item.get("status") or {}
    if item["kind"] == "Service":
        found = spec.get("clusterIPs") or [spec.get("clusterIP", "")]
        why = "the Service has no cluster IP"
    else:
        found = [each["ip"] for each in status.get("podIPs") or ()]
        why = f"the pod has no IP address: it is {status.get('phase', 'Unknown')}"
        if status.get("phase") in ("Succeeded", "Failed"):  # its address may be another pod's by now
            found, why = [], f"the pod has ended: it is {status['phase']}"
    ips = [ip for ip in found if ip not in ("", "None")]
    if not ips:
        raise InvalidInput(f"{item['kind']} {item['metadata']['name']}: {why}")
    return ips


def _host(word: str) -> str:
    """The address in IP, IP:PORT or [IPv6]:PORT."""
    if word.startswith("["):
        return word[1:].partition("]")[0]
    return word.partition(":")[0] if word.count(":") == 1 else word


def _families(hosts: Sequence[str]) -> set[int]:
    """4, 6 or both; both for what is no address."""
    found: set[int] = set()
    for host in hosts:
        try:
            found.add(ip_address(host).version)
        except ValueError:
            return {4, 6}
    return found


if __name__ == "__main__":
    sys.exit(main())
