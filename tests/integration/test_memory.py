"""A message of 100 MB goes through every process in blocks: none of them grows with it."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio
from trio.testing import trio_test

from bench.harness.costs import peak_memory
from bench.sink.record import Received
from tests.integration.corpus import HEADER
from tests.integration.node import LIMIT, SENDER, Node, open_sink, port_of

SIZE = 100_000_000  # octets
BOUND = 80_000_000  # octets of resident memory, at the peak, in each process
BLOCK = (b"x" * 76 + b"\r\n") * 10_000

# The command, and at its end the peak of its memory on standard error: when it has ended there is
# nobody left to ask.
MEASURED = """
import sys
from worker.cli import main
try:
    main(sys.argv[1:])
finally:
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print(line.split()[1], file=sys.stderr)
"""


async def large_message() -> AsyncIterator[bytes]:
    """A header and SIZE octets, in blocks."""
    yield HEADER
    for _ in range(SIZE // len(BLOCK) + 1):
        yield BLOCK


async def measured(*arguments: str) -> int:
    """Run `postrio ARGUMENTS` on the large message; the peak of its memory in octets."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", MEASURED, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        said = b""

        async def feed(stdin: trio.abc.SendStream) -> None:
            async with stdin:
                async for block in large_message():
                    await stdin.send_all(block)

        with trio.fail_after(LIMIT):
            nursery.start_soon(feed, process.stdin)
            async with process.stderr:
                async for data in process.stderr:
                    said += data
            status = await process.wait()
    assert status == 0, said
    return int(said.split()[-1]) * 1024


class Count:
    """A sink's customer that keeps nothing but sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, received: Received) -> None:
        """Note its size, and let go of its content."""
        self.sizes.append(received.size)
        received.content = None


@trio_test
async def test_100_mb_are_submitted_and_delivered_in_little_memory(tmp_path: Path) -> None:
    count = Count()
    async with trio.open_nursery() as nursery:
        sink = await open_sink(nursery, count)
        sink.keep = False
        main_cf = {
            "message_size_limit": "0",
            "default_transport": f"smtp:[127.0.0.1]:{port_of(sink)}",
        }
        async with Node(tmp_path, main_cf) as node:
            peaks = {
                "postrio send": await measured(
                    "send", "-c", str(node.main_cf), "--sender", SENDER, "a@to.example"
                )
            }
            await node.wait_for(": removed$")
            peaks["queue process"] = peak_memory(node.process.pid)
            (worker,) = node.worker_pids()
            peaks["worker"] = peak_memory(worker)
        peaks["postrio deliver"] = await measured(
            *("deliver", "--nexthop", f"[127.0.0.1]:{port_of(sink)}"),
            *("--sender", SENDER, "--recipient", "a@to.example"),
        )
        nursery.cancel_scope.cancel()
    assert len(count.sizes) == 2
    assert min(count.sizes) >= SIZE
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in peaks.items()})  # noqa: T201 - a figure
    assert max(peaks.values()) < BOUND, peaks
