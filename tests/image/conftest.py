"""The image, built once from a copy of this tree and unpacked; its base is kept in .cache for the next time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kproxy.lab import links
from kproxy.lab.namespaces import Namespace, unavailable
from tests.image.containers import TOOLS

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/image"
WHEELS = CACHE / "wheels"
EPOCH = 1_700_000_000  # any moment does
TREE = ("kproxy", "modes", "manifests", "requirements", "scripts")
BUILD_SECONDS = 1800


@dataclass(frozen=True)
class Image:
    """An OCI archive of the image. digest: what scripts/build-image said of it. folder: takes what is unpacked."""

    archive: Path
    digest: str
    folder: Path

    @cached_property
    def _blobs(self) -> Path:
        return unpacked(self.archive, self.folder / "archive") / "blobs/sha256"

    def blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.blob(self.digest).read_bytes())
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.blob(self.manifest["config"]["digest"]).read_bytes())
        return found

    @cached_property
    def root(self) -> Path:
        """The root filesystem, owners and modes included."""
        (layer,) = self.manifest["layers"]
        return unpacked(self.blob(layer["digest"]), self.folder / "root")


def unpacked(archive: Path, target: Path) -> Path:
    """TARGET, with what is in the archive; owners and modes included."""
    target.mkdir()
    subprocess.run(["tar", "-xpf", str(archive), "-C", str(target)], check=True, timeout=120)
    return target


@dataclass(frozen=True)
class Builder:
    """Builds images of one copy of the tree. folder: for the copy and the images."""

    folder: Path

    @cached_property
    def tree(self) -> Path:
        copy = self.folder / "tree"
        for name in TREE:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=leave)
        for name in ("LICENSE", ".containerignore"):
            shutil.copy(ROOT / name, copy)
        return copy

    def build(self, name: str, *options: str, wheels: Path | None = WHEELS, **environment: str) -> Image:
        """Build the image, with nothing kept of earlier ones but the base and the WHEELS; None: from the network."""
        archive = self.folder / f"{name}.tar"
        local = ["--wheels", str(wheels)] if wheels else []
        done = self.run("--output", str(archive), *local, *options, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        (self.folder / name).mkdir()
        return Image(archive, done.stdout.split()[-1], self.folder / name)

    def run(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.tree / "scripts/build-image"), "--base", "bootstrap", "--store", str(CACHE / "store"), *options],
            env={**os.environ, "PYTHON": sys.executable, "SOURCE_DATE_EPOCH": str(EPOCH), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if os.geteuid():
        pytest.skip("only root can build the image's base and start a container of it")
    if missing := [tool for tool in ("buildah", "mmdebstrap", *TOOLS) if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not found")
    return Builder(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def image(builder: Builder) -> Image:
    return builder.build("image")


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A node's network."""
    if reason := unavailable(("iptables-nft", "iptables-legacy")):
        pytest.skip(reason)
    with closing(Namespace("node1")) as made:
        links.up(made)
        yield made
