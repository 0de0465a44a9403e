"""Whether this kernel has IPVS, and a virtual machine with Debian's kernel for when it has not.

The machine sees the host's files, writes to none of them but those of one shared folder, has no network but loopback,
and runs one command. It needs no KVM: without one the processor is emulated, which is some thirty times slower.
"""

from __future__ import annotations

import io
import os
import py_compile
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from kproxy.errors import KproxyError
from kproxy.lab.namespaces import Namespace, tied

CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = Path("/run/share")  # the shared folder, as the machine sees it
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "modprobe": "kmod", "busybox": "busybox-static"}
PYTHON = Path(sys.executable).parent.resolve() / Path(sys.executable).name  # as the machine sees it
SOURCES = ("kproxy", "modes", "tests", "benchmarks")
TEST_MODULES = ("test_", "conftest")  # how their names begin: pytest has byte code of its own of them
PASSED_ON = ("CI", "HYPOTHESIS_PROFILE", "LANG", "PATH", "PYTHONPATH")
CONSOLE_LINES = 60
# The machine mounts folders of its own over /tmp, /run and others, and its kernel's command line takes no path with a
# space. So it starts from the checkout, wherever that lies, under one of these names: folders of every Debian, seldom
# in use, over which the checkout is mounted for the machine's process alone. tests/guest/start mounts it where it lies.
HOMES = (Path("/mnt"), Path("/media"), Path("/srv"))
MOUNTED = ("unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"')
# Should we die first, the kernel tells timeout, and timeout ends all that it started; as it does after an hour.
LIMIT = ("timeout", "--signal", "KILL", "3600")
# Nothing here is protected from anything; a busy host must not make the kernel doubt its clock.
KERNEL_OPTIONS = ("mitigations=off", "no5lvl", "tsc=reliable", "loglevel=5")
# A plain processor is the quickest to emulate (with AVX a fifth more is to do), and --cpus 1: two take half as much
# again for the same work.
EMULATED = ("-cpu", "qemu64,+rdrand")


class MachineError(Exception):
    """The machine cannot be started; says why in one line."""


def kernel_has_ipvs() -> bool:
    """Whether tests of IPVS can run here: IPVS, dummy interfaces and SCTP, loaded if need be, and root's rights."""
    if os.geteuid():
        return False
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-aq", "ip_vs", "dummy", "sctp"], check=False, capture_output=True)
    if not Path("/proc/net/ip_vs").exists():
        return False
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
        space = Namespace("check")
        try:
            space.run(["ip", "link", "add", "check", "type", "dummy"])
        finally:
            space.close()
    except (OSError, KproxyError):
        return False
    return True


def unavailable() -> str:
    """Why no machine can be started here, as one line; "" when it can."""
    if os.geteuid():
        return "this kernel has no IPVS, and only root may start a machine that has"
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if find_spec("virtme") is None:
        missing.append("virtme-ng (from PyPI)")
    if missing:
        return f"this kernel has no IPVS, and to start one that has, these are missing: {', '.join(missing)}"
    hidden = " " in str(PYTHON) or any(PYTHON.is_relative_to(folder) for folder in ("/tmp", "/run", "/dev", "/var"))
    if hidden and not PYTHON.is_relative_to(CHECKOUT):
        return f"the virtual machine would not see {PYTHON}: make the environment in {CHECKOUT}"
    return ""


class Machine:
    """A running machine. Close it to end it, whatever it does."""

    def __init__(self, share: Path, argv: Sequence[str], rewritten: Iterable[tuple[Path, bytes]] = ()) -> None:
        """Start it. ARGV runs in the checkout's folder, as root; SHARE is a folder, inside it is INSIDE.

        rewritten: files that the machine has besides, such as byte code of test modules, which is not among what it
        has anyway. Raises MachineError where there is no kernel to be had.
        """
        _fill(share, argv, rewritten)
        self._process = subprocess.Popen(
            tied([*LIMIT, *_command(share, "--script-sh")], "TERM"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # the machine's several consoles open it anew, and a file would be overwritten
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._lines: deque[bytes] = deque(maxlen=CONSOLE_LINES)
        self._reader = Thread(target=self._read_console, name="guest-console", daemon=True)
        self._reader.start()

    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        """The end of what its console showed."""
        if not self.running():
            self._reader.join(timeout=10)
        return b"".join(self._lines).decode(errors="replace").replace("\r", "")

    def close(self) -> None:
        if self.running():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)
        self._reader.join(timeout=30)

    def _read_console(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as console:
            self._lines.extend(console)


def shell() -> int:
    """A shell in a machine on this terminal; its exit status is not told."""
    if reason := unavailable():
        sys.exit(reason)
    with TemporaryDirectory(prefix="kproxy-guest-") as folder:
        _fill(Path(folder), ["/bin/bash"], ())
        return subprocess.call(_command(Path(folder), "--shell"))


def _fill(share: Path, argv: Sequence[str], rewritten: Iterable[tuple[Path, bytes]]) -> None:
    (share / "command").write_text(_script(argv, os.environ))
    (share / "checkout").write_text(str(CHECKOUT))
    with tarfile.open(share / "compiled.tar", "w") as tar:
        for path, data in (*_compiled(), *rewritten):
            entry = tarfile.TarInfo(str(path.relative_to(CHECKOUT)))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _home() -> Path:
    for home in HOMES:
        if home.is_dir() and not CHECKOUT.is_relative_to(home) and not PYTHON.resolve().is_relative_to(home):
            return home
    raise MachineError(f"none of {', '.join(map(str, HOMES))} is there and free to mount the checkout over")


def _kernel() -> str:
    done = subprocess.run([CHECKOUT / "scripts/debian-kernel"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"scripts/debian-kernel: {done.stderr.strip()}")
    return done.stdout.strip()


def _command(share: Path, session: str) -> list[str]:
    """SESSION: virtme-run's option that takes what is to be run."""
    fast, home = _can_virtualize(), _home()
    kernel = home / Path(_kernel()).relative_to(CHECKOUT)
    python = home / PYTHON.relative_to(CHECKOUT) if PYTHON.is_relative_to(CHECKOUT) else PYTHON
    return [
        *(*MOUNTED, str(CHECKOUT), str(home), str(python), "-m", "virtme.commands.run"),
        *("--kimg", str(kernel), "--mods=auto", "--memory", "2G", "--cpus", "1"),
        *("--force-9p", "--disable-microvm", "--overlay-rwdir", "/lib", "--show-boot-console", "--verbose"),
        *(() if fast else ("--disable-kvm",)),
        *(part for option in (*KERNEL_OPTIONS, *(() if fast else _clock())) for part in ("--kopt", option)),
        *(session, str(home / "tests/guest/start")),
        *("--qemu-opts", *(() if fast else EMULATED)),
        *_folder("host", Path("/"), ",readonly=on"),
        *_folder("checkout", CHECKOUT, ",readonly=on"),
        *_folder("share", share, ""),
    ]


def _folder(tag: str, path: Path, options: str) -> tuple[str, ...]:
    quoted = str(path).replace(",", ",,")
    return (
        *("-fsdev", f"local,id={tag}fs,path={quoted},security_model=none,multidevs=remap{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag}fs,mount_tag={tag}"),
    )


def _can_virtualize() -> bool:
    """A /dev/kvm may be there and good for other guests only, so the processor has to say that it can, too."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return bool(flags & {"vmx", "svm"}) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def _clock() -> tuple[str, ...]:
    """The frequency of an emulated processor's time stamps, which is this one's: half its bogomips, in megahertz.

    On a busy host the kernel would measure less than half of it, and its clocks would run fast: patience ends too soon.
    """
    found = re.search(r"^bogomips\s*: ([\d.]+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return (f"tsc_early_khz={round(float(found[1]) * 500)}",) if found else ()


def _script(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    passed = {"HOME": "/root"} | {name: environment[name] for name in PASSED_ON if name in environment}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in passed.items())
    return f"cd {shlex.quote(str(CHECKOUT))}\n{exports}exec {shlex.join(argv)}\n"


def _compiled() -> Iterator[tuple[Path, bytes]]:
    """Byte code of all our modules but those of tests, for the machine to lay over the checkout: compiling takes half a
    minute there."""
    with TemporaryDirectory() as folder:
        for source in (path for name in SOURCES for path in sorted((CHECKOUT / name).rglob("*.py"))):
            if not source.name.startswith(TEST_MODULES):
                made = py_compile.compile(str(source), cfile=f"{folder}/module", doraise=False, quiet=2)
                if made:  # else the test that imports it says what is wrong with it
                    name = f"{source.stem}.{sys.implementation.cache_tag}.pyc"
                    yield source.parent / "__pycache__" / name, Path(made).read_bytes()


if __name__ == "__main__":
    sys.exit(shell())
