"""The other process of test_queue_files.py: `python -m` this module, then MODE and DIRECTORY.

It says on standard output what it did, one line each, in the moment that it is done.
"""

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import trio

from bench.harness.costs import peak_memory
from protocol.outcome import Action, RecipientOutcome
from protocol.request import Recipient
from worker.queue.client import submit
from worker.queue.records import Finish, QueuedMessage, Submission
from worker.queue.sqlite import SqliteStore, StoreSettings, open_store
from worker.queue.store import Settlement, StoreError, StoreFull
from worker.queue.writer import RetryDelays

NOW: Final = 1_800_000_000.0
SUBMISSION: Final = Submission(
    sender="a@example.com", recipients=(Recipient(address="b@example.org"),)
)
SUBMITTERS: Final = 8
LARGE: Final = 100_000_000  # octets of the large message
BLOCK: Final = 50_000


def say(*words: object) -> None:
    """One line, in one write: a killed process leaves no half of it."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def make_content(number: int) -> bytes:
    """A content that shows whether it is whole; every seventh is too large for the database."""
    body = (b"%019d\r\n" % number) * (5000 if number % 7 == 0 else 50)
    return hashlib.sha256(body).hexdigest().encode() + b"\r\n" + body


def is_whole(content: bytes) -> bool:
    """True for what make_content() made."""
    digest, _, body = content.partition(b"\r\n")
    return hashlib.sha256(body).hexdigest().encode() == digest


async def put(store: SqliteStore, content: bytes) -> str:
    """Submit one message."""
    spool = store.spool()
    try:
        await spool.write(content)
        return await store.submit(SUBMISSION, spool, NOW)
    finally:
        await spool.aclose()


async def send(store: SqliteStore, message: QueuedMessage) -> None:
    """Take one message through begin() and settle(), as sent."""
    [content] = await store.begin([(message.id, [one.key for one in message.recipients])])
    if content is not None:
        content.close()
    settlements = [
        Settlement(
            RecipientOutcome(recipient=one, action=Action.SENT, dsn="2.0.0", reason="250 ok")
        )
        for one in message.recipients
    ]
    await store.settle(message.id, settlements, Finish(message_id=message.id))


async def work(directory: Path) -> None:
    """Submit and deliver for ever. Says `queued ID`, `sending ID`, `sent ID`, `doubt ID`."""
    async with await open_store(directory) as store:
        for queue_id, _ in await store.in_doubt():
            say("doubt", queue_id)
        async with trio.open_nursery() as nursery:
            for number in range(SUBMITTERS):
                nursery.start_soon(_submit_for_ever, store, number)
            nursery.start_soon(_deliver_for_ever, store)


async def _submit_for_ever(store: SqliteStore, number: int) -> None:
    while True:
        say("queued", await put(store, make_content(number)))
        number += SUBMITTERS


async def _deliver_for_ever(store: SqliteStore) -> None:
    async def deliver(message: QueuedMessage) -> None:
        say("sending", message.queue_id)
        await send(store, message)
        say("sent", message.queue_id)

    while True:
        async with trio.open_nursery() as nursery:
            for message in await store.claim(NOW, 5):
                nursery.start_soon(deliver, message)


async def fill(directory: Path) -> None:
    """Fill the disk, then empty the queue, then see whether mail is accepted again."""
    settings = StoreSettings(message_size_limit=400_000)
    delays = RetryDelays(first=0.01, longest=0.01)
    async with await open_store(
        directory, settings=settings, retry_delays=delays, warn=lambda text: say("warning", text)
    ) as store:
        await _until_full(store, b"x" * 50_000)
        await _until_full(store, b"x" * 300_000)
        while messages := await store.claim(NOW, 10):
            for message in messages:
                await send(store, message)
                say("sent", message.queue_id)
        say("queued", await put(store, b"again"))


async def _until_full(store: SqliteStore, content: bytes) -> None:
    try:
        while True:
            say("queued", await put(store, content))
    except StoreFull as exc:
        say("full", exc)


async def read_only(directory: Path) -> None:
    """Open a queue on a read-only disk."""
    try:
        await (await open_store(directory)).aclose()
    except StoreError as exc:
        say("error", exc)


async def large(directory: Path) -> None:
    """A large message goes in and comes out; says how much memory that took, in kilobytes."""

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(LARGE // BLOCK):
            yield b"0123456789abcdef\n" * (BLOCK // 17)

    settings = StoreSettings(message_size_limit=0)
    queue_id = await submit(directory, SUBMISSION, blocks(), settings=settings)
    async with await open_store(directory) as store:
        content = await store.read_content(queue_id)
        assert content is not None
        octets = 0
        try:
            async for block in content.blocks():
                octets += len(block)
        finally:
            content.close()
        [message] = await store.claim(2 * NOW, 1)
    say("octets", octets, message.size)
    # Not ru_maxrss: that of a child begins with what its parent had.
    say("memory", peak_memory(os.getpid()) // 1024)


def main() -> None:
    """Do what the first argument says in the directory that is the second."""
    mode, directory = sys.argv[1:]
    {
        "work": lambda: trio.run(work, Path(directory)),
        "fill": lambda: trio.run(fill, Path(directory)),
        "read-only": lambda: trio.run(read_only, Path(directory)),
        "large": lambda: trio.run(large, Path(directory)),
    }[mode]()


if __name__ == "__main__":
    main()
