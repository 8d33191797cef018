"""kill -9 of workers, cache, queue process or all, 30 times while 5,000 messages go to sinks.

What must hold is checked whenever the queue process dies, and for every message:

- Accepted (submit() was answered, so it is on disk) and gone from the queue: a sink has it.
- Taken by a sink and still in the queue, so that it will be sent again: the queue has marked every
  one of those attempts as in doubt. There is no other duplicate.

Between two deaths of single processes the node goes on: the next death waits until the sinks have
taken more. At the end there are as many processes and descriptors as there were at the start.

Moments are seeded, and counted in messages that the sinks took, not in time. The sinks live in this
process: they record what they took before they answer, and can kill between the two.
"""

import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import trio
from trio.testing import trio_test

from bench.sink.record import Received
from bench.sink.sink import Sink
from protocol.request import Recipient
from tests.integration.node import LIMIT, STARTED, Node, open_sink, port_of
from worker.queue.client import connect_submit
from worker.queue.records import Submission
from worker.queue.schema import DATABASE
from worker.queue.sqlite import open_store
from worker.queue.store import StoreError

QUEUED_BEFORE = 2_500
SUBMITTED_MEANWHILE = 2_500
SUBMITTERS = 10
WORKERS = 3
# What dies in each life of the node, in this order: some processes, and last the queue process.
LIVES = (
    *[("all",), ("queue",), ("early",), ("worker", "all"), ("cache", "queue")],
    *[("worker", "cache", "worker", "queue"), ("early",), ("worker", "worker", "all")],
    *[("cache", "worker", "queue"), ("worker", "cache", "all"), ("worker", "worker", "queue")],
    *[("early",), ("worker", "all")],
)
LAST = ("worker", "cache", "worker")  # in the life that ends in good order
READY = "is ready, process"
KILLS = sum(map(len, LIVES)) + len(LAST)
INTERRUPTED = re.compile(r"to=<([^>]+)>.* status=deferred \(delivery interrupted \(")
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

    def __init__(self, node: Node) -> None:
        self._node = node
        self._database = node.queue_directory / DATABASE
        self.accepted: set[str] = set()
        self.arrived: Counter[str] = Counter()
        # Attempts in doubt of each recipient: what the queue said when it was last looked at, and
        # what the log has said since.
        self._doubts: Counter[str] = Counter()
        self._lines = 0  # of the log, already read

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
        """Attempts that were marked, of all recipients."""
        return self._doubts.total()

    def check(self, scratch: Path) -> int:
        """The queue process is dead: compare. Returns how many messages are queued."""
        for line in self._node.log[self._lines :]:
            if found := INTERRUPTED.search(line):
                self._doubts[found[1]] += 1
        self._lines = len(self._node.log)
        queued = self._read(scratch)
        for recipient, doubts in queued.items():
            arrived = self.arrived[recipient]
            assert arrived <= doubts, f"{recipient} came {arrived} times, {doubts} marked in doubt"
            self._doubts[recipient] = doubts
        for recipient in (self.accepted | self.arrived.keys()) - queued.keys():
            arrived = self.arrived[recipient]
            assert arrived, f"{recipient} is lost"
            allowed = 1 + self._doubts[recipient]
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
                database.execute(
                    "SELECT address, doubts + (begun = 1) FROM recipient WHERE settled = 0"
                )
            )


class Killer:
    """Kills processes of the node when the sinks have taken a number of messages more."""

    def __init__(self, node: Node, ledger: Ledger, rng: random.Random) -> None:
        self._node = node
        self._ledger = ledger
        self._rng = rng
        self._victim = ""
        self._left = 0  # messages until the next death; 0: none is planned
        self._steps = 0
        self._reached = trio.Event()
        self.killed: Counter[str] = Counter()

    async def kill(self, victim: str) -> None:
        """The next death; returns when it has come. The node must go on until then."""
        self._victim = victim
        # Before the sink answers; or a little later, when other sessions have gone on.
        self._steps = self._rng.choice((0, self._rng.randrange(1, 300)))
        self._reached = trio.Event()
        self._left = self._rng.randrange(20, 140)
        with trio.fail_after(LIMIT):
            await self._reached.wait()
        if self._steps:
            for _ in range(self._steps):
                await trio.lowlevel.checkpoint()
            self._strike()

    def take(self, received: Received) -> None:
        """What sinks do with a message."""
        self._ledger.arrive(received)
        if self._left:
            self._left -= 1
            if not self._left:
                if not self._steps:
                    self._strike()
                self._reached.set()

    def _strike(self) -> None:
        match self._victim:
            case "all":
                self._node.kill_now()
            case "queue":
                os.kill(self._node.process.pid, signal.SIGKILL)
            case "worker":
                os.kill(self._rng.choice(self._node.ready_pids()), signal.SIGKILL)
            case "cache":
                (cache,) = self._node.cache_pids()
                os.kill(cache, signal.SIGKILL)
        self.killed[self._victim] += 1


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
                await store.submit(message, spool, time.time())
                ledger.accepted.add(message.recipients[0].address)

        for _ in range(100):
            nursery.start_soon(submit)


