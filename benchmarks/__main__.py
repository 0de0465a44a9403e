"""python -m benchmarks: measure whole proxies. python -m benchmarks parts: parts of kproxy by themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kproxy.errors import KproxyError


def main(argv: Sequence[str]) -> int:
    """The exit status. Bad arguments end in SystemExit."""
    try:
        if argv[:1] == ["parts"]:
            from benchmarks import parts

            return parts.main(argv[1:])
        from benchmarks.suite import commands

        return commands.main(argv)
    except KproxyError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
