"""A node on the virtual clock: store, scheduler and scripted slots, with seeded faults.

One seed is one run: the messages, what every server answers and when, dying workers, a failing
disk, crashes of the whole node and what operators do all come from one random.Random, and the
order of trio's tasks does not matter to what must hold:

- every recipient was sent, bounced, or is still queued; once, and when all heals, nothing is stuck;
- no recipient was accepted twice unless the store had marked it in doubt;
- every bounced recipient was reported, unless nobody is to be told;
- no content stays open, and no slot; no limit of concurrency was exceeded.

`pytest -k "seed-17-"` runs one seed again.
"""

from dataclasses import dataclass, field
from random import Random

import pytest
import trio
from trio.testing import MockClock

from protocol.request import DeliveryRequest, Notify, Recipient
from tests.worker.memory_store import MemoryStore
from tests.worker.scripted_slots import (
    BOUNCED,
    DEFERRED,
    SENT,
    Answer,
    ScriptedWorkers,
    site_failure,
)
from worker.queue.records import MessageState, Submission
from worker.queue.routing import Router
from worker.queue.scheduler import Scheduler
from worker.queue.settings import NoticeSettings, QueueSettings, TransportSettings
from worker.status.events import (
    Event,
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
    nobody_told: set[str] = field(default_factory=set)  # queue ids: NOTIFY says so
    deleted: set[str] = field(default_factory=set)


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
        queue_run_delay=random.choice([300.0, DAY, DAY, DAY]),
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
            return site_failure(delay=delay)
        if random.random() < self.deadly:
            return Answer(lost=True, accepted=random.random() < 0.5, delay=delay)
        if random.random() < self.defers * 0.5:
            return Answer(action=DEFERRED.action, dsn=DEFERRED.dsn, delay=delay)
        if random.random() < self.refuses * 0.5:
            return Answer(action=BOUNCED.action, dsn=BOUNCED.dsn, delay=delay)
        return Answer(delay=delay, session_kept=random.random() < 0.8)


async def life(world: World) -> None:
    """Submit, deliver, fail, crash, restart; at the end everything heals and time passes."""
    random = world.random
    for _ in range(random.randint(1, 4)):  # lives of the process
        async with trio.open_nursery() as nursery:
            scheduler = await start(world, nursery)
            for _ in range(random.randint(0, 8)):
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
        with trio.move_on_after(6 * DAY):
            while world.store.messages:  # noqa: ASYNC110 - nothing says when all is done
                await trio.sleep(HOUR)
        scheduler.stop()


async def start(world: World, nursery: trio.Nursery) -> Scheduler:
    """A scheduler at work on what the disk has."""
    scheduler = Scheduler(
        world.store, world.workers, world.settings, Router(), world.events.append, wall
    )
    nursery.start_soon(scheduler.run)
    await trio.lowlevel.checkpoint()
    return scheduler


def restart(world: World) -> None:
    """The next process opens the queue."""
    assert not world.store.open_contents, "content left open"
    assert not world.workers.open_slots, "slot left open"
    world.store = world.store.reopened()


def happening(world: World, scheduler: Scheduler) -> None:
    """One thing that happens to a queue."""
    random = world.random
    for _ in range(random.randint(0, 3)):
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
    if notify in {Notify.NEVER, Notify.SUCCESS}:
        world.nobody_told.add(queue_id)


def check(world: World) -> None:
    """The invariants."""
    store, workers = world.store, world.workers
    assert not [event for event in world.events if isinstance(event, UnexpectedError)]
    assert not store.open_contents
    assert not workers.open_slots
    assert not store.messages, "something is stuck"
    for key in world.submitted:
        queue_id, address = key
        ends = store.ends.get(key, [])
        if queue_id in world.deleted:
            continue
        assert len(ends) == 1, f"{address} of {queue_id} ended as {ends}"
        if ends == ["sent"]:
            assert workers.accepted[key], f"{address} of {queue_id} was never sent"
        elif ends == ["bounced"]:
            assert queue_id in world.nobody_told, f"nobody knows of {address} of {queue_id}"
        elif ends == ["finished"]:  # sent, or failed with nobody to be told
            known = workers.accepted[key] or queue_id in world.nobody_told
            assert known, f"nobody knows of {address} of {queue_id}"
        else:
            assert ends == ["reported"]
    for key, times in workers.accepted.items():
        assert times <= 1 + store.doubts[key], f"{key} was sent {times} times"
    limits = world.settings.transports["smtp"]
    ceiling = 1 if limits.rate_delay else limits.concurrency_limit
    if ceiling and limits.recipient_limit != 1:
        assert max(workers.busiest.values(), default=0) <= ceiling
    assert workers.most_slots <= world.settings.slot_limit


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed-{seed}-")
def test_s180_nothing_is_lost_and_nothing_silently_sent_twice(
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
