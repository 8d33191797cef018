"""Which worker gets a slot. Virtual clock, no process; the sockets are real."""

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from tests.worker.fake_process import FakeProcess, FakeProcesses
from worker.pool.child import READY, STOPPING
from worker.pool.workers import WARM_FOR, CountedSlot, Workers, worker_command
from worker.queue.slot import DestinationKey, WorkerLost


def key(name: str) -> DestinationKey:
    """A destination."""
    return ("smtp", name, "")


class World:
    """Some workers; `counts` is how many slots each of them has."""

    def __init__(self, directory: Path, count: int) -> None:
        self.processes = FakeProcesses()
        self.refusals: list[bool] = []  # one, if no worker can live with the configuration
        self.occupied: dict[int, float] = {}  # process id -> seconds; see occupancy.py
        self.workers = Workers(
            directory,
            count,
            ["postrio", "worker"],
            lambda _: None,
            start=self.processes,
            occupied=self.occupied.get,
            refused=lambda: self.refusals.append(True),
        )
        self.slots: list[CountedSlot] = []

    async def open(self, name: str = "one.example") -> int:
        """Open a slot; the number of the worker that got it."""
        before = self.counts
        self.slots.append(await self.workers.open_slot(key(name)))
        (number,) = (n for n, (a, b) in enumerate(zip(before, self.counts, strict=True)) if a != b)
        return number

    async def close(self) -> None:
        """Close the slot that was opened last."""
        await self.slots.pop().aclose()

    def process(self, number: int) -> FakeProcess:
        """The latest life of a worker."""
        (*_, latest) = (p for p in self.processes.started if p.path.name == f"worker.{number}")
        return latest

    @property
    def counts(self) -> list[int]:
        return [worker.open_slots for worker in self.workers._workers]


@asynccontextmanager
async def some_workers(directory: Path, count: int) -> AsyncIterator[World]:
    """They run, and end with the block."""
    world = World(directory, count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.workers.run)
        await wait_all_tasks_blocked()
        yield world
        while world.slots:
            await world.close()
        world.workers.stop()
    assert not any(world.counts)


@trio_test
async def test_slots_are_spread_evenly(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with some_workers(tmp_path, 3) as world:
        for number in range(30):
            await world.open(f"d{number}.example")
        assert world.counts == [10, 10, 10]


@trio_test
async def test_the_first_slots_wait_a_moment_for_all_workers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    for late, counts in ((1.0, [5, 5]), (30.0, [10, 0])):
        world = World(tmp_path, 2)
        world.processes.ready = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.workers.run)
            await wait_all_tasks_blocked()
            world.process(0).say(READY)

            async def open_one(name: str, world: World = world) -> None:
                world.slots.append(await world.workers.open_slot(key(name)))

            for number in range(10):
                nursery.start_soon(open_one, f"d{number}.example")
            await trio.sleep(late)
            world.process(1).say(READY)
            await wait_all_tasks_blocked()
            assert world.counts == counts
            for slot in world.slots:
                await slot.aclose()
            world.workers.stop()


@trio_test
async def test_a_dead_worker_gets_no_slot_while_others_live_and_gets_some_when_it_is_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        for _ in range(2):  # the second end is followed by a pause of a second
            world.process(1).end(-9)
            await wait_all_tasks_blocked()
        assert [await world.open() for _ in range(6)] == [0] * 6
        await trio.sleep(1.0)
        await wait_all_tasks_blocked()
        assert [await world.open() for _ in range(6)] == [1] * 6


