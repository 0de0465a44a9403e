"""Runs while the image is built: put together the root file system of the image, file by file, from a list.

`assemble.py BUILD ROOT`: BUILD has `packages` (names of installed Debian packages, and patterns of files to leave out),
`site` (the installed libraries) and `source` (kproxy). Nothing gets into ROOT because it happened to be in the base, so
the same packages and sources give the same bytes. Needs no library.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

SITE = "usr/local/lib/python3.11/dist-packages"  # where Debian's Python looks for what is not Debian's
COMMANDS = {"kproxy": "main", "kube-proxy": "kube_proxy_main"}
COMMAND = """\
#!/usr/bin/python3 -I
import sys

from kproxy.cli.main import {function}

sys.exit({function}())
"""
ALTERNATIVES = ("iptables", "ip6tables")  # names that Debian's package leads to one backend or the other
APPLETS = ("sh", "cat", "grep", "ip", "kill", "ls", "netstat", "ps", "sleep")
USER = 65532
FILES = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\nkproxy:x:{USER}:{USER}:kproxy:/:/bin/false\n",
    "etc/group": f"root:x:0:\nkproxy:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
}
FOLDERS = ("dev", "etc", "lib/modules", "proc", "root", "run", "sys", "tmp", "var/lib/dpkg/info", "var/tmp")
# Parts of libraries that kproxy never imports. `kubernetes` has a class for every object of every API, and all of it
# once more for asyncio: 120 MB of which kproxy uses what reads credentials.
UNUSED = (
    "kubernetes/aio",
    "kubernetes/client/api",
    "kubernetes/client/models/*[!_].py",
    "pyroute2",  # only for `kproxy demo`, which makes network namespaces
    "pyroute2-*",
    "aiohttp_retry",  # only for kubernetes/aio
    "aiohttp_retry-*",
    "pygments",  # this and the next two: what rich colours and lays out besides tables
    "pygments-*",
    "markdown_it",
    "markdown_it_py-*",
    "mdurl",
    "mdurl-*",
    "tzdata",  # times are UTC
    "tzdata-*",
    "bin",
    "*/tests",
    "*/test",
    "*.c",
    "*.h",
    "*.pxd",
    "*.pyi",
    "*.pyx",
    "*/RECORD",  # lists files that are not here
    "*/REQUESTED",
    "*/INSTALLER",
    "*/direct_url.json",
)


def main(build: Path, root: Path) -> None:
    names, omitted = listed(build / "packages")
    make_folders(root)
    for name in names:
        take_package(root, name, omitted)
    take_alternatives(root)
    for applet in APPLETS:
        link(root, f"usr/bin/{applet}", "busybox")
    for path, text in FILES.items():
        (root / path).write_text(text)
    take_libraries(build / "site", root / SITE)
    take_sources(build / "source", root / SITE)
    for name, function in COMMANDS.items():
        write_command(root / "usr/local/bin" / name, COMMAND.format(function=function))
    documents = root / "usr/share/doc/kproxy"
    documents.mkdir()
    shutil.copy(build / "LICENSE", documents / "copyright")
    compile_all(root)
    finish(root)


def listed(path: Path) -> tuple[list[str], list[str]]:
    """The names of packages in the list, and the patterns of files to leave out."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    names = [line for line in lines if line and line[0] not in "#-"]
    return names, [line[1:].strip() for line in lines if line.startswith("-")]


def make_folders(root: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):  # /usr merged, as Debian 12 is
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)


def take_package(root: Path, name: str, omitted: list[str]) -> None:
    """Copy a package's files as they are installed here, and write down for scanners that it is there."""
    for line in said("dpkg-query", "--listfiles", name).splitlines():
        source = merged(Path(line))
        if source.is_dir() and not source.is_symlink():
            continue
        if not os.path.lexists(source) or any(fnmatch(str(source), pattern) for pattern in omitted):
            continue
        target = root / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(target):
            shutil.copy2(source, target, follow_symlinks=False)
    with (root / "var/lib/dpkg/status").open("a") as status:
        status.write(said("dpkg-query", "--status", name).rstrip() + "\n\n")


def merged(path: Path) -> Path:
    """The path with /bin, /sbin, /lib and /lib64 where they lead; the last part is not followed."""
    return path.parent.resolve() / path.name


def take_alternatives(root: Path) -> None:
    (root / "etc/alternatives").mkdir()
    for stem in ALTERNATIVES:
        for verb in ("", "-save", "-restore"):
            link(root, f"etc/alternatives/{stem}{verb}", f"/usr/sbin/{stem}-nft{verb}")
            link(root, f"usr/sbin/{stem}{verb}", f"/etc/alternatives/{stem}{verb}")


def link(root: Path, path: str, to: str) -> None:
    (root / path).unlink(missing_ok=True)
    (root / path).symlink_to(to)


def take_libraries(site: Path, target: Path) -> None:
    def unused(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(site)
        return {name for name in names if any(fnmatch(str(inside / name), pattern) for pattern in UNUSED)}

    shutil.copytree(site, target, ignore=unused, dirs_exist_ok=True)


def take_sources(source: Path, target: Path) -> None:
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source / "kproxy", target / "kproxy", ignore=leave)
    shutil.copytree(source / "modes", target / "kproxy/modes", ignore=leave)


def write_command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def compile_all(root: Path) -> None:
    """Compile now what every start would compile again on a read-only root; by content, so that no time is in it."""
    for cache in [*root.rglob("__pycache__")]:
        shutil.rmtree(cache)
    for folder in (root / "usr/lib/python3.11", root / "usr/lib/python3", root / SITE):
        if folder.exists():
            compileall.compile_dir(
                folder,
                maxlevels=30,
                stripdir=str(root),
                prependdir="/",
                quiet=2,
                workers=1,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


def finish(root: Path) -> None:
    """Nobody but root may write, except in the folders for temporary files; nothing raises anybody's rights."""
    for folder, names, files in os.walk(root):
        for path in (Path(folder) / name for name in (*names, *files)):
            if not path.is_symlink():
                os.chown(path, 0, 0)
                path.chmod((path.stat().st_mode & 0o755) | (0o755 if path.is_dir() else 0o444))
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    root.chmod(0o755)
    (root / "root").chmod(0o700)
    subprocess.run(["ldconfig", "-r", str(root), "-X"], check=True)
    shutil.rmtree(root / "var/cache", ignore_errors=True)


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
