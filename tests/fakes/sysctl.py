"""Kernel parameters in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kproxy.errors import KernelError


class FakeSysctls:
    """Has the parameters that it is given and no others, like a kernel; `written` lists what was set, in order."""

    def __init__(self, values: Mapping[str, str], read_only: Collection[str] = ()) -> None:
        """read_only: names that cannot be set, or "*" among them for all."""
        self._values = dict(values)
        self._read_only = frozenset(read_only)
        self.written: list[tuple[str, str]] = []

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def set(self, name: str, value: str) -> None:
        if name not in self._values:
            raise KernelError(f"{name} cannot be set to {value}: No such file or directory")
        if self._read_only & {name, "*"}:
            raise KernelError(f"{name} cannot be set to {value}: Read-only file system")
        self._values[name] = value
        self.written.append((name, value))
