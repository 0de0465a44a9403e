"""The generator of docs/configuration.md: `python -m kproxy.cli.reference > docs/configuration.md`."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from enum import StrEnum
from textwrap import fill
from typing import Any, get_args, get_origin

from kproxy import KUBERNETES
from kproxy.cli.flags import FLAGS, Flag
from kproxy.config import defaults, gates
from kproxy.config.durations import Duration
from kproxy.config.field_docs import FIELD_DOCS, leaves, value_at
from kproxy.config.fields import ProxyMode
from kproxy.sync.reload import MADE_WITH

HEAD = """# Configuration

Written by `python -m kproxy.cli.reference > docs/configuration.md`; a test holds this page to the code.

kproxy takes kube-proxy's configuration as it stands: a file of kind KubeProxyConfiguration
(`kubeproxy.config.k8s.io/v1alpha1`), named by `--config`, and kube-proxy's flags.

- **Precedence.** With `--config`, the file decides alone, except for the flags marked *also with --config* below.
  Without it, flags change the defaults. Flags that have no effect because of the file are named in a warning.
- **Errors** end the process with status 2 (kube-proxy: 1) and one line for each problem, with the field's path and the
  bad value; unknown flags are among them. As in kube-proxy, some mistakes are ignored with a warning: a field that does
  not exist or occurs twice, and a wrong value that is not used, in another mode's section or for another
  `detectLocalMode`.
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
## Feature gates

Every component of Kubernetes accepts all gates, so that they can share one list. kproxy accepts {count} gates of
Kubernetes 1.36 and earlier. `AllowServiceExternalIPs=false` and `WatchListClient=false` are honoured. Unknown gates are
errors, and so is another value for these, which are locked:

"""


def page() -> str:
    """Return the whole page, in Markdown."""
    made_with = ", ".join(f"`{_path(path)}`" for paths in MADE_WITH.values() for path in paths)
    locked = ", ".join(f"`{name}` ({'true' if value else 'false'})" for name, value in sorted(gates.LOCKED.items()))
    return "".join(
        [
            HEAD.replace("{made_with}", fill(made_with, 120, initial_indent="  ", subsequent_indent="  ")),
            *_table(("field", "type", "default", "what it does"), _fields()),
            FLAGS_HEAD.replace("{version}", f"v{KUBERNETES}"),
            *_table(("flag", "type", "default", "sets", "what it does"), map(_flag, FLAGS)),
            GATES_HEAD.replace("{count}", str(len(gates.KNOWN))),
            f"{fill(locked, 120)}.\n",
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
