"""The generator of docs/configuration.md: `python -m kproxy.cli.reference > docs/configuration.md`."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from enum import StrEnum
from textwrap import fill
from typing import Any, get_args, get_origin

from kproxy.cli.flags import FLAGS, Flag
from kproxy.config import defaults, gates, minors
from kproxy.config.durations import Duration
from kproxy.config.field_docs import FIELD_DOCS, leaves, value_at
from kproxy.config.fields import ProxyMode
from kproxy.config.minors import KubernetesMinor
from kproxy.sync.reload import MADE_WITH

HEAD = """# Configuration

Written by `python -m kproxy.cli.reference > docs/configuration.md`; a test holds this page to the code.

kproxy takes kube-proxy's configuration as it stands: a file of kind KubeProxyConfiguration
(`kubeproxy.config.k8s.io/v1alpha1`), named by `--config`, and kube-proxy's flags.

- **Precedence.** With `--config`, the file decides alone, except for the flags marked *also with --config* below.
  Without it, flags change the defaults. Flags that have no effect because of the file are named in a warning.
- **Errors** end the process with status 2 (kube-proxy: 1) and one line for each problem, with the field's path and the
  bad value; unknown flags are among them. As in kube-proxy, some mistakes are ignored with a warning: a field that does
  not exist or occurs twice, a wrong value that is not used, in another mode's section or for another `detectLocalMode`,
  and whatever follows the first YAML document. Addresses may have leading zeros (`010.0.0.1` is `10.0.0.1`).
- **Settings without an effect here** are read and checked, do nothing, and are named in one warning when they are set.
- **Durations** are written as in Go: `30s`, `1h30m`, `250ms`.

## When the file changes

