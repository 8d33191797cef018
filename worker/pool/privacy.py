"""A process whose memory is nobody's business: keys of TLS connections are in it.

All our processes have the same user, and so have others perhaps; without this each of them could
read the memory of all (ptrace, /proc/PID/mem), and with it what a session in the connection cache
was never meant to give away.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4  # Linux, prctl(2)
DUMPABLE: Final = 1


def keep_memory_private() -> bool:
    """From now on only root can look into this process, and it leaves no core file.

    So a profiler that attaches (py-spy, gdb) has to run as root, and /proc/PID/fd can be listed by
    root alone. What a process tells of itself (faulthandler, the watchdog's stacks) is as before.
    Executing another program ends it. False: this system cannot do it.
    """
    try:
        result: int = ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        return False
    return result == 0


@contextmanager
def private_memory() -> Iterator[None]:
    """As keep_memory_private(), until the block ends; nothing, where that cannot be done."""
    try:
        before: int = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE)
    except (OSError, AttributeError):
        before = 0
    if before != DUMPABLE or not keep_memory_private():
        yield
        return
    try:
        yield
    finally:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, DUMPABLE, 0, 0, 0)