async def live_and_die(
    node: Node, killer: Killer, submitters: Submitters, victims: Sequence[str]
) -> None:
    """One life of the node, and its deaths; the last of them is the queue process's."""
    await node.spawn()
    if victims == ("early",):
        await node.wait_for(".", len(node.log) + 1)
        await node.kill()
        killer.killed["early"] += 1
        return
    await node.wait_for(STARTED, node.count(STARTED) + 1)
    submitters.up.set()
    await suffer(node, killer, victims)
    await node.wait_until_ended()
    submitters.up = trio.Event()


async def suffer(node: Node, killer: Killer, victims: Sequence[str]) -> None:
    """Let one after the other die, while the log is read."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.follow)
        for victim in victims:
            await killer.kill(victim)
        nursery.cancel_scope.cancel()


async def drain(node: Node) -> None:
    """Return when the queue of a running node is empty."""
    while True:
        removed = node.count(": removed$")
        if not await node.listed():
            return
        await node.wait_for(": removed$", removed + 1)


async def possessions(node: Node) -> tuple[int, int]:
    """How many processes a quiet node has, and how many files its queue process has open."""
    while len(node.ready_pids()) < WORKERS:
        await node.wait_for(READY, node.count(READY) + 1)
    return len(node.children()), open_files(node.process.pid)


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def session_members(session: int) -> set[int]:
    """Processes of the session that a node begins."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.add(int(path.parent.name))
    return found


@trio_test
async def test_s178_kill_9_loses_nothing_and_doubles_only_what_was_in_doubt(tmp_path: Path) -> None:
    node = Node(tmp_path)
    ledger = Ledger(node)
    killer = Killer(node, ledger, random.Random(9))
    submitters = Submitters(node.queue_directory, ledger, QUEUED_BEFORE)
    async with trio.open_nursery() as nursery:
        sinks = [await open_sink(nursery, killer.take) for _ in range(DESTINATIONS)]
        for sink in sinks:
            sink.keep = False
        node.configure(configuration(sinks))
        try:
            await node.start()
            at_start = await possessions(node)
            await node.stop()
            await fill(node.queue_directory, ledger)
            async with trio.open_nursery() as submitting:
                submitting.start_soon(submitters.run)
                for victims in LIVES:
                    await live_and_die(node, killer, submitters, victims)
                    assert ledger.check(tmp_path), "all was delivered before the last death"
                await node.start()
                submitters.up.set()
                await suffer(node, killer, LAST)
            await drain(node)
            assert await possessions(node) == at_start
            assert await node.stop() == 0
        finally:
            await node.abandon()
        nursery.cancel_scope.cancel()
    assert not any(map(session_members, node.sessions))
    assert ledger.check(tmp_path) == 0
    assert len(ledger.accepted) >= QUEUED_BEFORE + SUBMITTED_MEANWHILE
    assert killer.killed.total() == KILLS
    assert not node.errors()
    logged = node.count("was under way when the queue was closed -- message may be sent more than")
    print(  # noqa: T201 - the figure that is asked for
        f"{len(ledger.accepted)} messages accepted, killed: {dict(killer.killed)}: none lost, "
        f"{ledger.duplicates} duplicates, {ledger.in_doubt} attempts in doubt, {logged} logged so"
    )


def configuration(sinks: Sequence[Sink]) -> dict[str, str]:
    """Each domain has a sink of its own."""
    routes = (
        f"d{number}.example=smtp:[127.0.0.1]:{port_of(sink)}" for number, sink in enumerate(sinks)
    )
    return {
        "transport_maps": f"inline:{{ {', '.join(routes)} }}",
        "postrio_worker_processes": str(WORKERS),
        "connection_cache_service_name": "scache",
    }