kproxy checks the file twice a second (also in a ConfigMap's volume) and applies what differs, without a restart and
without a failed connection; kube-proxy ends instead. A file with an error is refused as a whole: each problem is
logged, an Event `InvalidConfiguration` is posted on the Node, `kproxy_config_reloads_total{outcome="refused"}` counts
it, and the former configuration stays in force.

- Most fields take effect with the next sync, which follows at once.
- `mode`, and in the mode that they belong to the fields
{made_with}
  replace the mode's driver, as a restart would: the new one is created first, and if this host does not support it the
  change is refused; then the old one stops, and the new one takes over the rules that it finds.
- `clientConnection` opens a new connection to the API server and lists all objects again.
- `healthzBindAddress` and `metricsBindAddress` are opened before the old addresses close. With the same port on another
  address the old one is closed first, and connections are refused for a moment.
- `hostnameOverride` (and `--hostname-override`) takes effect at the next start, as a warning says.

## Fields

"""

FLAGS_HEAD = """
## Flags

As for kube-proxy, flags may be written `--flag=value`, `--flag value`, `--switch`, `--switch=false`, `-v 2`, `-v2`, and
with underscores. `--version` prints `Kubernetes {version} (kproxy ...)`, since tools read the second word.

"""

GATES_HEAD = """
## The minor that is followed

A node follows its cluster: `--emulate-version` (or the field `emulateVersion`, which the flag replaces) names the minor
whose kube-proxy is followed, {oldest} to {newest}; the default is {default}. A newer one is taken with the defaults of
{newest} and a warning. `kproxy --version`, `/statusz`, `/flagz` and `kproxy status` show it. What differs:

| what | {oldest} | 1.36 | 1.37 | {newest} |
|---|---|---|---|---|
| `nodePortAddresses` beside CIDRs | `primary` alone | `primary` alone | any keywords, also with CIDRs | any keywords |
| a start without `mode` | iptables | iptables | iptables; a warning, Event `ProxyModeUnset` | as 1.37 |
| a start in ipvs mode | a warning, Event `IPVSDeprecation` | as 1.35 | as 1.35 | as 1.35 |
| `KubeProxyNFTablesLocalhostNodePorts` | off | off | off; on with `AllAlpha` | on; off with `AllBeta=false` |
| `showHiddenMetricsForVersion` | 1.34 | 1.35 | 1.35, 1.36 | 1.35 to 1.37 |

Keywords are `primary`, `localhost` and `all`. With `showHiddenMetricsForVersion`, kube-proxy takes the minor before
alone; kproxy hides nothing, so a file survives an upgrade. nftables becomes kube-proxy's default mode in 1.40. kproxy
goes on supporting ipvs mode after kube-proxy turns it off (1.40) and removes it (1.43).

## Feature gates

Components of several minors are often given one list of gates, and kube-proxy refuses those that it does not know. So
kproxy takes each of the {count} gates that any minor of Kubernetes from 1.30 to {newest} knows (as far as {newest} was
published: its second alpha). A gate that none of them knows is an error with the nearest known name, and a warning
alone where a minor newer than {newest} is followed. These have an effect:

- `AllowServiceExternalIPs=false`: external IPs are not served.
- `WatchListClient=false`: lists of the API server are read in pages, not streamed.
- `KubeProxyIPVS=false`: ipvs mode is refused. It is on by default in every minor.
- `KubeProxyNFTablesLocalhostNodePorts`: see modes.md; by default as in the table above.

A gate that is locked in the minor that is followed, or was in the last one that knew it, takes one value. In {default}:

"""

DIFFERENCES = {
    "fg-unknown": "a gate that no minor knows is an error. kube-proxy 1.36.2 writes the file for `--write-config-to`, "
    "but a gate that it does not know is an error elsewhere, and a misspelt one would do nothing",
    "fg-gone": "the same: `SupportIPVSProxyMode` was removed long before 1.30",
    "npa-primary-plus": "`primary` beside a CIDR is valid from 1.37 on; with `--emulate-version 1.36` it is an error",
}
"""The cases of tests/config/kube_proxy_cases.jsonl.gz in which kproxy differs from kube-proxy 1.36.2, by id."""

CASES_HEAD = """
## Where kube-proxy reads a file in another way

The tests hold kproxy to what kube-proxy 1.36.2 makes of {count} odd files (`tests/config/kube_proxy_cases.jsonl.gz`):
the same are accepted, with the same values. It differs in these:

"""
CASES = 300


def page() -> str:
    """Return the whole page, in Markdown."""
    made_with = ", ".join(f"`{_path(path)}`" for paths in MADE_WITH.values() for path in paths)
    locks = {name: gate.lock(minors.DEFAULT) for name, gate in sorted(gates.GATES.items())}
    locked = [
        f"{word}: {', '.join(f'`{name}`' for name, value in locks.items() if value is on)}."
        for on, word in ((False, "Locked to false"), (True, "Locked to true"))
    ]
    minor = {"oldest": minors.OLDEST, "newest": minors.NEWEST, "default": minors.DEFAULT}
    return "".join(
        [
            HEAD.replace("{made_with}", fill(made_with, 120, initial_indent="  ", subsequent_indent="  ")),
            *_table(("field", "type", "default", "what it does"), _fields()),
            FLAGS_HEAD.replace("{version}", f"v{minors.DEFAULT}.0"),
            *_table(("flag", "type", "default", "sets", "what it does"), map(_flag, FLAGS)),
            GATES_HEAD.format(count=len(gates.GATES), **minor),
            "\n".join(f"- {fill(line, 118, subsequent_indent='  ')}\n" for line in locked),
            CASES_HEAD.format(count=CASES),
            *(fill(f"- `{name}`: {why}.", 120, subsequent_indent="  ") + "\n" for name, why in DIFFERENCES.items()),
        ]
    )


def _fields() -> Iterator[tuple[str, ...]]:
    for path, attributes, kind in leaves():
        # Defaults of sync periods are set only in the mode that they belong to.
        mode = next((mode for mode in ProxyMode if path.startswith(f"{mode}.")), ProxyMode.IPTABLES)
        default = value_at(defaults.default(mode), attributes)
        meaning = FIELD_DOCS[path]
        text = f"no effect: {meaning.text}" if meaning.idle else meaning.text
        yield f"`{path}`", _type(kind), _value(default), text


def _flag(flag: Flag) -> tuple[str, ...]:
    text = flag.help.rstrip(".")
    notes = [text, *(["also with --config"] if flag.kept and flag.name != "config" else [])]
    default = f"`{flag.default}`" if flag.default else ""
    sets = f"`{_path('.'.join(flag.field))}`" if flag.field else ""
    return f"`--{flag.name}`", flag.type.replace("|", "\\|"), default, sets, "; ".join(notes)


def _path(attributes: str) -> str:
    return {".".join(found): path for path, found, _ in leaves()}[attributes]


def _type(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return " \\| ".join(kind)
    if isinstance(kind, type) and issubclass(kind, Duration):
        return "duration"
    origin = get_origin(kind)
    if origin is tuple:
        item = get_args(kind)[0]
        return "list of text" if item is str else "list of filePattern and verbosity"
    if kind is KubernetesMinor:
        return "minor"
    if origin is dict:
        return "name: true \\| false"
    if origin is types.UnionType:
        return "quantity"
    return {str: "text", bool: "true \\| false", float: "number"}.get(kind, "whole number")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, (tuple, dict)):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`" if str(value) else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n"
    for row in rows:
        yield f"| {' | '.join(row)} |\n"


if __name__ == "__main__":
    print(page(), end="")
