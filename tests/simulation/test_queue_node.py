"""A node on the virtual clock: store, scheduler and scripted slots, with seeded faults.

One seed is one run: the messages, what every server answers and when, dying workers, a failing
disk, crashes of the whole node and what operators do all come from one random.Random, and the
order of trio's tasks does not matter to what must hold:

- every recipient was sent, bounced, discarded by a notice rule, or is still queued;
- no recipient was accepted twice unless the store had marked it in doubt;
- every bounced recipient was reported, unless nobody is to be told;
- no content stays open, and no slot.

`pytest -k "seed-17-"` runs one seed again.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest
import trio
from trio.testing import MockClock

from protocol.outcome import Action
from protocol.request import DeliveryRequest, Notify, Recipient
from tests.worker.memory_store import MemoryStore
from tests.worker.scripted_slots import BOUNCED, DEFERRED, SENT, Answer, ScriptedWorkers
from worker.queue.records import MessageState, Submission
from worker.queue.routing import Router
from worker.queue.scheduler import Scheduler
from worker.queue.settings import NoticeSettings, QueueSettings, TransportSettings
from worker.status.events import (
    DeliveryInDoubt,
    Event,
    MessageRemoved,
    RecipientSettled,
    UnexpectedError,
)

EPOCH = 1_700_000_000.0
HOUR, DAY = 3600.0, 86_400.0
SEEDS = 200


def wall() -> float:
    """Wall-clock seconds that go with the virtual clock."""
    return EPOCH + trio.current_time()


@dataclass(slots=True)
class World:
    """What survives a crash of the node: the disk, the servers, and what was written down."""

    random: Random
    store: MemoryStore
    workers: ScriptedWorkers
    settings: QueueSettings
    events: list[Event] = field(default_factory=list)
    submitted: set[tuple[str, str]] = field(default_factory=set)  # (queue id, address)
    nobody_told: set[str] = field(default_factory=set)  # queue ids: null sender
    doubts: Counter[tuple[str, str]] = field(default_factory=Counter)
    deleted: set[str] = field(default_factory=set)
    scheduler: Scheduler | None = None
    crashes: int = 0

    def emit(self, event: Event) -> None:
        """Write an event down; count the doubts that are told."""
        self.events.append(event)
        if isinstance(event, DeliveryInDoubt):
            self.doubts[event.queue_id, event.recipient] += 1
        elif isinstance(event, RecipientSettled) and event.outcome.in_doubt:
            self.doubts[event.queue_id, event.outcome.recipient.address] += 1


def make_world(seed: int) -> World:
    """Everything that a seed decides beforehand."""
    random = Random(seed)
    servers = {f"d{number}.example": server(random) for number in range(random.randint(1, 8))}

    def script(request: DeliveryRequest) -> Answer:
        return servers.get(request.nexthop, lambda _: SENT)(trio.current_time())

    limits = TransportSettings(
        initial_concurrency=random.randint(1, 5),
        concurrency_limit=random.choice([0, 1, 3, 20]),
        recipient_limit=random.choice([0, 1, 2, 50]),
        rate_delay=random.choice([0.0, 0.0, 0.0, 2.0]),
    )
    settings = QueueSettings(
        active_limit=random.choice([1, 5, 20_000]),
        recipient_limit=random.choice([3, 20_000]),
        slot_limit=random.choice([1, 3, 1000]),
        queue_lifetime=random.choice([0.0, HOUR, 5 * DAY]),
        bounce_lifetime=random.choice([0.0, HOUR, 5 * DAY]),
        delay_warning=random.choice([0.0, 600.0]),
        soft_bounce=random.random() < 0.05,
        notices=NoticeSettings(classes=frozenset(random.sample(["2bounce", "bounce", "delay"], 2))),
        transports={"smtp": limits},
    )
    store = MemoryStore(wall, commit_time=random.choice([0.0, 0.01, 0.5]))
    return World(random, store, ScriptedWorkers(script), settings)


def server(random: Random) -> "Server":
    """A server with a character."""
    return Server(
        Random(random.random()),
        down=(random.uniform(0, HOUR), random.uniform(0, 2 * HOUR)),
        refuses=random.choice([0.0, 0.1, 1.0]),
        defers=random.choice([0.0, 0.3, 1.0]),
        deadly=random.choice([0.0, 0.0, 0.1]),
        slow=random.choice([0.0, 0.1, 30.0]),
    )


@dataclass(slots=True)
class Server:
    """Answers a request, by chance and by the time."""

    random: Random
    down: tuple[float, float]  # from, for how long; seconds
    refuses: float
    defers: float
    deadly: float  # how often the worker dies
    slow: float

    def __call__(self, now: float) -> Answer:
        """What the next request comes to."""
        random = self.random
        delay = random.uniform(0, self.slow)
        start, length = self.down
        if start <= now < start + length:
            return down(delay)
        if random.random() < self.deadly:
            return Answer(lost=True, accepted=random.random() < 0.5, delay=delay)
        if random.random() < self.defers * 0.5:
            return Answer(action=DEFERRED.action, dsn=DEFERRED.dsn, delay=delay)
        if random.random() < self.refuses * 0.5:
            return Answer(action=BOUNCED.action, dsn=BOUNCED.dsn, delay=delay)
        return Answer(delay=delay, session_kept=random.random() < 0.8)


def down(delay: float) -> Answer:
    """The site does not answer."""
    from tests.worker.scripted_slots import site_failure

    return site_failure(delay=delay)


async def life(world: World) -> None:
    """Submit, deliver, fail, crash, restart; at the end everything heals and time passes."""
    random = world.random
    for _ in range(random.randint(1, 4)):  # lives of the process
        async with trio.open_nursery() as nursery:
            scheduler = await start(world, nursery)
            for _ in range(random.randint(0, 12)):
                happening(world, scheduler)
                await trio.sleep(random.choice([0.0, 0.05, 1.0, 400.0]))
            if random.random() < 0.3:
                scheduler.stop()
                await trio.sleep(20.0)
            nursery.cancel_scope.cancel()  # a crash, if it was not stopped
        restart(world)
    world.workers.script = lambda _: SENT
    world.store.trouble = 0
    async with trio.open_nursery() as nursery:
        scheduler = await start(world, nursery)
        await world.store.release(None, wall())
        scheduler.wake()
        await trio.sleep(6 * DAY)
        scheduler.stop()


async def start(world: World, nursery: trio.Nursery) -> Scheduler:
    """A scheduler at work on what the disk has."""
    world.scheduler = scheduler = Scheduler(
        world.store, world.workers, world.settings, Router(), world.emit, wall
    )
    nursery.start_soon(scheduler.run)
    await trio.lowlevel.checkpoint()
    return scheduler


def restart(world: World) -> None:
    """The next process opens the queue."""
    assert not world.store.open_contents, "content left open"
    assert not world.workers.open_slots, "slot left open"
    world.store = world.store.reopened()
    world.crashes += 1


def happening(world: World, scheduler: Scheduler) -> None:
    """One thing that happens to a queue."""
    random = world.random
    for _ in range(random.randint(0, 6)):
        submit(world)
    match random.randint(0, 12):
        case 0:
            world.store.trouble += random.randint(1, 6)
        case 1:
            world.workers.unreachable += random.randint(1, 80)
        case 2:
            for message in world.store.messages.values():
                if message.state is not MessageState.ACTIVE:
                    message.next_attempt = wall()
            scheduler.flush()
        case 3:
            scheduler.reload(world.settings, Router())
        case 4 if world.store.messages:
            message = random.choice(list(world.store.messages.values()))
            world.deleted.add(message.queue_id)
            del world.store.messages[message.id]
        case _:
            pass
    scheduler.wake()


def submit(world: World) -> None:
    """A new message, accepted."""
    random = world.random
    sender = random.choice(["", "me@here.example", "me@here.example", "you@d0.example"])
    notify = random.choice(
        [Notify.UNSPECIFIED, Notify.UNSPECIFIED, Notify.NEVER, Notify.SUCCESS, Notify.FAILURE]
    )
    recipients = tuple(
        Recipient(address=f"u{number}@d{random.randint(0, 9)}.example", notify=notify)
        for number in range(random.choice([1, 1, 1, 2, 7]))
    )
    submission = Submission(sender=sender, recipients=recipients, held=random.random() < 0.05)
    queue_id = world.store.put(submission, b"Subject: x\r\n\r\n", wall())
    world.submitted |= {(queue_id, recipient.address) for recipient in recipients}
    if not sender or notify in {Notify.NEVER, Notify.SUCCESS}:
        world.nobody_told.add(queue_id)


def check(world: World) -> None:
    """The invariants."""
    assert not [event for event in world.events if isinstance(event, UnexpectedError)]
    assert not world.store.open_contents
    assert not world.workers.open_slots
    left = {
        (message.queue_id, row.recipient.address)
        for message in world.store.messages.values()
        for row in message.rows.values()
    }
    ended: Counter[tuple[str, str]] = Counter()
    removed = {event.queue_id for event in world.events if isinstance(event, MessageRemoved)}
    for event in world.events:
        if isinstance(event, RecipientSettled) and event.outcome.action is not Action.DEFERRED:
            ended[event.queue_id, event.outcome.recipient.address] += 1
    for queue_id, address in world.submitted:
        if queue_id in world.deleted:
            continue
        known = (queue_id, address) in left or queue_id in removed or ended[queue_id, address]
        # Durable, but the node crashed before it could say so: then the servers know.
        known = known or bool(world.crashes)
        assert known, f"{address} of {queue_id} is lost"
    for key, times in world.workers.accepted.items():
        assert times <= 1 + world.doubts[key], f"{key} was sent {times} times"
    assert not left, "something is stuck"


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed-{seed}-")
def test_nothing_is_lost_and_nothing_silently_sent_twice(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.books.BOOKKEEPERS", 10)  # idle ones only cost time
    world: World | None = None

    async def main() -> None:
        nonlocal world
        world = make_world(seed)
        await life(world)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert world is not None
    check(world)
