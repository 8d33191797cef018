"""A worker's memory is closed to others of its own user. A real process: it stays so for good."""

import subprocess
import sys

CHILD = """
import ctypes
from worker.pool.privacy import keep_memory_private
PR_GET_DUMPABLE = 3
before = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE)
assert keep_memory_private()
print(before, ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))
"""


def test_a_process_that_keeps_its_memory_private_cannot_be_dumped() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True, text=True)
    assert done.stdout == "1 0\n"
