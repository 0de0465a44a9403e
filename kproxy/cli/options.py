"""Options that several commands share, in one meaning, and the inputs that they name.

`render` and the other commands that read a cluster without writing anything take --mode, --node, --config, --host, -f,
--kubeconfig and -v. The cluster comes from manifests, or from the API server that the kubeconfig names; the host from a
file, or from this host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace as replace_fields

from kproxy import logs
from kproxy.cli.exits import Refused
from kproxy.config import defaults, files, minors
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.minors import KubernetesMinor
from kproxy.config.options import node_name
from kproxy.errors import InvalidObject, UnusedObject
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import Kind, Object
from kproxy.model.plans import Family

if TYPE_CHECKING:
    from kproxy.modes.preview import Preview

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
"""The context settings of every command."""
HOST_HELP = (
    'The host, as JSON: {"nodeIPs": ["10.0.0.2"], "interfaces": [{"name": "eth0", "addresses": ["10.0.0.2/24"]}]}.'
    "  [default: this host]"
)


def _minor(context: click.Context, option: click.Parameter, text: str | None) -> KubernetesMinor | None:
    try:
        return minors.parse(text) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(f'{error}, is "{text}"') from None


verbosity_option = click.option(
    "-v", "--v", "verbosity", type=click.IntRange(min=0), default=0, help="How much is logged, 0 to 10."
)
_INPUT_OPTIONS = (
    click.option(
        "--mode",
        type=click.Choice([mode.value for mode in ProxyMode]),
        help="The proxy mode.  [default: the configuration's]",
    ),
    click.option("--node", help="The Node that is looked at.  [default: the configuration's, else this host's]"),
    click.option("--config", type=click.Path(path_type=Path), help="A KubeProxyConfiguration."),
    click.option(
        "--emulate-version",
        "minor",
        callback=_minor,
        help=f"The minor version of Kubernetes whose kube-proxy is followed.  [default: {minors.DEFAULT}]",
    ),
    click.option("--host", type=click.Path(path_type=Path), help=HOST_HELP),
    click.option(
        "-f",
        "--filename",
        "sources",
        multiple=True,
        help="A manifest, a folder of manifests, or -; repeatable. Lists as kubectl prints them are accepted.",
    ),
    click.option("--kubeconfig", default="", help="How to reach the API server, when there is no -f."),
    verbosity_option,
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a command. config: includes the mode, the node and the kubeconfig that the command line gives.

    mode_given: whether the command line names a mode. config_of: what the same inputs make of another mode.
    """

    config: KubeProxyConfiguration
    host: Path | None
    sources: tuple[str, ...]
    mode_given: bool
    config_of: Callable[[ProxyMode], KubeProxyConfiguration]

    def objects(
        self, more: tuple[str, ...] = (), every_node: bool = False
    ) -> tuple[Mapping[Kind, list[Object]], list[InvalidObject]]:
        """The objects of the cluster, and what cannot be read of it. Raises Refused, SourceError.

        more: manifests besides those of -f. every_node: also the Nodes of others.
        """
        return _cluster(self.config, (*self.sources, *more), every_node)

    def preview(self) -> tuple[Preview, list[InvalidObject]]:
        """Read cluster and host, and plan for the node. Returns also what cannot be used of the cluster.

        Raises InvalidConfig, SourceError, NetlinkError, and Refused when nothing at all of the cluster can be used.
        """
        from kproxy.cli import host_file
        from kproxy.modes.preview import Preview, load
        from kproxy.modes.settings import node_ips

        host = host_file.read(self.host) if self.host else None
        objects, problems = self.objects()
        if problems and not any(objects.values()):
            raise Refused(problems)
        name = self.config.hostname_override
        state, more = load(name, objects)
        problems += [problem for problem in more if not isinstance(problem, UnusedObject)]
        if state.node is None and (objects.get(Kind.NODE) or not self.sources):
            missing = "its endpoints, zone and pod CIDRs may be missing"
            click.echo(f"kproxy: there is no Node {name}: {missing}; see --node", err=True)
        known = host or _this_host()
        if not known.ips or host is None:
            known = replace(known, ips=node_ips(self.config, state.node, known.ips))
        return Preview(state, self.config, known), problems


def with_inputs(function: Callable[..., object]) -> Callable[..., object]:
    """Give a command the shared options; `function` gets them as the argument `inputs`, besides its own options."""

    @wraps(function)
    def read(
        *,
        mode: str | None,
        node: str | None,
        config: Path | None,
        minor: KubernetesMinor | None,
        host: Path | None,
        sources: tuple[str, ...],
        kubeconfig: str,
        verbosity: int,
        **own: object,
    ) -> object:
        logs.setup("text", verbosity)
        wanted = ProxyMode(mode) if mode else None
        found = _configuration(config, wanted, minor, node, kubeconfig)
        return function(
            inputs=Inputs(
                found,
                host,
                sources,
                mode is not None,
                lambda mode: _configuration(config, mode, minor, node, kubeconfig, quiet=True),
            ),
            **own,
        )

    command: Callable[..., object] = read
    for option in reversed(_INPUT_OPTIONS):
        command = option(command)
    return command


def read_config(
    path: Path, mode: ProxyMode | None = None, minor: KubernetesMinor | None = None, quiet: bool = False
) -> KubeProxyConfiguration:
    """Read a configuration, and print what is ignored in it, unless QUIET. mode, minor: as for `files.load`. Raises
    InvalidConfig."""
    found = files.load(path, mode, minor)
    for line in found.ignored if not quiet else ():
        click.echo(f"kproxy: ignored in {path}: {line}", err=True)
    return found.config


def _configuration(
    path: Path | None,
    wanted: ProxyMode | None,
    minor: KubernetesMinor | None,
    node: str | None,
    kubeconfig: str,
    quiet: bool = False,
) -> KubeProxyConfiguration:
    """Return the configuration, in which the command line wins."""
    if path:
        config = read_config(path, wanted, minor, quiet)
    else:
        config = replace_fields(defaults.default(wanted or ProxyMode.IPTABLES), emulate_version=minor or minors.DEFAULT)
    if kubeconfig:
        connection = replace_fields(config.client_connection, kubeconfig=kubeconfig)
        config = replace_fields(config, client_connection=connection)
    return replace_fields(config, hostname_override=node_name(node or config.hostname_override))


def _cluster(
    config: KubeProxyConfiguration, sources: tuple[str, ...], every_node: bool
) -> tuple[Mapping[Kind, list[Object]], list[InvalidObject]]:
    """Return the objects of the cluster, and what cannot be read of it. Raises Refused, SourceError."""
    if missing := [path for path in sources if path != "-" and not os.path.lexists(path)]:
        # A typing error rather than a fault of the cluster: what is left would be another cluster.
        raise Refused([InvalidObject("manifest", path, "", "there is no such file or folder") for path in missing])
    if sources:
        from kproxy.sources.manifests import read_manifests

        return read_manifests(sources)
    from kproxy.sources.api import read_cluster
    from kproxy.sources.client import ApiClient
    from kproxy.sources.credentials import ClientSettings

    client = ApiClient(ClientSettings(kubeconfig=config.client_connection.kubeconfig))
    try:
        return read_cluster(client, "" if every_node else config.hostname_override)
    finally:
        client.close()


def _this_host() -> NodeInfo:
    """Return what this host shows of itself; the Node object's IPs take precedence. Raises NetlinkError."""
    from kproxy.kernel import interfaces

    found = [interfaces.node_ip(family) for family in Family]
    return NodeInfo(ips=tuple(ip for ip in found if ip), addresses=tuple(sorted(interfaces.own_addresses())))
