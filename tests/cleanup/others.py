"""Commands as a user who is not root, wherever the code lies."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import kproxy

# In a mount namespace of its own, an empty folder that all may enter takes the place of the one that they may not; in
# it are only those places that are needed.
SCRIPT = """
set -e
blocked=$1 stage=$2; shift 2
mount --bind "$blocked" "$stage"
mount -t tmpfs -o mode=755 tmpfs "$blocked"
while [ "$1" != -- ]; do
    mkdir -p "$1"; mount --bind "$stage/${1#"$blocked"/}" "$1"; shift
done
shift; exec "$@"
"""


def reachable(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """COMMAND, with Python and kproxy where any user can read them. folder: an empty one that may be mounted over."""
    code = Path(kproxy.__file__).resolve().parents[1]
    places = {code, Path(sys.prefix), Path(sys.base_prefix)}
    # The home of whoever cloned it, the temporary folder of a CI run, the place of an interpreter of one's own.
    blocked = {top for place in places if (top := _blocked(place)) is not None}
    for number, top in enumerate(sorted(blocked)):
        stage = folder / str(number)
        stage.mkdir(parents=True, exist_ok=True)
        hidden = sorted(str(place) for place in places if top in place.parents)
        command = ("sh", "-c", SCRIPT, "sh", str(top), str(stage), *hidden, "--", *command)
    return ("unshare", "--mount", *command) if blocked else command


def _blocked(place: Path) -> Path | None:
    """The uppermost folder above `place` that others may not enter."""
    found = (top for top in reversed(place.parents) if not top.stat().st_mode & stat.S_IXOTH)
    return next(found, None)
