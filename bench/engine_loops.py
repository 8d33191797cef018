"""One engine in a process of its own: messages from memory over reused sessions, and its cost.

Answers for what each contender does for one message, as a program that uses it well would:

- postrio: `deliver()` in slots that know their next request, as in a worker process.
- aiosmtplib, smtplib: one client for each session, its `sendmail()` in a loop; threads for smtplib.
- bare: two flights a message on trio's own streams and not a word more: the floor.

Run by `scenarios/engine.py`, as `python -m bench.engine_loops NAME PORT COUNT SESSIONS SIZE`;
prints JSON.
"""

import asyncio
import json
import random
import smtplib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from types import MappingProxyType
from typing import Final

import trio

from bench.load import message
from protocol.outcome import Action, DeliveryResult
from protocol.request import DeliveryRequest, Protocol, Recipient
from worker.config.config import Config
from worker.content import Content, InlineContent
from worker.delivery.serve import serve
from worker.delivery.slot import DeliverySlot
from worker.environment import make_environment

HOST: Final = "127.0.0.1"
SENDER: Final = "load@source.example"
RECIPIENT: Final = "user@d.example"

Loop = Callable[[int, int, int, bytes], None]  # port, messages, sessions, content


class LoopError(Exception):
    """A message was not taken: why."""


def postrio(port: int, count: int, sessions: int, content: bytes) -> None:
    """Our delivery engine, without queue, cache or log."""
    trio.run(deliver_all, port, count, sessions, len(content), lambda: InlineContent(content))


def bench_config(parameters: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Of an engine here: `parameters`, and what makes it independent of the machine."""
    settings = {"myhostname": "bench.example", "inet_protocols": "ipv4"}
    return Config.from_mapping({**settings, "inet_interfaces": "loopback-only", **parameters})


def bench_request(port: int, size: int) -> DeliveryRequest:
    """A message of `size` octets for a port of HOST."""
    return DeliveryRequest(
        queue_id="Q",
        transport="smtp",
        protocol=Protocol.SMTP,
        nexthop=f"[{HOST}]:{port}",
        sender=SENDER,
        recipients=(Recipient(address=RECIPIENT),),
        size=size,
    )


async def deliver_all(
    port: int,
    count: int,
    sessions: int,
    size: int,
    content: Callable[[], Content],
    parameters: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Deliver `count` messages of `size` octets from as many slots as there are sessions.

    `content` makes that of each. Raises LoopError.
    """
    config = bench_config(parameters)
    environment = make_environment(config, lambda _: None, time.time, random.Random())
    requests = repeat(bench_request(port, size), count)

    async def one_slot() -> None:
        source = _Source(requests, content)
        slot = DeliverySlot(source.upcoming)
        await serve(source, slot, lambda: environment)
        await slot.release()

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(one_slot)


class _Source:
    """Requests of one slot: the next one is always there, until there are no more."""

    def __init__(self, requests: Iterator[DeliveryRequest], content: Callable[[], Content]) -> None:
        self._requests = requests
        self._content = content
        self._upcoming = next(requests, None)

    async def wait(self) -> bool:
        return self._upcoming is not None

    def upcoming(self) -> DeliveryRequest | None:
        return self._upcoming

    def take_upcoming(self) -> tuple[DeliveryRequest, Content]:
        request = self._upcoming
        assert request is not None
        self._upcoming = next(self._requests, None)
        return request, self._content()

    def put_result(self, result: DeliveryResult) -> bool:
        if result.outcomes[0].action is not Action.SENT:
            raise LoopError(result.outcomes[0].reason)
        return True

    async def flush(self) -> None:
        """There is never anything left to send."""


def aiosmtplib(port: int, count: int, sessions: int, content: bytes) -> None:
    """The asyncio client of that name."""
    from aiosmtplib import SMTP  # of the tests' dependencies: not everybody has it

    numbers = iter(range(count))

    async def serve() -> None:
        async with SMTP(hostname=HOST, port=port, use_tls=False, start_tls=False) as client:
            for _ in numbers:
                await client.sendmail(SENDER, [RECIPIENT], content)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(sessions):
                group.create_task(serve())

    asyncio.run(run())


def smtplib_threads(port: int, count: int, sessions: int, content: bytes) -> None:
    """The standard library's client, a thread for each session."""
    send_with_smtplib(port, count, sessions, lambda: content)


def send_with_smtplib(port: int, count: int, sessions: int, read: Callable[[], bytes]) -> None:
    """As smtplib_threads(); `read` gives the content of each message."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def serve() -> None:
        with smtplib.SMTP(HOST, port) as client:
            while True:
                with lock:
                    if next(numbers, None) is None:
                        return
                client.sendmail(SENDER, [RECIPIENT], read())

    threads = [threading.Thread(target=serve) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def bare(port: int, count: int, sessions: int, content: bytes) -> None:
    """What no engine on trio can be cheaper than, with two flights a message."""
    trio.run(_bare, port, count, sessions, content)


async def _bare(port: int, count: int, sessions: int, content: bytes) -> None:
    numbers = iter(range(count))
    envelope = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
    data = content + b".\r\n"

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
                await stream.send_all(data)
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
    """Run one loop; print the seconds and the CPU seconds that it took, imports not counted."""
    name, port, count, sessions, size = sys.argv[1], *map(int, sys.argv[2:6])
    content = message(1, size)
    began, cpu = time.monotonic(), time.process_time()
    LOOPS[name](port, count, sessions, content)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
