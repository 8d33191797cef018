"""kill -9 of queue process and worker at 20 moments while 2,000 messages go to recording sinks.

What must hold is checked with every death, and for every message:

- Accepted (submit() was answered, so it is on disk) and gone from the queue: a sink has it.
- Taken by a sink and still in the queue, so that it will be sent again: the queue has marked every
  one of those attempts as in doubt. There is no other duplicate.

Moments are seeded, and counted in messages that the sinks took, not in time. The sinks live in this
process: they record what they took before they answer, and can kill between the two.
"""

import itertools
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import trio
from trio.testing import trio_test

from bench.sink_session import Received
from protocol.request import Recipient
from tests.integration.node import STARTED, Node, open_sink, port_of
from worker.queue.client import connect_submit
from worker.queue.records import Submission
from worker.queue.schema import DATABASE
from worker.queue.sqlite import open_store
from worker.queue.store import StoreError

QUEUED_BEFORE = 1_000
SUBMITTED_MEANWHILE = 1_000
SUBMITTERS = 10
KILLS = 20
DESTINATIONS = 10
SIZES = (300, 1_000, 4_000, 100_000)  # octets; the largest is a file of the queue


def submission(number: int) -> Submission:
    """The envelope of a message; its recipient is its name."""
    recipient = Recipient(address=f"m{number}@d{number % DESTINATIONS}.example")
    return Submission(sender="s@from.example", recipients=(recipient,))


