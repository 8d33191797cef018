"""Large messages from a file, in a process of its own, and what they cost.

Answers for what each contender does for one message, as a program that uses it well would:

- postrio: slots that get a descriptor with each request, as in a worker process.
- aiosmtplib, smtplib: they take a message as a whole, so it is read as a whole; threads for
  smtplib.
- bare: blocks of the file to trio's own stream, without a look at what is in them: the floor. It
  reads in the event loop, which a slow disk would stall, and knows that no dot needs doubling.

Run by `scenarios/big.py`, as `python -m bench.big_loops NAME PORT COUNT SESSIONS PATH`; prints
JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from bench.engine_loops import (
    HOST,
    RECIPIENT,
    SENDER,
    LoopError,
    deliver_all,
    send_with_smtplib,
)
from bench.harness.costs import peak_memory
from worker.content import FileContent

BLOCK_SIZE: Final = 262_144  # octets that the bare loop reads and sends at a time

Loop = Callable[[int, int, int, Path], None]  # port, messages, sessions, the content's file


def postrio(port: int, count: int, sessions: int, path: Path) -> None:
    """Our delivery engine, without queue, cache or log."""

    def opened() -> FileContent:
        return FileContent(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    trio.run(deliver_all, port, count, sessions, path.stat().st_size, opened)


def aiosmtplib(port: int, count: int, sessions: int, path: Path) -> None:
    """The asyncio client of that name."""
    from aiosmtplib import SMTP  # of the tests' dependencies: not everybody has it

    numbers = iter(range(count))

    async def serve() -> None:
        async with SMTP(hostname=HOST, port=port, use_tls=False, start_tls=False) as client:
            for _ in numbers:
                await client.sendmail(SENDER, [RECIPIENT], await asyncio.to_thread(path.read_bytes))

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(sessions):
                group.create_task(serve())

    asyncio.run(run())


def smtplib_threads(port: int, count: int, sessions: int, path: Path) -> None:
    """The standard library's client, a thread for each session."""
    send_with_smtplib(port, count, sessions, path.read_bytes)


def bare(port: int, count: int, sessions: int, path: Path) -> None:
    """What no engine on trio can be much cheaper than, with the content in a file."""
    trio.run(_bare, port, count, sessions, path)


async def _bare(port: int, count: int, sessions: int, path: Path) -> None:
    numbers = iter(range(count))
    envelope = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()

    async def replies(stream: trio.SocketStream, lines: int) -> None:
        while lines:
            received = await stream.receive_some()
            if received[:1] not in (b"2", b"3"):
                raise LoopError(f"the server said {received!r}")
            lines -= received.count(b"\n")

    async def serve() -> None:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            await replies(stream, 1)
            await stream.send_all(b"HELO bench.example\r\n")
            await replies(stream, 1)
            for _ in numbers:
                await stream.send_all(envelope)
                await replies(stream, 3)
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    while block := os.read(file, BLOCK_SIZE):
                        await stream.send_all(block)
                finally:
                    os.close(file)
                await stream.send_all(b".\r\n")
                await replies(stream, 1)
            await stream.send_all(b"QUIT\r\n")

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(serve)


LOOPS: Final[Mapping[str, Loop]] = {
    "postrio": postrio,
    "aiosmtplib": aiosmtplib,
    "smtplib, threads": smtplib_threads,
    "bare trio loop": bare,
}


def main() -> None:
    """Run one loop; print what it took, imports not counted, and the largest resident memory."""
    name, port, count, sessions = sys.argv[1], *map(int, sys.argv[2:5])
    began, cpu = time.monotonic(), time.process_time()
    LOOPS[name](port, count, sessions, Path(sys.argv[5]))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    # Not getrusage(): its figure includes our parent, as it was when it started us.
    found = {"seconds": seconds, "cpu": cpu, "peak_memory": peak_memory(os.getpid())}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
