"""The settings of `kproxy run`: the flags and the configuration file combined.

Without --config the flags change kube-proxy's defaults. With it the file decides alone, except for the flags that are
`kept`: those of logging, --hostname-override, and those that have no field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from kproxy.cli import flag_values
from kproxy.cli.flags import BY_NAME, Flag, flag_layer
from kproxy.config import defaults, files, minors, validate
from kproxy.config.fields import KubeProxyConfiguration, ProxyMode
from kproxy.config.options import Options, node_name
from kproxy.errors import InvalidConfig

BACKENDS = ("auto", "nft", "legacy")


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for: to run with `options`, or one of the actions that end at once.

    to_write: the configuration for --write-config-to; --emulate-version is no part of it, as kube-proxy's has none.
    """

    options: Options
    to_write: KubeProxyConfiguration
    version: bool = False
    cleanup: bool = False
    write_config_to: Path | None = None


class _Configured(NamedTuple):
    """config: valid once `validate.problems` finds none. mode_given: whether flags or file name a mode. warnings: lines
    about what is ignored in the flags or the file."""

    config: KubeProxyConfiguration
    mode_given: bool
    warnings: tuple[str, ...]


def read(texts: Mapping[str, Sequence[str]], refused: Sequence[str] = ()) -> Request:
    """Read the flags in `texts`, by name, and the file that they name. Raises InvalidConfig with every problem.

    refused: a line for each unknown flag, to be reported with the other problems.
    """
    blank = {name for name, text in texts.items() if not text or (name == "proxy-mode" and text[-1] == "")}
    given, problems = _parse({name: text for name, text in texts.items() if name not in blank})
    problems = [*refused, *problems]
    try:
        config, mode_given, warnings = _configuration(given)
        problems += _lines(config, given, validate.problems(config))
    except InvalidConfig as error:
        problems += error.problems
    if problems:  # of syntax and of meaning together, so that all can be corrected at once
        raise InvalidConfig(problems)
    path = given.get("config")
    written = given.get("write-config-to")
    options = Options(
        config=config,
        node_name=node_name(config.hostname_override),
        manifests=tuple(Path(folder) for folder in given.get("manifests", ())),
        kubeconfig=config.client_connection.kubeconfig,
        master=given.get("master", ""),
        config_file=Path(path) if path else None,
        iptables_backend=given.get("iptables-backend", "auto"),
        hand_over_at_end=given.get("hand-over-at-end", False),
        init_only=given.get("init-only", False),
        warnings=(*warnings, *_without_effect(config, given)),
        mode_given=mode_given,
        flags=flag_layer(texts),
        reread=(lambda: read(texts).options) if path else None,
    )
    return Request(
        options,
        to_write=replace(config, emulate_version=minors.DEFAULT) if "emulate-version" in given else config,
        version=bool(given.get("version")),
        cleanup=given.get("cleanup", False),
        write_config_to=Path(written) if written else None,
    )


