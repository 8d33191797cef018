"""A supervised process: restarts, readiness, its socket, its end. Virtual clock, no process."""

import errno
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from tests.worker.fake_process import FakeProcess, FakeProcesses
from worker.pool.child import READY, RELOAD, STOPPING, Child
from worker.status.events import Event, Warned


class World:
    """A child with everything it says."""

    def __init__(self, directory: Path, processes: FakeProcesses) -> None:
        self.processes = processes
        self.events: list[Event] = []
        self.readiness: list[bool] = []
        self.child = Child(
            "worker process 0",
            directory / "worker.0",
            ["postrio", "worker"],
            self.events.append,
            start=processes,
            changed=lambda: self.readiness.append(self.child.ready),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Supervised; stopped at the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.child.supervise)
            await wait_all_tasks_blocked()
            yield
            self.child.stop()

    def texts(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]

    def connect(self) -> socket.socket:
        """A client at its socket."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(0)
        client.connect(str(self.child.path))
        return client


@trio_test
async def test_a_process_that_keeps_ending_is_restarted_at_once_then_ever_more_slowly(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses(life=0.5, status=78))
    async with world.running():
        await trio.sleep(20.0)
    gaps = [b - a for a, b in zip(world.processes.times, world.processes.times[1:], strict=False)]
    assert gaps == pytest.approx([0.5, 1.5, 2.5, 4.5, 8.5])
    assert "a crash loop" not in world.texts()[1]
    assert "ended with status 78, its end number 3 in 2 s: a crash loop" in world.texts()[2]


@pytest.mark.parametrize(
    ("status", "ready", "refused"), [(78, False, True), (78, True, False), (1, False, False)]
)
@trio_test
async def test_a_first_life_that_ends_because_of_the_configuration_is_known(
    autojump_clock: MockClock, tmp_path: Path, status: int, ready: bool, refused: bool
) -> None:
    processes = FakeProcesses(life=0.5, status=status)
    processes.ready = ready
    world = World(tmp_path, processes)
    async with world.running():
        assert world.child.fresh is not ready
        await trio.sleep(10.0)  # several lives
        assert world.child.refused is refused


@trio_test
async def test_a_process_that_cannot_be_started_is_tried_again_with_the_same_pauses(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    processes = FakeProcesses()
    processes.refuses = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    world = World(tmp_path, processes)
    async with world.running():
        await trio.sleep(4.0)
        processes.refuses = None
        await trio.sleep(10.0)
        assert world.child.ready
    assert processes.times == [0, 0, 1, 3, 7]
    assert "cannot be started: Resource temporarily unavailable" in world.texts()[0]


@trio_test
async def test_it_is_ready_from_when_it_says_so_until_it_stops_or_ends(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    processes = FakeProcesses()
    processes.ready = False
    world = World(tmp_path, processes)
    async with world.running():
        assert not world.child.ready
        for word, ready in ((READY, True), (STOPPING, False), (READY, True)):
            processes.started[0].say(word)
            await wait_all_tasks_blocked()
            assert world.child.ready is ready
        processes.started[0].end(-9)
        await wait_all_tasks_blocked()
        assert world.child.pid == processes.started[1].pid
        assert not world.child.ready
    assert world.readiness[-1] is False


@trio_test
async def test_who_connects_meanwhile_waits_for_a_quick_restart_and_is_turned_away_from_a_slow_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses())
    async with world.running():
        with world.connect() as early:
            world.processes.started[0].end(-9)  # the first time: at once
            await wait_all_tasks_blocked()
            listener = world.processes.started[1].listener
            listener.accept()[0].close()  # it is still there
            assert early.recv(1) == b""
        with world.connect() as late:
            with pytest.raises(BlockingIOError):
                late.recv(1)
            world.processes.started[1].end(-9)
            await wait_all_tasks_blocked()
            assert late.recv(1) == b""
        await trio.sleep(1.0)
        world.connect().close()  # the socket is open all the same


@trio_test
async def test_stop_ends_the_process_or_the_pause_and_removes_the_socket(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    for life in (None, 0.1):
        world = World(tmp_path, FakeProcesses(life))
        async with world.running():
            await trio.sleep(20.0)
            before = trio.current_time()
        assert trio.current_time() - before == 0
        assert not world.child.path.exists()
        assert (signal.SIGTERM in world.processes.started[-1].signals) is (life is None)
    assert world.child.pid == 0


@trio_test
async def test_a_process_is_asked_to_end_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World(tmp_path, FakeProcesses())
    async with world.running():
        first = world.processes.started[0]
        first.deaf = True
        world.child.replace()
        world.child.stop()
        world.child.stop()
        assert first.signals == [signal.SIGTERM]
        first.end(0)


@trio_test
async def test_a_cancelled_supervisor_kills_even_a_process_that_ignores_signals(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.child.supervise)
        await wait_all_tasks_blocked()
        world.processes.started[0].deaf = True
        nursery.cancel_scope.cancel()
    assert world.processes.started[0].returncode == -signal.SIGKILL
    assert not world.child.path.exists()


@trio_test
async def test_a_cancelled_supervisor_does_not_wait_for_ever_for_a_process_that_cannot_be_killed(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProcess, "send_signal", lambda *_: None)  # as one on a dead disk
    world = World(tmp_path, FakeProcesses())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.child.supervise)
        await wait_all_tasks_blocked()
        trio.lowlevel.spawn_system_task(end_later, world.processes.started[0])
        nursery.cancel_scope.cancel()
    assert trio.current_time() < 100.0
    assert not world.child.path.exists()
    world.processes.started[0].end()


async def end_later(process: FakeProcess) -> None:
    """For a supervisor that waits too long."""
    await trio.sleep(200.0)
    process.end()


@trio_test
async def test_a_reload_travels_on_the_lifeline_and_the_lifeline_ends_with_us(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.child.supervise)
        await wait_all_tasks_blocked()
        lifeline = world.processes.started[0].lifeline.dup()
        world.child.reload()
        assert lifeline.recv(10) == RELOAD
        nursery.cancel_scope.cancel()
    with lifeline:
        assert lifeline.recv(10) == b""
    world.child.reload()  # nobody there: nothing happens


@trio_test
async def test_a_replaced_process_ends_in_good_order_and_counts_as_no_early_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses())
    async with world.running():
        for _ in range(5):
            world.child.replace()
            assert not world.child.ready
            await wait_all_tasks_blocked()
            assert world.child.ready
        assert trio.current_time() == 0
        assert not world.texts()
        world.processes.started[-1].end(-9)
        await wait_all_tasks_blocked()
        assert "restarting at once" in world.texts()[0]
    assert [p.signals for p in world.processes.started[:5]] == [[signal.SIGTERM]] * 5


@trio_test
async def test_a_process_that_is_being_started_is_replaced_as_well(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses())
    go_on = world.processes.held_up = trio.Event()
    async with world.running():
        world.child.replace()
        go_on.set()
        await wait_all_tasks_blocked()
        first, second = world.processes.started
        assert (first.returncode, second.returncode) == (0, None)
    assert not world.texts()


@trio_test
async def test_a_reload_waits_on_the_lifeline_of_a_process_that_is_being_started(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(tmp_path, FakeProcesses())
    go_on = world.processes.held_up = trio.Event()
    async with world.running():
        world.child.reload()
        go_on.set()
        await wait_all_tasks_blocked()
        assert world.processes.started[0].lifeline.recv(10) == RELOAD
