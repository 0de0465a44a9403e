"""`kproxy render`: what a node would program for a cluster, as text or JSON on standard output. Writes nothing else.

The cluster comes from manifests, or from the API server that the kubeconfig names; the host from a file, or from this
host. Both only ever are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
from msgspec.structs import replace as replace_fields

from kproxy import logs
from kproxy.cli import host_file
from kproxy.cli.exits import Refused
from kproxy.config import defaults, files
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.options import node_name
from kproxy.errors import InvalidConfig
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import node_ips


@dataclass(frozen=True, slots=True)
class Rendered:
    """One family's outcome. native: what the kernel's own tool loads; values: the same for --format json."""

    native: str
    values: Mapping[str, object]


def _iptables(preview: Preview, family: Family) -> Rendered:
    rules = preview.iptables(family)
    return Rendered(rules, {"rules": rules})


def _ipvs(preview: Preview, family: Family) -> Rendered:
    outcome = preview.ipvs(family)
    return Rendered(outcome.native(), outcome.json())


def _nftables(preview: Preview, family: Family) -> Rendered:
    rules = preview.nftables(family)
    return Rendered(rules, {"rules": rules})


def _userspace(preview: Preview, family: Family) -> Rendered:
    outcome = preview.userspace(family)
    return Rendered(outcome.native(), outcome.json())


RENDERERS: dict[ProxyMode, Callable[[Preview, Family], Rendered]] = {
    ProxyMode.IPTABLES: _iptables,
    ProxyMode.IPVS: _ipvs,
    ProxyMode.NFTABLES: _nftables,
    ProxyMode.USERSPACE: _userspace,
}

FAMILIES = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}


HOST_HELP = (
    'The host, as JSON: {"nodeIPs": ["10.0.0.2"], "interfaces": [{"name": "eth0", "addresses": ["10.0.0.2/24"]}]}.'
    "  [default: this host]"
)


@click.command("render", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--dry-run", is_flag=True, help="Accepted for clarity: render never writes to the kernel.")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in ProxyMode]),
    help="The proxy mode.  [default: the configuration's]",
)
@click.option("--family", type=click.Choice([*FAMILIES, "all"]), default="all", show_default=True)
@click.option("--format", "form", type=click.Choice(["native", "json"]), default="native", show_default=True)
@click.option("--node", help="The Node whose rules to print.  [default: the configuration's, else this host's]")
@click.option("--config", type=click.Path(path_type=Path), help="A KubeProxyConfiguration.")
@click.option("--host", type=click.Path(path_type=Path), help=HOST_HELP)
@click.option(
    "-f",
    "--filename",
    "sources",
    multiple=True,
    help="A manifest, a folder of them, or -; repeatable. Lists, as kubectl prints them, do as well.",
)
@click.option("--kubeconfig", default="", help="How to reach the API server, when there is no -f.")
@click.option("-v", "--v", "verbosity", type=click.IntRange(min=0), default=0, help="How much is logged, 0 to 10.")
def command(
    dry_run: bool,
    mode: str | None,
    family: str,
    form: str,
    node: str | None,
    config: Path | None,
    host: Path | None,
    sources: tuple[str, ...],
    kubeconfig: str,
    verbosity: int,
) -> None:
    """Print what a node would program, and write nothing."""
    logs.setup("text", verbosity)
    settings = _configuration(config, mode, node, kubeconfig)
    renderer = RENDERERS.get(settings.mode)
    if renderer is None:
        raise InvalidConfig([f"--mode: mode {settings.mode} is not available yet"])
    known = host_file.read(host) if host else None
    preview = _preview(settings, known, sources)
    names = list(FAMILIES) if family == "all" else [family]
    outcomes = {name: renderer(preview, FAMILIES[name]) for name in names}
    click.echo(_text(outcomes, form, several=family == "all"), nl=False)


def _configuration(path: Path | None, mode: str | None, node: str | None, kubeconfig: str) -> KubeProxyConfiguration:
    """The configuration with what the command line says over it."""
    wanted = ProxyMode(mode) if mode else None
    if path:
        config, unknown = files.load(path, wanted)
        for line in unknown:
            click.echo(f"kproxy: ignored in {path}: {line}", err=True)
    else:
        config = defaults.default(wanted or ProxyMode.IPTABLES)
    if kubeconfig:
        config = replace_fields(
            config, client_connection=replace_fields(config.client_connection, kubeconfig=kubeconfig)
        )
    return replace_fields(config, hostname_override=node_name(node or config.hostname_override))


def _preview(config: KubeProxyConfiguration, host: NodeInfo | None, sources: Iterable[str]) -> Preview:
    sources = tuple(sources)
    objects = _cluster(config, sources)
    state, problems = load(config.hostname_override, objects)
    if problems:
        raise Refused(problems)
    if state.node is None and (objects.get(Kind.NODE) or not sources):
        name = config.hostname_override
        click.echo(
            f"kproxy: there is no Node {name}: its endpoints, zone and pod CIDRs may be missing; see --node", err=True
        )
    known = host or _this_host()
    if not known.ips or host is None:
        known = replace(known, ips=node_ips(config, state.node, known.ips))
    return Preview(state, config, known)


def _text(outcomes: Mapping[str, Rendered], form: str, several: bool) -> str:
    if form == "json":
        values = {name: outcome.values for name, outcome in outcomes.items()}
        return json.dumps(values if several else next(iter(values.values())), indent=2) + "\n"
    if several:
        return "".join(f"# {FAMILIES[name].value}\n{outcome.native}" for name, outcome in outcomes.items())
    return "".join(outcome.native for outcome in outcomes.values())


# ---------------------------------------------------------------- where it all comes from


def _cluster(config: KubeProxyConfiguration, sources: tuple[str, ...]) -> Mapping[Kind, Iterable[Object]]:
    """The objects of the cluster. Raises Refused when one of the manifests is unusable, SourceError when unreadable."""
    if not sources:
        return _from_api_server(config)
    from kproxy.sources.manifests import read_manifests

    objects, problems = read_manifests(sources)
    if problems:
        # What is wrong with the others is told at once as well.
        _, more = load(config.hostname_override, objects)
        raise Refused([*problems, *more])
    return objects


def _from_api_server(config: KubeProxyConfiguration) -> Mapping[Kind, Iterable[Object]]:
    """What the API server has now. Raises Refused, SourceError."""
    from kproxy.sources.api import read_cluster
    from kproxy.sources.client import ApiClient
    from kproxy.sources.credentials import ClientSettings

    client = ApiClient(ClientSettings(kubeconfig=config.client_connection.kubeconfig))
    try:
        objects, problems = read_cluster(client, config.hostname_override)
    finally:
        client.close()
    if problems:
        raise Refused(problems)
    return objects


def _this_host() -> NodeInfo:
    """This host, whose own IPs the Node object may still correct. Raises NetlinkError."""
    from kproxy.kernel import interfaces

    found = [interfaces.node_ip(family) for family in Family]
    return NodeInfo(ips=tuple(ip for ip in found if ip), addresses=tuple(sorted(interfaces.own_addresses())))