def _parse(texts: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """Parse `texts`; returns the values by flag, and a line for each that is invalid."""
    given: dict[str, Any] = {}
    problems = []
    for name, text in texts.items():
        try:
            given[name] = flag_values.parse(BY_NAME[name].type, text)
        except ValueError as error:
            problems.append(f'--{name}: {error}, is "{text[-1]}"')
    if given.get("iptables-backend", "auto") not in BACKENDS:
        problems.append(f'--iptables-backend: must be one of {", ".join(BACKENDS)}, is "{given["iptables-backend"]}"')
    if "hostname-override" in given and given["hostname-override"] and not given["hostname-override"].strip():
        problems.append("--hostname-override: must not be blank")
    problems += [f"--manifests: {p}: no such folder" for p in given.get("manifests", ()) if not Path(p).is_dir()]
    return given, problems


def _configuration(given: Mapping[str, Any]) -> _Configured:
    """Return the configuration of the flags or, with --config, of the file and the flags that are kept."""
    if not given.get("config"):
        config = _from_flags(given)
        ignored = [f"ignored: {line}" for line in _lines(config, given, validate.passed_over(config))]
        return _Configured(defaults.without_unused(config), "proxy-mode" in given, tuple(ignored))
    path = given["config"]
    config, lines, mode_given = files.load(Path(path), minor=given.get("emulate-version"))
    warnings = [f"ignored in {path}: {line}" for line in lines]
    if "vmodule" in given:
        given = {**given, "vmodule": given["vmodule"] + config.logging.vmodule}
    kept = {name: value for name, value in given.items() if BY_NAME[name].kept}
    if unused := ", ".join(f"--{name}" for name in given if name not in kept):
        warnings.append(f"these flags are ignored because --config is given: {unused}")
    return _Configured(_apply(config, kept), mode_given, tuple(warnings))


def _from_flags(given: Mapping[str, Any]) -> KubeProxyConfiguration:
    mode = given.get("proxy-mode", ProxyMode.IPTABLES)
    config = defaults.default(mode)
    # As a flag this period has a default, which it has not in a file.
    config = replace(config, ipvs=replace(config.ipvs, min_sync_period=defaults.MIN_SYNC_PERIOD))
    config = _apply(config, given)
    if mode is ProxyMode.NFTABLES and not config.node_port_addresses:
        config = replace(config, node_port_addresses=defaults.PRIMARY)
    return config


def _apply(config: KubeProxyConfiguration, given: Mapping[str, Any]) -> KubeProxyConfiguration:
    for name, value in given.items():
        field = _field(BY_NAME[name], config.mode)
        if name == "healthz-bind-address":
            value = defaults.with_port(value, defaults.HEALTHZ_PORT)
        if name == "metrics-bind-address":
            value = defaults.with_port(value, defaults.METRICS_PORT)
        if field and not (name == "hostname-override" and not value):
            config = _set(config, field, value)
    return config


def _field(flag: Flag, mode: ProxyMode) -> tuple[str, ...]:
    """Return the field that `flag` sets in `mode`, () for none. Some iptables flags apply to later modes as well."""
    periods = flag.name.endswith("sync-period") and flag.name != "config-sync-period"
    if periods and flag.name.startswith("ipvs-") != (mode is ProxyMode.IPVS):
        return ()
    if mode is ProxyMode.NFTABLES and (periods or flag.name == "masquerade-all"):
        return ("nftables", flag.field[1])
    return flag.field


def _set(struct: Any, field: tuple[str, ...], value: Any) -> Any:
    head, *rest = field
    return replace(struct, **{head: _set(getattr(struct, head), tuple(rest), value) if rest else value})


# ---------------------------------------------------------------- problems


def _lines(config: KubeProxyConfiguration, given: Mapping[str, Any], problems: Sequence[validate.Problem]) -> list[str]:
    """Return a line for each problem, which names the flag instead of the field when there is no file."""
    flags = [] if given.get("config") else [BY_NAME[name] for name in BY_NAME]
    names = {_path(field): f"--{flag.name}" for flag in flags if (field := _field(flag, config.mode))}
    return [f"{_named(path, names)}: {reason}" for path, reason in problems]


def _named(path: str, names: Mapping[str, str]) -> str:
    field = path.split("[", 1)[0]
    gate = field.removeprefix("featureGates.")
    if gate != field and "featureGates" in names:
        return f"{names['featureGates']}: {gate}"
    return names[field] + path[len(field) :] if field in names else path


def _path(field: tuple[str, ...]) -> str:
    """Return the path of a field in the file: iptables.masqueradeBit."""
    kind: Any = KubeProxyConfiguration
    names = []
    for attribute in field:
        found = next(f for f in msgspec.structs.fields(kind) if f.name == attribute)
        names.append(found.encode_name)
        kind = found.type
    return ".".join(names)


def _without_effect(config: KubeProxyConfiguration, given: Mapping[str, Any]) -> list[str]:
    """Return warnings that name the settings without an effect here, and the minor when it is not known."""
    idle = validate.ignored(config) + [f"--{name}" for name in given if BY_NAME[name].idle]
    warnings = [f"these settings have no meaning here and are ignored: {', '.join(idle)}"] if idle else []
    if config.emulate_version > minors.NEWEST:
        warnings.append(f"Kubernetes {config.emulate_version} is not known here: {minors.NEWEST} is followed")
    return warnings
