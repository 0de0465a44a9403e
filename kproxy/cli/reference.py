"""The configuration reference, written from the code: `python -m kproxy.cli.reference > docs/configuration.md`."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from enum import StrEnum
from textwrap import fill
from typing import Any, get_args, get_origin

from kproxy.cli.flags import FLAGS, Flag
from kproxy.cli.run import KUBERNETES
from kproxy.config import defaults, gates
from kproxy.config.durations import Duration
from kproxy.config.field_docs import FIELD_DOCS, leaves, value_at
from kproxy.config.fields import ProxyMode
from kproxy.sync.reload import MADE_WITH

HEAD = """# Configuration

Written by `python -m kproxy.cli.reference > docs/configuration.md`; a test holds this page to the code.

kproxy takes kube-proxy's configuration as it stands: a file of kind KubeProxyConfiguration
(`kubeproxy.config.k8s.io/v1alpha1`), named by `--config`, and kube-proxy's flags.

- **Which wins.** With `--config`, the file is all that counts, but for the flags marked *also with --config* below.
  Without it, flags change the defaults. Flags that the file displaces are named in a warning.
- **What is wrong** ends the process with status 2 (kube-proxy: 1) and one line for each problem, with the field's path
  and the bad value; flags that do not exist are among them. Passed over with a warning, as kube-proxy passes over them,
  are a field that does not exist or stands twice, and a wrong value that is not used: in another mode's section, or for
  another `detectLocalMode`.
- **What has no meaning here** is read and checked, does nothing, and is named in one warning when it is set.
- **Durations** are written as in Go: `30s`, `1h30m`, `250ms`.

## When the file changes

kproxy looks at the file twice a second (a ConfigMap's volume included) and puts what differs in place, without a
restart and without a failed connection; kube-proxy ends instead. A file that is wrong is refused as a whole: each
problem is logged, an Event `InvalidConfiguration` on the Node tells of it,
`kproxy_config_reloads_total{outcome="refused"}` counts it, and what was in force stays in force.

- Most fields take effect with the next sync, which follows at once.
- `mode`, and in the mode that they belong to the fields
{made_with}
  make the mode's driver anew, as a restart would: the new one is made first, and if this host cannot have it the change
  is refused; then the old one hands over, and the new one takes over what it finds.
- `clientConnection` makes a new connection to the API server, which lists anew.
- `healthzBindAddress` and `metricsBindAddress` are opened before the old ones close. With the same port on another
  address they are closed first, and refuse connections for a moment.
- `hostnameOverride` (and `--hostname-override`) takes effect at the next start, which a warning says.

## Fields

"""

FLAGS_HEAD = """
## Flags

As kube-proxy's they may be written `--flag=value`, `--flag value`, `--switch`, `--switch=false`, `-v 2`, `-v2`, and
with underscores. `--version` prints `Kubernetes {version} (kproxy ...)`, since tools read the second word.

"""

GATES_HEAD = """
## Feature gates

Every component of Kubernetes takes all gates, so that one list may be given to them all. kproxy takes the {count}
gates of Kubernetes 1.36 and before that it knows. `AllowServiceExternalIPs=false` is honoured. Unknown gates are
errors, and so is another value for these, which are locked:

"""


def page() -> str:
    """The whole page, in Markdown."""
    made_with = ", ".join(f"`{_path(path)}`" for paths in MADE_WITH.values() for path in paths)
    locked = ", ".join(f"`{name}` ({'true' if value else 'false'})" for name, value in sorted(gates.LOCKED.items()))
    return "".join(
        [
            HEAD.replace("{made_with}", fill(made_with, 120, initial_indent="  ", subsequent_indent="  ")),
            *_table(("field", "type", "default", "what it does"), _fields()),
            FLAGS_HEAD.replace("{version}", KUBERNETES),
            *_table(("flag", "type", "default", "sets", "what it does"), map(_flag, FLAGS)),
            GATES_HEAD.replace("{count}", str(len(gates.KNOWN))),
            f"{fill(locked, 120)}.\n",
        ]
    )


def _fields() -> Iterator[tuple[str, ...]]:
    for path, attributes, kind in leaves():
        # In the mode that it belongs to: only there are sync periods completed.
        mode = next((mode for mode in ProxyMode if path.startswith(f"{mode}.")), ProxyMode.IPTABLES)
        default = value_at(defaults.default(mode), attributes)
        meaning = FIELD_DOCS[path]
        text = f"nothing: {meaning.text}" if meaning.idle else meaning.text
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
