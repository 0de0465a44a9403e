"""Write requirements.txt, the libraries of the image: the newest versions that pyproject.toml allows, and their hashes.

Run it as `.venv/bin/python manifests/image/lock.py` where PyPI can be reached. It asks pip, once for each architecture,
what it would install, and downloads nothing; both must agree on every version.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.txt"
# Commands that have no place in a container: the demo, which builds network namespaces.
NOT_IN_THE_IMAGE = {"pyroute2"}
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36)  # Debian 12 has 2.36
HEAD = """\
# The libraries in the image. Written by manifests/image/lock.py; each line has the hashes of PyPI's wheels
# for amd64 and arm64.
"""


def wanted() -> list[str]:
    """The requirements of pyproject.toml that the image needs."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    found: list[str] = project["dependencies"]
    return [text for text in found if name(text) not in NOT_IN_THE_IMAGE]


def name(requirement: str) -> str:
    """The project's name at the head of a requirement, as PyPI normalises it."""
    head = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", head[0]).lower() if head else ""


def resolved(machine: str) -> dict[str, str]:
    """What pip would install on MACHINE: "name==version" and its hash."""
    platforms = [f"--platform=manylinux{glibc}_{machine}" for glibc in ("2014", *(f"_2_{minor}" for minor in GLIBC))]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        target = ["--target", folder, "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
        subprocess.run([*command, *target, *platforms, "--report", str(report), *wanted()], check=True)
        found = json.loads(report.read_text())["install"]
    return {
        f"{name(each['metadata']['name'])}=={each['metadata']['version']}": "sha256:"
        + each["download_info"]["archive_info"]["hashes"]["sha256"]
        for each in found
    }


def main() -> int:
    locks = {architecture: resolved(machine) for architecture, machine in ARCHITECTURES.items()}
    versions = {tuple(sorted(lock)) for lock in locks.values()}
    if len(versions) != 1:
        print(f"the architectures differ in their versions: {versions}", file=sys.stderr)
        return 1
    lines = [
        " \\\n    ".join([pin, *(f"--hash={value}" for value in sorted({lock[pin] for lock in locks.values()}))])
        for pin in sorted(*versions)
    ]
    LOCK.write_text(HEAD + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
