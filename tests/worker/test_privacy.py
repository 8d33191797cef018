"""A worker's memory is closed to others of its own user. A real process: it stays so for good."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.cli import deliver as command
from worker.cli import invoke
from worker.delivery.deliver import deliver
from worker.pool.privacy import DUMPABLE, PR_GET_DUMPABLE, PR_SET_DUMPABLE

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


WHILE = """
import ctypes
from worker.pool.privacy import private_memory
PR_GET_DUMPABLE = 3
seen = [ctypes.CDLL(None).prctl(PR_GET_DUMPABLE)]
with private_memory():
    seen.append(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))
print(*seen, ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))
"""


def test_a_process_may_keep_its_memory_private_for_a_while() -> None:
    done = subprocess.run([sys.executable, "-c", WHILE], capture_output=True, check=True, text=True)
    assert done.stdout == "1 0 1\n"


def test_a_delivery_by_hand_keeps_its_memory_private(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []
    # A test that has changed its user for a moment has made this process private.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, DUMPABLE, 0, 0, 0)

    async def watched(*arguments: Any) -> Any:
        seen.append(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE))
        return await deliver(*arguments)

    monkeypatch.setattr(command, "deliver", watched)
    (tmp_path / "main.cf").touch()
    (tmp_path / "message").write_text("Subject: x\n\nx\n")
    words = ["deliver", "-c", str(tmp_path / "main.cf"), "--sender", "a@from.example"]
    words += ["--nexthop", f"unix:{tmp_path}/nobody", "--protocol", "lmtp"]
    words += ["--recipient", "b@to.example", str(tmp_path / "message")]
    assert invoke(words) == os.EX_TEMPFAIL
    assert seen == [0]
    assert ctypes.CDLL(None).prctl(PR_GET_DUMPABLE) == 1
