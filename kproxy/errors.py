"""Every exception that kproxy raises on purpose.

    KproxyError
    ├── InvalidInput            the user or the cluster gave something unusable
    │   ├── InvalidObject       a Service, EndpointSlice, Node or manifest
    │   │   └── UnusedObject    one that is in order and concerns no Service
    │   └── InvalidConfig       KubeProxyConfiguration or a flag; all problems at once
    ├── SourceError             the API server or the manifests cannot be read
    │   └── ApiError            the API server answered with an error status
    └── KernelError             the host refused something
        ├── CommandError        a command ended with a failure
        │   └── RestoreError    iptables-restore named a line it did not take
        └── NetlinkError        the kernel answered a netlink request with an errno

Messages are one line and name the object and the field. Errors of libraries are turned into these where the
library is called, so that no other code has to know them.
"""

from __future__ import annotations

from collections.abc import Sequence


def one_line(text: str, limit: int = 400) -> str:
    """TEXT with control characters escaped, cut to LIMIT characters, so that it fits on one line of a log."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class KproxyError(Exception):
    """Base of all of them; str() is one line for a human."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class InvalidInput(KproxyError):
    """Something given to kproxy is unusable; exit status 2 on the command line."""


class InvalidObject(InvalidInput):
    """An object of the cluster (or a manifest) that cannot be used.

    kind: "Service", "EndpointSlice", "Node", ... or "manifest"; name: "namespace/name" or a file name;
    field: the path, as in spec.ports[0].port ("" when it is the object as a whole); reason: what is wrong with it.
    """

    def __init__(self, kind: str, name: str, field: str, reason: str) -> None:
        self.kind, self.name, self.field, self.reason = kind, name, field, reason
        where = f"{kind} {name}: {field}" if field else f"{kind} {name}"
        super().__init__(f"{where}: {reason}")


class UnusedObject(InvalidObject):
    """An object that is in order and that no Service proxy uses, as somebody may want; worth a line for who asks."""


class InvalidConfig(InvalidInput):
    """The configuration is unusable; `problems` has one "field: reason" line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class SourceError(KproxyError):
    """The API server or the manifests cannot be read now; the reader tries again."""


class ApiError(SourceError):
    """The API server answered REQUEST ("GET /api/v1/services") with an HTTP status of 400 or more.

    retry_after: the seconds that it asks to be left alone, 0 when it does not.
    """

    def __init__(self, request: str, status: int, detail: str, retry_after: float = 0.0) -> None:
        self.status, self.detail, self.retry_after = status, detail, retry_after
        super().__init__(f"{request}: HTTP status {status}: {detail}")


class KernelError(KproxyError):
    """The host refused something; the sync that asked for it is retried.

    refusals: a line for each change that the kernel refused during that sync, as in `kproxy.modes.base.Outcome`.
    """

    refusals: tuple[str, ...] = ()


class CommandError(KernelError):
    """A command failed: its argument vector, exit status and standard error."""

    def __init__(self, argv: Sequence[str], status: int, stderr: str) -> None:
        self.argv, self.status, self.stderr = tuple(argv), status, stderr
        super().__init__(f"{' '.join(argv)}: exit status {status}: {stderr}")


class RestoreError(CommandError):
    """iptables-restore failed; `line` is the 1-based line of its input that it named, 0 when it named none."""

    def __init__(self, argv: Sequence[str], status: int, stderr: str, line: int) -> None:
        super().__init__(argv, status, stderr)
        self.line = line


class NetlinkError(KernelError):
    """The kernel answered a netlink request with an error; `errno` is positive.

    detail: what the kernel said besides, "" for nothing. offset: in bytes from the start of the message, where the
    attribute is that the kernel did not take; 0 when it does not say.
    """

    def __init__(self, request: str, errno: int, detail: str = "", offset: int = 0) -> None:
        import os

        self.request, self.errno, self.detail, self.offset = request, errno, detail, offset
        super().__init__(f"{request}: {os.strerror(errno)}" + (f": {detail}" if detail else ""))