@trio_test
async def test_a_worker_that_has_said_that_it_ends_gets_no_slot(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        world.process(0).say(STOPPING)
        await wait_all_tasks_blocked()
        assert [await world.open() for _ in range(3)] == [1] * 3


@trio_test
async def test_a_worker_whose_socket_was_removed_is_passed_over(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        await world.open()
        await world.close()  # warm is the one that will not be reached
        (tmp_path / "worker.0").unlink()
        assert [await world.open() for _ in range(4)] == [1] * 4
        (tmp_path / "worker.1").unlink()
        with pytest.raises(WorkerLost, match="no worker listens on worker"):
            await world.open()
        assert world.counts == [0, 4]


def test_what_lies_in_the_current_directory_is_not_the_program(tmp_path: Path) -> None:
    # The starter of a jailed node does this as root, and the directory may be anybody's.
    for name in ("worker", "trio", "click"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(99)")
    command = worker_command(["--help"])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0


@trio_test
async def test_slots_wait_as_long_as_no_worker_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 1) as world:
        world.processes.ready = False
        world.process(0).end(-9)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.open)
            await trio.sleep(10_000.0)
            assert not world.slots
            world.process(0).say(READY)
        assert world.counts == [1]


@trio_test
async def test_slots_that_wait_are_told_when_we_stop(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 1) as world:
        world.processes.ready = False
        world.process(0).end(-9)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(WorkerLost, match="none will be started"):
                    await world.workers.open_slot(key("one.example"))

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            world.workers.stop()


@trio_test
async def test_a_destination_goes_back_to_the_worker_that_served_it_a_moment_ago(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 3) as world:
        await world.open("other.example")
        await world.open("another.example")
        assert await world.open("warm.example") == 2
        await world.close()
        await world.open("busy.example")  # there is a worker with fewer slots now, or as few
        await trio.sleep(WARM_FOR)
        assert await world.open("warm.example") == 2
        await world.close()
        await trio.sleep(WARM_FOR + 0.1)
        assert await world.open("warm.example") == 0


@trio_test
async def test_warmth_does_not_count_where_a_worker_is_clearly_busier_or_gone(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        assert await world.open("warm.example") == 0
        held = world.slots.pop()
        await held.aclose()
        for _ in range(3):  # a slot for the same destination prefers the same worker
            assert await world.open("warm.example") == 0
        assert await world.open("warm.example") == 1  # three are clearly more than none
        await world.close()
        world.process(0).say(STOPPING)
        await wait_all_tasks_blocked()
        assert await world.open("warm.example") == 1


@trio_test
async def test_what_is_remembered_of_destinations_is_what_ended_in_the_last_seconds(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        for number in range(1000):
            await world.open(f"d{number}.example")
            await world.close()
            await trio.sleep(0.1)
        assert len(world.workers._warm) == pytest.approx(WARM_FOR / 0.1, abs=2)


@trio_test
async def test_a_slot_is_misplaced_where_another_worker_has_clearly_less_to_do(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        world.process(1).end(-9)
        world.processes.ready = False
        await wait_all_tasks_blocked()
        for number in range(3):
            await world.open(f"d{number}.example")
        assert not world.slots[0].misplaced  # there is no other place
        world.process(1).say(READY)
        await wait_all_tasks_blocked()
        assert all(slot.misplaced for slot in world.slots)
        await world.close()
        assert not any(slot.misplaced for slot in world.slots)
        world.process(0).say(STOPPING)
        await wait_all_tasks_blocked()
        assert world.slots[0].misplaced


@trio_test
async def test_without_a_descriptor_for_a_slot_no_worker_is_reached_and_none_is_counted(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with some_workers(tmp_path, 1) as world:

        def refuse(*_: object) -> trio.socket.SocketType:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(trio.socket, "socket", refuse)
            with pytest.raises(WorkerLost, match="Too many open files"):
                await world.workers.open_slot(key("one.example"))
        assert world.counts == [0]


# --- how much time they have ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "shares", "saturated"),
    [
        (0.0, (1.0, 0.95), True),
        (0.0, (1.0, 0.5), False),  # one of them has time
        (0.0, (0.0, 0.0), False),
        (1.0, (0.0, 0.0), True),  # nothing can be handed to them
    ],
)
@trio_test
async def test_what_can_be_done_is_being_done(
    autojump_clock: MockClock,
    tmp_path: Path,
    own: float,
    shares: tuple[float, float],
    saturated: bool,
) -> None:
    async with some_workers(tmp_path, 2) as world:
        pids = (os.getpid(), world.process(0).pid, world.process(1).pid)
        world.occupied.update(dict.fromkeys(pids, 0.0))
        assert not world.workers.saturated()
        await trio.sleep(1.0)
        world.occupied.update(zip(pids, (own, *shares), strict=True))
        assert world.workers.saturated() == saturated


@trio_test
async def test_no_slot_has_to_move_where_no_worker_has_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with some_workers(tmp_path, 2) as world:
        await world.open("one.example")
        first = world.slots[0]
        await world.open("two.example")
        other = world.slots.pop()
        for number in range(10):  # at the first worker, by keeping the second out
            world.workers._workers[1].child.ready = False
            await world.open(f"d{number}.example")
        world.workers._workers[1].child.ready = True
        await other.aclose()
        pids = (world.process(0).pid, world.process(1).pid)
        world.occupied.update(dict.fromkeys(pids, 0.0))
        said = [first.misplaced]
        await trio.sleep(1.0)
        world.occupied.update(dict.fromkeys(pids, 1.0))
        said.append(first.misplaced)
        await trio.sleep(1.0)
        said.append(first.misplaced)
        assert said == [True, False, True]
        await trio.sleep(1.0)
        world.occupied.update(dict.fromkeys(pids, 2.0))
        world.workers._workers[0].child.ready = False  # it takes no more: busy or not, it ends
        assert first.misplaced


@pytest.mark.parametrize(
    ("ends", "refusals"),
    [((78, 78), [True]), ((78, 1), []), ((78, None), []), ((None, None), []), ((1, 1), [])],
)
@trio_test
async def test_a_configuration_is_refused_by_all_workers_or_not_at_all(
    autojump_clock: MockClock, tmp_path: Path, ends: Sequence[int | None], refusals: list[bool]
) -> None:
    """`ends`: with which status each first life ends; None: it is ready."""
    world = World(tmp_path, len(ends))
    world.processes.ready = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.workers.run)
        await wait_all_tasks_blocked()
        for number, status in enumerate(ends):
            if status is None:
                world.process(number).say(READY)
            else:
                world.process(number).end(status)
        await trio.sleep(10.0)
        for process in world.processes.started:  # later lives count for nothing
            process.end(78)
        await trio.sleep(10.0)
        assert world.refusals == refusals
        world.workers.stop()


@trio_test
async def test_workers_that_are_stopped_while_they_start_refuse_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, 2)
    world.processes.ready = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.workers.run)
        world.workers.stop()  # none has been started yet
    assert not world.refusals
