"""One queue drained by Postfix's qmgr(8) and by ours: who gets how many deliveries, and who waits.

A server answers no final dot until it is told to, so that each step shows how many deliveries are
under way; nothing here is timed. Who would open more deliveries than the other is seen by it, who
would open fewer makes the test wait in vain.
"""

import smtplib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test, wait_all_tasks_blocked

from bench.drain import NO_QMGR, QMGR, UNHURRIED, fill_postfix
from bench.postfix_instance import PostfixInstance
from bench.postrio_instance import fill_queue
from tests.integration.node import LIMIT, Node
from tests.integration.tls_peers import listening
from tests.worker.peer import Answer, Once, Peer, Phase

pytestmark = pytest.mark.peer("root", "postfix", "master", "smtpd", "smtp-source")

LIST = [f"u{number}@one.example" for number in range(120)]
# To the same destination, and to another one, in this order. Enough of them, since a slot of ours
# takes a few requests in advance.
LETTERS, OTHERS = 300, 3
FIRST, MOST = 5, 20  # initial_destination_concurrency, default_destination_concurrency_limit
LIST_LETTER = b"Subject: list\r\n\r\nx\r\n"


class Gate(Peer):
    """A server that answers no final dot before release()."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[trio.Event] = []
        self.open = False

    def answer(self, phase: Phase, argument: str, default: str) -> Answer:
        """See Peer."""
        said = super().answer(phase, argument, default)
        if phase is not Phase.DOT or self.open:
            return said
        event = trio.Event()
        self.waiting.append(event)
        self.note()
        return Once(event, said)

    def release(self) -> None:
        """Answer the oldest one."""
        self.waiting.pop(0).set()

    def release_all(self) -> None:
        """Answer everything, from now on, too."""
        self.open = True
        while self.waiting:
            self.release()


@dataclass(frozen=True, slots=True)
class Drained:
    """What the servers saw."""

    under_way: list[int]  # deliveries to one.example before each answer, from the first on
    transactions: list[int]  # recipients of each of the list's, sorted
    letters: int  # the others' messages that one.example took


Routes = dict[str, str]
Start = Callable[[Routes], AbstractAsyncContextManager[None]]


async def drain(start: Start) -> Drained:
    """The same queue, by whoever `start` starts with it; to be empty when that one has ended."""
    gate, other = Gate(), Peer()
    async with listening({"one.example": gate, "two.example": other}) as ports:
        routes = {domain: f"smtp:[127.0.0.1]:{port}" for domain, port in ports.items()}
        async with start(routes):
            under_way = []
            with trio.fail_after(LIMIT):
                # Though nothing moves at the first one, and its mail came before.
                await other.until(lambda: sum(link.dots for link in other.links) == OTHERS)
            for expected in (*range(FIRST, MOST), *[MOST] * 5):
                with trio.fail_after(LIMIT):
                    await gate.until(partial(at_least, gate, expected))
                under_way.append(len(gate.waiting))
                gate.release()
            gate.release_all()
        # All of it has left the queue; a task may still have to write down what it took.
        await wait_all_tasks_blocked()
    of_list = [message for message in gate.accepted if message.recipients[0] in LIST]
    return Drained(
        under_way=under_way,
        transactions=sorted(len(message.recipients) for message in of_list),
        letters=len(gate.accepted) - len(of_list),
    )


def at_least(gate: Gate, count: int) -> bool:
    """So many wait for an answer."""
    return len(gate.waiting) >= count


@asynccontextmanager
async def by_postfix(routes: Routes) -> AsyncIterator[None]:
    """A Postfix that is filled without a queue manager, and then gets one."""
    table = ", ".join(f"{{ {domain} = {route} }}" for domain, route in routes.items())
    main_cf = {**UNHURRIED, "transport_maps": f"inline:{{ {table} }}"}
    postfix = PostfixInstance(main_cf=main_cf, master_cf=[NO_QMGR])

    def begin() -> None:
        postfix.start()
        with smtplib.SMTP(postfix.host, postfix.port, timeout=LIMIT) as client:
            client.sendmail("load@source.example", LIST, LIST_LETTER)
        fill_postfix(postfix, LETTERS, ["one.example"], 1000)
        fill_postfix(postfix, OTHERS, ["two.example"], 1000)
        postfix.stop()
        postfix.configure(master_cf=[QMGR])
        postfix.start()

    try:
        await trio.to_thread.run_sync(begin)
        yield
        await trio.to_thread.run_sync(postfix.wait_until_drained, LIMIT)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(postfix.stop)
            postfix.remove()


@asynccontextmanager
async def by_us(directory: Path, routes: Routes) -> AsyncIterator[None]:
    """A node that is started with a full queue."""
    table = ", ".join(f"{domain}={route}" for domain, route in routes.items())
    node = Node(directory, {"transport_maps": f"inline:{{ {table} }}"})
    await node.send(LIST_LETTER, *LIST)
    await fill_queue(node.queue_directory, LETTERS, ["one.example"], 1000)
    await fill_queue(node.queue_directory, OTHERS, ["two.example"], 1000)
    async with node:
        yield
        await node.wait_for(": removed$", 1 + LETTERS + OTHERS)


@trio_test
async def test_s135_one_queue_is_drained_as_postfix_drains_it(tmp_path: Path) -> None:
    postfix = await drain(by_postfix)
    assert postfix == Drained(
        under_way=[*range(FIRST, MOST), *[MOST] * 5], transactions=[20, 50, 50], letters=LETTERS
    )
    assert await drain(partial(by_us, tmp_path)) == postfix
