"""What is in the image and what is not."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from kproxy import __version__
from kproxy.cli.main import COMMANDS
from tests.image.conftest import EPOCH, ROOT, Builder, Image
from tests.image.containers import run

pytestmark = [pytest.mark.root, pytest.mark.slow]

FOLDER = ROOT / "manifests/image"
SITE = "usr/local/lib/python3.11/dist-packages"
MEGABYTE = 1_000_000
NOT_FOR_CONTAINERS = {"demo": "pyroute2"}  # by the library that the image leaves out
CUT = {*NOT_FOR_CONTAINERS.values(), "aiohttp-retry", "markdown-it-py", "mdurl", "pygments", "tzdata"}  # locked
WORLD_WRITABLE = {"tmp", "var/tmp"}
ASK_THE_KERNEL = {"ipset", "ipvsadm"}  # even for their version; this one may lack both
# Imports every C extension of Python's own, and says which cannot be.
IMPORTS = """
import importlib, pathlib, sysconfig
for path in pathlib.Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so"):
    try:
        importlib.import_module(path.name.split(".")[0])
    except Exception as error:
        print(path.name, error)
"""
# What the API source imports of the library that is cut most.
CREDENTIALS = """
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import load_incluster_config, load_kube_config
"""


def files(image: Image) -> dict[str, os.stat_result]:
    """Everything in the root filesystem, by its path from there."""
    return {str(path.relative_to(image.root)): path.lstat() for path in image.root.rglob("*")}


@pytest.mark.parametrize("name", ["kproxy", "kube-proxy", "/usr/local/bin/kproxy", "/usr/local/bin/kube-proxy"])
def test_both_names_answer(image: Image, name: str) -> None:
    done = run(image.root, [name, "--version"])
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NOT_FOR_CONTAINERS])
def test_every_command_has_its_libraries(image: Image, command: str) -> None:
    done = run(image.root, ["kproxy", command, "--help"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "library"), NOT_FOR_CONTAINERS.items())
def test_a_command_that_is_not_for_containers_says_so(image: Image, command: str, library: str) -> None:
    done = run(image.root, ["kproxy", command])
    assert done.returncode == 1
    assert done.stderr == f"kproxy: error: {command} needs the library {library}, which is not installed\n"


@pytest.mark.parametrize(
    "argv",
    [
        *(
            [f"{stem}-{backend}{verb}", "--version"]
            for stem in ("iptables", "ip6tables")
            for backend in ("nft", "legacy")
            for verb in ("", "-save", "-restore")
        ),
        ["iptables-save", "--version"],
        ["nft", "--version"],
        ["conntrack", "--version"],
        ["ipset", "--version"],
        ["ipvsadm", "--help"],
        ["modprobe", "--version"],
        ["sh", "-c", "ls / && ps"],
    ],
    ids=" ".join,
)
def test_a_tool_starts(image: Image, argv: list[str]) -> None:
    done = run(image.root, argv)
    assert "error while loading" not in done.stderr
    assert done.returncode == 0 or argv[0] in ASK_THE_KERNEL, done.stderr


def test_every_shared_library_is_there(image: Image) -> None:
    loader = next(path for path in (image.root / "lib64").glob("ld-linux*") if path.is_file())
    shared = [name for name, found in files(image).items() if ".so" in name and stat.S_ISREG(found.st_mode)]
    assert len(shared) > 50
    script = (
        'loader=$1; shift; for path; do "$loader" --list "$path" 2>&1 | grep "not found" && echo "$path"; done; true'
    )
    done = run(image.root, ["sh", "-c", script, "sh", f"/lib64/{loader.name}", *(f"/{name}" for name in shared)])
    assert (done.stdout, done.stderr) == ("", "")


def test_what_is_left_of_the_libraries_can_be_imported(image: Image) -> None:
    done = run(image.root, ["python3", "-I", "-W", "ignore", "-c", IMPORTS + CREDENTIALS])
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_it_is_small(image: Image) -> None:
    unpacked = sum(found.st_size for found in files(image).values() if stat.S_ISREG(found.st_mode))
    assert unpacked < 100 * MEGABYTE  # 86 MB
    assert image.archive.stat().st_size < 40 * MEGABYTE  # 32 MB, which is what a node downloads


def test_nobody_but_root_may_write_and_nothing_raises_rights(image: Image) -> None:
    found = {name: what for name, what in files(image).items() if not stat.S_ISLNK(what.st_mode)}
    assert {name for name, what in found.items() if what.st_mode & stat.S_IWOTH} == WORLD_WRITABLE
    assert all(found[name].st_mode & stat.S_ISVTX for name in WORLD_WRITABLE)
    assert [name for name, what in found.items() if what.st_mode & (stat.S_ISUID | stat.S_ISGID)] == []
    assert [name for name, what in found.items() if what.st_mode & stat.S_IWGRP and name not in WORLD_WRITABLE] == []
    assert {(what.st_uid, what.st_gid) for what in found.values()} == {(0, 0)}
    capable = [name for name in found if "security.capability" in os.listxattr(image.root / name)]
    assert capable == []


def test_there_is_no_leftover_of_the_build(image: Image) -> None:
    patterns = (
        r"(^|/)(apt|dpkg|pip\d?|pip3.*|gcc.*|perl.*|setuptools|wheel|ensurepip)$(?<!^etc/dpkg)(?<!^var/lib/dpkg)",
        r"^build|^var/(cache|log)/|^var/lib/(apt|pip)|\.(whl|deb|c|h|a|pyx)$|\.dpkg-",
        r"^usr/share/(man|locale)/|^(tmp|var/tmp|run|root|dev|proc|sys)/.",
        rf"^{SITE}/(kubernetes/aio|pygments|pyroute2|pytest|mypy)",
    )
    names = [name for name in files(image) if not name.startswith("usr/share/doc/")]
    assert [name for name in names if any(re.search(pattern, name) for pattern in patterns)] == []
    assert [name for name in names if name.endswith("~") or "/." in f"/{name}"] == []


def test_every_link_leads_somewhere(image: Image) -> None:
    links = [image.root / name for name, found in files(image).items() if stat.S_ISLNK(found.st_mode)]
    assert [str(link) for link in links if not resolves(image.root, link)] == []


def resolves(root: Path, path: Path) -> bool:
    """Whether a link of the image leads to something in the image."""
    for _ in range(10):
        if not path.is_symlink():
            return path.exists()
        target = os.readlink(path)
        path = root / target.lstrip("/") if target.startswith("/") else path.parent / target
    return False


def test_python_finds_everything_compiled(image: Image) -> None:
    """By content and not by time, which no image keeps: a read-only root would be compiled anew at every start."""
    for folder in ("usr/lib/python3.11", SITE):
        sources = [path for path in (image.root / folder).rglob("*.py") if "__pycache__" not in path.parts]
        assert len(sources) > 100
        for source in sources:
            head = (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").read_bytes()[:8]
            assert int.from_bytes(head[4:], "little") == 0b01, source  # PEP 552: by hash, unchecked


def test_kproxy_is_this_trees(image: Image, builder: Builder) -> None:
    for ours, theirs in (("kproxy", f"{SITE}/kproxy"), ("modes", f"{SITE}/kproxy/modes")):
        sources = [path for path in (builder.tree / ours).rglob("*") if path.is_file() and not path.is_symlink()]
        sources = [path for path in sources if "examples" not in path.parts]
        assert sources
        for path in sources:
            copy = image.root / theirs / path.relative_to(builder.tree / ours)
            assert copy.read_bytes() == path.read_bytes(), copy


def test_scanners_find_every_package(image: Image) -> None:
    status = (image.root / "var/lib/dpkg/status").read_text()
    lines = (FOLDER / "packages").read_text().splitlines()
    listed = {line for line in lines if line and line[0] not in "#-"}
    assert set(re.findall(r"^Package: (\S+)$", status, re.MULTILINE)) == listed
    assert set(re.findall(r"^Status: (.+)$", status, re.MULTILINE)) == {"install ok installed"}
    for name in listed:
        assert (image.root / "usr/share/doc" / name).exists(), f"no licence of {name}"
    locked = {name.lower().replace("_", "-") for name in re.findall(r"^(\S+)==", lock(), re.MULTILINE)}
    infos = {path.name.split("-")[0].lower().replace("_", "-") for path in (image.root / SITE).glob("*.dist-info")}
    assert infos == locked - CUT


def lock() -> str:
    return (ROOT / "requirements/daemon.txt").read_text()


def test_how_it_starts(image: Image) -> None:
    config = image.config["config"]
    assert (config["Entrypoint"], config["Cmd"]) == (["/usr/local/bin/kproxy"], ["run"])
    assert config["User"] in {"0:0", "0", ""}  # kubeadm's DaemonSet names no user and expects root
    assert "kproxy:x:65532:65532:" in (image.root / "etc/passwd").read_text()
    assert len(image.manifest["layers"]) == 1
    assert "buildah" not in json.dumps(config)  # the tool's version would be in the digest


def test_every_time_is_the_sources(image: Image) -> None:
    assert {int(found.st_mtime) for name, found in files(image).items() if not stat.S_ISDIR(found.st_mode)} == {EPOCH}
    assert image.config["created"] == "2023-11-14T22:13:20Z"
