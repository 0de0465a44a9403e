"""A container of the image without a container engine: what the kernel gives to one, by unshare, mount and chroot.

Its own process ids and mounts, the node's network, the image as root filesystem, read-only but for /tmp and /run, and
volumes. Unless privileged: /proc/sys read-only, only the capabilities that are given, and no way to get more. Seccomp
and cgroups are left out.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kproxy.lab.namespaces import Namespace

TOOLS = ("unshare", "chroot", "mount")
# ROOT, then pairs of a source and a target until "--", then what is to be run with the root changed.
MOUNTS = """
set -e
root=$1 parameters=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/dev"
for node in null zero random urandom; do
    touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"
done
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
chmod 1777 "$root/tmp"
while [ "$1" != -- ]; do
    mkdir -p "$root/$2"; mount --bind -o ro "$1" "$root/$2"; shift 2
done
shift
mount -o remount,bind,ro "$root"
if [ "$parameters" = read-only ]; then
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
fi
cd "$root"
exec chroot "$root" "$@"
"""
# Runs in the container, before the program: prctl(2), capabilities(7). Ambient capabilities are what a container
# engine gives to a user other than root so that they outlive execve; Kubernetes does not.
CONFINE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
given, user, ambient, rest = [int(n) for n in sys.argv[1].split(",") if n], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
def prctl(*words):
    if libc.prctl(*[ctypes.c_ulong(w) for w in (*words, *[0] * (5 - len(words)))]):
        raise OSError(ctypes.get_errno(), f"prctl {words}")
def set_capabilities(number):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low, high = number & 0xFFFFFFFF, number >> 32
    if libc.capset(header, (ctypes.c_uint32 * 6)(low, low, low, high, high, high)):
        raise OSError(ctypes.get_errno(), "capset")
for number in range(int(open("/proc/sys/kernel/cap_last_cap").read()) + 1):
    if number not in given:
        prctl(24, number)
prctl(8, 1)
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
prctl(8, 0)
set_capabilities(sum(1 << number for number in given))
if ambient:
    for number in given:
        prctl(47, 2, number)
elif user:
    set_capabilities(0)
prctl(38, 1)
os.execv(rest[0], rest)
"""
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}  # include/uapi/linux/capability.h


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a securityContext says. capabilities: those that are added to none. ambient: they also hold for a user."""

    capabilities: tuple[str, ...] = ("NET_ADMIN", "NET_RAW")
    user: int = 0
    ambient: bool = False


@dataclass(slots=True)
class Container:
    """A program in the image's root filesystem `root`, in the network namespace `space`.

    volumes: folders by the path at which the container sees them, read-only. confinement None: privileged. log: where
    the program's output goes.
    """

    root: Path
    space: Namespace
    log: Path
    volumes: Mapping[str, Path] = field(default_factory=dict)
    confinement: Confinement | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str]) -> None:
        environment = {"XTABLES_LOCKFILE": "/run/xtables.lock", **self.environment}
        with self.log.open("ab") as log:
            self._process = self.space.spawn([*self._unshare(), *self._inside(argv, environment)], log)

    @property
    def pid(self) -> int:
        """The process id of its first process, as the host sees it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        """Send its first process the signal, as the kubelet does; its exit status."""
        assert self._process is not None
        os.kill(self.pid, with_signal)
        return self._process.wait(timeout)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _unshare(self) -> list[str]:
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]

    def _inside(self, argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        mounts = [word for target, source in self.volumes.items() for word in (str(source), target)]
        settings = [f"{name}={value}" for name, value in environment.items()]
        kept = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # the image's
        program = ["/usr/bin/python3", "-I", "-c", CONFINE, *self._rights(), *argv] if self.confinement else list(argv)
        parameters = "read-only" if self.confinement else "writable"
        shell = ["sh", "-c", MOUNTS, "sh", str(self.root), parameters, *mounts, "--"]
        # env of the host is gone behind chroot; the shell's own environment stays.
        return ["env", "-i", kept, *settings, *shell, *program]

    def _rights(self) -> list[str]:
        assert self.confinement is not None
        numbers = ",".join(str(CAPABILITIES[name]) for name in self.confinement.capabilities)
        return [numbers, str(self.confinement.user), "ambient" if self.confinement.ambient else ""]


def run(root: Path, argv: Sequence[str], given: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program of the image to its end, with nothing but its files."""
    environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        ["/usr/sbin/chroot", str(root), *argv],
        input=given,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
