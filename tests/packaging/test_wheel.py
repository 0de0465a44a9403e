"""The modes live in modes/ at the top of the tree; an installed kproxy has them as kproxy.modes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORT = """
import importlib.util, kproxy.modes.iptables, kproxy.modes.base
print(kproxy.modes.iptables.__file__)
print(importlib.util.find_spec("modes"))
"""


def build(what: str, source: Path, out: Path) -> Path:
    """Build `what` ("wheel" or "sdist") from `source` with the build backend that this environment has, offline."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{what}", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a clone has it, symlink included."""
    copy = tmp_path_factory.mktemp("tree") / "kproxy"
    copy.mkdir()
    for name in ("kproxy", "modes", "docs", "examples", "manifests"):
        skip = shutil.ignore_patterns("__pycache__")
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    assert (copy / "kproxy/modes").is_symlink()
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module", params=["tree", "sdist"])
def wheel(request: pytest.FixtureRequest, tree: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the tree, and one built from the sdist alone."""
    if request.param == "tree":
        return build("wheel", tree, tmp_path_factory.mktemp("wheel"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(unpacked)], check=True, timeout=60)
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def install(wheel: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)


def test_the_installed_wheel_has_the_modes_inside_the_package(wheel: Path, tmp_path: Path) -> None:
    install(wheel, tmp_path / "site")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    # -P: the working directory is not searched; -S would lose the libraries. The tree's own editable install must not
    # answer for the wheel, so its folder is taken off the path.
    code = f"import sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n" + IMPORT
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "site/kproxy/modes/iptables/__init__.py"), "None"]


def test_the_wheel_has_every_module_of_the_tree_and_no_other_package(wheel: Path, tree: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(tree)) for path in (tree / "kproxy").rglob("*.py")}
    modes = {f"kproxy/{path.relative_to(tree)}" for path in (tree / "modes").rglob("*.py")}
    assert modules | modes | {"kproxy/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"kproxy"}


def test_the_wheel_has_every_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(name).decode()
    assert "kproxy = kproxy.cli.main:main" in text
    assert "kube-proxy = kproxy.cli.main:kube_proxy_main" in text
    assert "kubectl-kproxy = kproxy.cli.kubectl_kproxy:main" in text


def test_the_sdist_holds_the_modes_once(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = ["/".join(name.split("/")[1:]) for name in archive.getnames()]
    assert [name for name in names if name.endswith("iptables/render.py")] == ["modes/iptables/render.py"]
