"""A real process whose event loop is blocked: what it says, and how it ends.

The processes block themselves on purpose and run side by side; the time that passes is theirs.
"""

import os
import subprocess
import sys
from pathlib import Path

import trio
from trio.testing import trio_test

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds; a test that needs them has failed

SCRIPT = """
import re, sys, time
import trio
from worker.pool import watchdog
from worker.status.sinks import DescriptorSink, LogSettings, Stamp
from worker.status.writer import LogWriter

def compute_for_ever():
    while True:
        pass

def backtrack_for_ever():
    re.match("(a+)+$", "a" * 60 + "b")

def pause_twice():
    for _ in range(2):
        time.sleep(2.9)
        yield

async def wait_for_nothing():
    await trio.sleep_forever()

async def main():
    writer = LogWriter(DescriptorSink(1, Stamp("postfix")), LogSettings())
    dog = watchdog.Watchdog(float(sys.argv[2]), writer.write_through)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dog.run)
        for _ in range(3):
            nursery.start_soon(wait_for_nothing)
        await trio.sleep(0.1)
        match sys.argv[1]:
            case "compute":
                compute_for_ever()
            case "backtrack":
                backtrack_for_ever()
            case "pause":
                for _ in pause_twice():
                    await trio.sleep(1.5)
                nursery.cancel_scope.cancel()

watchdog.WARN_AFTER = 1.0
watchdog.DUMP_LIMIT = 2.0
trio.run(main)
"""


@trio_test
async def test_s165_a_blocked_loop_is_reported_once_then_dumped_and_its_process_ends(
    tmp_path: Path,
) -> None:
    script = tmp_path / "blocked.py"
    script.write_text(SCRIPT)
    ended: dict[str, subprocess.CompletedProcess[bytes]] = {}

    async def run(how: str, limit: str) -> None:
        ended[how] = await trio.run_process(
            [sys.executable, str(script), how, limit],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "compute", "1")  # the shortest that is obeyed is three
            nursery.start_soon(run, "backtrack", "1")
            nursery.start_soon(run, "pause", "60")
    # The loop's thread computes: other threads run, and say everything.
    computing = ended["compute"]
    said = computing.stdout.decode()
    assert computing.returncode == os.EX_SOFTWARE, said
    first, second, *stacks = said.splitlines()
    assert "the event loop has not turned for 1 s: compute_for_ever (" in first
    assert "for 3 s (daemon_timeout): the process ends; its stacks:" in second
    assert any("watchdog: thread MainThread: compute_for_ever (" in line for line in stacks)
    assert any("3 x task __main__.wait_for_nothing: " in line for line in stacks)
    # Nothing else can run: the interpreter's own watcher has the last word.
    assert ended["backtrack"].returncode == 1
    assert b"backtrack_for_ever" in ended["backtrack"].stderr
    # It came back, both times.
    assert ended["pause"].returncode == 0
    assert ended["pause"].stdout.decode().count("has not turned for 1 s: pause_twice (") == 2
