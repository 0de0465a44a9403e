"""The machine that a run was measured on, and the versions of all that had a part in it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from kproxy import __version__

TOOLS = {"iptables": "--version", "nft": "--version", "strace": "--version"}


def describe() -> dict[str, str]:
    """By name, in the order of a report."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": processor(Path("/proc/cpuinfo").read_text()),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "system": _system(),
        "load at the end": load,
        "Python": platform.python_version(),
        "kproxy": __version__,
        **{tool: version for tool, option in TOOLS.items() if (version := _version(tool, option))},
    }


def processor(text: str) -> str:
    """Its name, from what /proc/cpuinfo says. Pure."""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _version(tool: str, option: str) -> str:
    if shutil.which(tool) is None:
        return ""
    done = subprocess.run([tool, option], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0].removeprefix(f"{tool} ").removeprefix("-- version ")
