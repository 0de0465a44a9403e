"""A ConfigMap as the kubelet puts it into a pod: files are links through `..data`, which alone is exchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class Volume:
    """The volume `folder`. Each `put` is one change that nobody sees half of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._version = 0

    def put(self, files: Mapping[str, str]) -> None:
        """Have these files, by name, and no others."""
        data = self.folder / "..data"
        old = data.resolve() if data.is_symlink() else None
        self._version += 1
        new = self.folder / f"..version_{self._version}"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text)
        spare = self.folder / "..data_tmp"
        spare.symlink_to(new.name)
        os.replace(spare, data)
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        if old is not None:
            shutil.rmtree(old)
