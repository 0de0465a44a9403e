"""A command in the virtual machine with Debian's kernel, whose processor is emulated where there is no KVM.

Compare its times with each other, and with nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from kproxy.errors import KernelError
from tests.guest.machine import Machine, MachineError, unavailable


def run(
    folder: Path, argv: Sequence[str], result: str, seconds: float, look: Callable[[], None] | None = None
) -> bytes:
    """What ARGV wrote into the file RESULT of the shared FOLDER, which is INSIDE to it. LOOK is called now and then.

    Raises KernelError where there is no such machine, or it wrote nothing, or took more than so many SECONDS.
    """
    if reason := unavailable():
        raise KernelError(reason)
    try:
        machine = Machine(folder, argv)
    except MachineError as error:
        raise KernelError(str(error)) from None
    end = time.monotonic() + seconds
    with closing(machine):
        while machine.running():
            if time.monotonic() > end:
                raise KernelError(f"the virtual machine took more than {seconds:.0f} s: {machine.tail()[-300:]}")
            time.sleep(0.2)
            if look:
                look()
        if not (folder / result).exists():
            raise KernelError(f"the virtual machine measured nothing: {machine.tail()[-300:]}")
    return (folder / result).read_bytes()