async def content(number: int) -> AsyncIterator[bytes]:
    """The content of a message: every hundredth is large."""
    size = SIZES[3] if number % 100 == 0 else SIZES[number % 3]
    head = f"Message-ID: <{number}@from.example>\r\nSubject: {number}\r\n\r\n".encode()
    yield head + b"x" * 70 + b"\r\n" + b"y\r\n" * ((size - len(head)) // 3)


class Ledger:
    """What was accepted, what arrived, and what the queue says between two lives."""

    def __init__(self, queue_directory: Path) -> None:
        self._database = queue_directory / DATABASE
        self.accepted: set[str] = set()
        self.arrived: Counter[str] = Counter()
        self._doubts: dict[str, int] = {}  # of each recipient, when it was last seen in the queue

    def arrive(self, received: Received) -> None:
        """A sink has taken a message."""
        (recipient,) = received.recipients
        assert received.message_id == f"<{recipient[1:].partition('@')[0]}@from.example>"
        self.arrived[recipient] += 1

    @property
    def duplicates(self) -> int:
        """Arrivals beyond the first."""
        return self.arrived.total() - len(self.arrived)

    @property
    def in_doubt(self) -> int:
        """Attempts that the queue has marked, of all recipients."""
        return sum(self._doubts.values())

    def check(self, scratch: Path) -> int:
        """The queue process is dead: compare. Returns how many messages are queued."""
        queued = self._read(scratch)
        for recipient, doubts in queued.items():
            arrived = self.arrived[recipient]
            assert arrived <= doubts, f"{recipient} came {arrived} times, {doubts} marked in doubt"
        self._doubts |= queued
        for recipient in (self.accepted | self.arrived.keys()) - queued.keys():
            arrived = self.arrived[recipient]
            assert arrived, f"{recipient} is lost"
            allowed = 1 + self._doubts.get(recipient, 0)
            assert arrived <= allowed, f"{recipient} came {arrived} times, {allowed - 1} in doubt"
        return len(queued)

    def _read(self, scratch: Path) -> dict[str, int]:
        """Recipients in the queue, with the number of their attempts in doubt.

        From a copy: opening the queue would recover it, and that is the next life's to do.
        """
        copy = scratch / "copy"
        for ending in ("", "-wal"):
            source = Path(f"{self._database}{ending}")
            if source.exists():
                shutil.copyfile(source, f"{copy}{ending}")
            else:
                Path(f"{copy}{ending}").unlink(missing_ok=True)
        with closing(sqlite3.connect(copy)) as database:
            return dict(
                database.execute("SELECT address, doubts + begun FROM recipient WHERE settled = 0")
            )


class Killer:
    """Kills the node when the sinks have taken a number of messages more."""

    def __init__(self, ledger: Ledger, rng: random.Random) -> None:
        self._ledger = ledger
        self._rng = rng
        self._left = 0  # messages until the next death; 0: none is planned
        self._kill: Callable[[], None] = lambda: None
        self._reached = trio.Event()
        self._steps = 0

    def plan(self, kill: Callable[[], None]) -> None:
        """The next death."""
        self._kill = kill
        self._left = self._rng.randrange(20, 140)
        # Before the sink answers; or a little later, when other sessions have gone on.
        self._steps = self._rng.choice((0, self._rng.randrange(1, 300)))
        self._reached = trio.Event()

    def take(self, received: Received) -> None:
        """What sinks do with a message."""
        self._ledger.arrive(received)
        if self._left:
            self._left -= 1
            if not self._left and not self._steps:
                self._kill()
            elif not self._left:
                self._reached.set()

    async def kill_later(self) -> None:
        """Beside the node: kills it if the moment is one between two messages."""
        await self._reached.wait()
        for _ in range(self._steps):
            await trio.lowlevel.checkpoint()
        self._kill()


class Submitters:
    """Clients that submit while there is somebody to submit to."""

    def __init__(self, queue_directory: Path, ledger: Ledger, first: int) -> None:
        self._queue_directory = queue_directory
        self._ledger = ledger
        self._numbers = itertools.count(first)
        self._left = SUBMITTED_MEANWHILE
        self.up = trio.Event()  # a node is running; a new event for each life

    async def run(self) -> None:
        """Until all are accepted. Who gets no answer does not know, and sends another message."""
        async with trio.open_nursery() as nursery:
            for _ in range(SUBMITTERS):
                nursery.start_soon(self._submit)

    async def _submit(self) -> None:
        while self._left > 0:
            await self.up.wait()
            client = await connect_submit(self._queue_directory)
            if client is None:  # it has just died
                await trio.lowlevel.checkpoint()
                continue
            async with client:
                try:
                    while self._left > 0:
                        number = next(self._numbers)
                        message = submission(number)
                        await client.submit(message, content(number))
                        self._ledger.accepted.add(message.recipients[0].address)
                        self._left -= 1
                except StoreError:
                    continue


async def fill(queue_directory: Path, ledger: Ledger) -> None:
    """Queue the first messages, with nobody delivering."""
    numbers = iter(range(QUEUED_BEFORE))

    async with await open_store(queue_directory) as store, trio.open_nursery() as nursery:

        async def submit() -> None:
            for number in numbers:
                message, spool = submission(number), store.spool()
                async for block in content(number):
                    await spool.write(block)
                await store.submit(message, spool, 1_700_000_000.0)
                ledger.accepted.add(message.recipients[0].address)

        for _ in range(100):
            nursery.start_soon(submit)


async def live_and_die(node: Node, killer: Killer, submitters: Submitters, *, early: bool) -> None:
    """One life of the node: until the killer's moment, or (early) its first word."""
    await node.spawn()
    if early:
        await node.wait_for(".", len(node.log) + 1)
        await node.kill()
        return
    killer.plan(node.kill_now)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(killer.kill_later)
        await node.wait_for(STARTED, node.count(STARTED) + 1)
        submitters.up.set()
        await node.wait_until_ended()
        submitters.up = trio.Event()
        nursery.cancel_scope.cancel()


async def drain(node: Node) -> None:
    """Return when the queue of a running node is empty."""
    while True:
        removed = node.count(": removed$")
        if not await node.listed():
            return
        await node.wait_for(": removed$", removed + 1)


@trio_test
async def test_kill_9_loses_nothing_and_doubles_only_what_was_in_doubt(tmp_path: Path) -> None:
    rng = random.Random(9)
    node = Node(tmp_path)
    ledger = Ledger(node.queue_directory)
    killer = Killer(ledger, rng)
    submitters = Submitters(node.queue_directory, ledger, QUEUED_BEFORE)
    early = set(rng.sample(range(1, KILLS), 3))
    await fill(node.queue_directory, ledger)
    async with trio.open_nursery() as nursery:
        sinks = [await open_sink(nursery, killer.take) for _ in range(DESTINATIONS)]
        for sink in sinks:
            sink.keep = False
        routes = (
            f"d{number}.example=smtp:[127.0.0.1]:{port_of(sink)}"
            for number, sink in enumerate(sinks)
        )
        node.configure({"transport_maps": f"inline:{{ {', '.join(routes)} }}"})
        async with trio.open_nursery() as submitting:
            submitting.start_soon(submitters.run)
            for death in range(KILLS):
                await live_and_die(node, killer, submitters, early=death in early)
                assert ledger.check(tmp_path), "everything was delivered before the last death"
            await node.start()
            submitters.up.set()
        await drain(node)
        assert await node.stop() == 0
        nursery.cancel_scope.cancel()
    assert ledger.check(tmp_path) == 0
    assert len(ledger.accepted) >= QUEUED_BEFORE + SUBMITTED_MEANWHILE
    assert not node.errors()
    logged = node.count("was under way when the queue was closed -- message may be sent more than")
    print(  # noqa: T201 - the figure that is asked for
        f"{len(ledger.accepted)} messages accepted, {KILLS} times killed: none lost, "
        f"{ledger.duplicates} duplicates, {ledger.in_doubt} attempts in doubt, {logged} logged so"
    )
