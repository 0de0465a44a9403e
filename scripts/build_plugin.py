"""Builds `kubectl kproxy` as one file, for a release: python scripts/build_plugin.py [dist/kubectl-kproxy]

The file holds the plugin, what it imports of kproxy, and click; it needs Python 3.11 and kubectl. Run this with the
interpreter of the virtual environment.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipapp
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAIN = """\
import sys

if sys.version_info < (3, 11):
    sys.exit("kubectl-kproxy: error: it needs Python 3.11 or newer")
from kproxy.cli.kubectl_kproxy import main

sys.exit(main())
"""


def collect(folder: Path) -> None:
    """Copy the plugin into FOLDER. Raises SystemExit when it imports what is neither click, kproxy nor the library."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT))
    import kproxy.cli.kubectl_kproxy  # noqa: F401

    loaded = {name: module for name, module in sys.modules.items() if name not in before}
    tops = {name.partition(".")[0] for name in loaded}
    if foreign := tops - {"kproxy", "click"} - sys.stdlib_module_names:
        sys.exit(f"build_plugin: one file cannot hold {', '.join(sorted(foreign))}, which the plugin imports")
    copies = {Path(m.__file__): Path(m.__file__).relative_to(ROOT) for n, m in loaded.items() if n.startswith("kproxy")}
    copies |= {Path(each.locate()): Path(each) for each in files("click") or () if each.suffix != ".pyc"}
    copies[ROOT / "LICENSE"] = Path("LICENSE")
    for source, name in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    (folder / "__main__.py").write_text(MAIN)


def main(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        collect(Path(scratch))
        zipapp.create_archive(scratch, target, interpreter="/usr/bin/env python3", compressed=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist/kubectl-kproxy"))
