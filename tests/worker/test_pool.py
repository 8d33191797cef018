"""The queue process around its parts: which settings the scheduler gets, and how it obeys signals.
Workers and scheduler are stand-ins without work; the store, the doors and the signals are real.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

import worker.pool.node
from worker.config.config import Config
from worker.pool.node import Node, NoWorkerError, run_pool
from worker.queue.scheduler import Scheduler
from worker.queue.settings import QueueSettings
from worker.queue.sqlite import SqliteStore
from worker.queue.store import StoreError
from worker.status.events import Event, Noted, Warned

LIMIT = 10.0  # seconds for one thing that a test waits for; nothing takes nearly as long

ENDED: list[str] = []  # what has ended, in order; a new list for each test


class IdleWorkers:
    """Worker processes that are never asked for a slot."""

    def __init__(self, *_: object, start: object, refused: object) -> None:
        self._stopped = trio.Event()

    async def run(self) -> None:
        """Until stop()."""
        await self._stopped.wait()
        await trio.lowlevel.checkpoint()
        ENDED.append("workers")

    def saturated(self) -> bool:
        """They have nothing to do."""
        return False

    def stop(self) -> None:
        """No more work."""
        self._stopped.set()

    def reload(self) -> None:
        """There is nobody to tell."""


class IdleCache:
    """A cache that nobody uses."""

    def __init__(self, *_: object) -> None:
        self._stopped = trio.Event()

    async def run(self) -> None:
        """Until stop()."""
        await self._stopped.wait()
        ENDED.append("cache")

    def stop(self) -> None:
        """No more clients."""
        ENDED.append("cache stopped")
        self._stopped.set()

    def check(self, _: object) -> None:
        """Every configuration will do."""

    def reload(self, _: object) -> None:
        """It has no configuration."""
        ENDED.append("cache reloaded")


class IdleScheduler:
    """Keeps the settings that it is given."""

    def __init__(self, _store: object, _workers: object, settings: QueueSettings, *_: object):
        self.slot_limits = [settings.slot_limit]
        self._stopped = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Until stop()."""
        task_status.started()
        await self._stopped.wait()

    def stop(self) -> None:
        """End run()."""
        self._stopped.set()

    def reload(self, settings: QueueSettings, _router: object) -> None:
        """New settings."""
        self.slot_limits.append(settings.slot_limit)

    def wake(self) -> None:
        """Nothing is claimed here."""

    def flush(self) -> None:
        """Nothing is claimed here."""


@trio_test
async def test_the_slot_limit_counts_all_workers_after_a_reload_too_and_the_cache_ends_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.pool.node, "Workers", IdleWorkers)
    monkeypatch.setattr(worker.pool.node, "CacheProcess", IdleCache)
    monkeypatch.setattr(worker.pool.node, "Scheduler", IdleScheduler)
    monkeypatch.setattr(sys.modules[__name__], "ENDED", [])
    settings = {
        "queue_directory": str(tmp_path / "queue"),
        "postrio_slot_limit": "10",
        "postrio_worker_processes": "2",
    }
    reloaded = trio.Event()

    def emit(event: Event) -> None:
        if event == Noted("configuration reloaded"):
            reloaded.set()

    node = Node(
        load=lambda: Config.from_mapping(settings),
        arguments=(),
        cache=lambda _: (),
        emit=emit,
        wall=lambda: 1_000.0,
        follow=lambda _: None,
    )
    async with trio.open_nursery() as nursery:
        scheduler = await nursery.start(run_pool, node, 5)
        settings["postrio_slot_limit"] = "20"
        signal.raise_signal(signal.SIGHUP)
        with trio.fail_after(10):
            await reloaded.wait()
        signal.raise_signal(signal.SIGTERM)
    assert scheduler.slot_limits == [50, 100]
    assert ENDED == ["cache reloaded", "workers", "cache stopped", "cache"]


# --- signals, and parts that do not do as they are told ------------------------------------------


class StubbornWorkers(IdleWorkers):
    """Workers that do not end when they are asked to."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            ENDED.append("workers killed")


class Said:
    """Everything that a node says, for tests that wait for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._more = trio.Event()

    def emit(self, event: Event) -> None:
        if isinstance(event, Noted | Warned):
            self.texts.append(event.text)
            self._more.set()
            self._more = trio.Event()

    async def wait_for(self, text: str, count: int = 1) -> None:
        with trio.fail_after(LIMIT):
            while sum(text in one for one in self.texts) < count:
                await self._more.wait()


@pytest.fixture
def unread() -> Iterator[list[int]]:
    """Signals that a node has left to others: they would have ended its process."""
    numbers: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda n, _: numbers.append(n)) for number in signals}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Stand-ins for everything; tests replace some of them."""
    monkeypatch.setattr(worker.pool.node, "Workers", IdleWorkers)
    monkeypatch.setattr(worker.pool.node, "CacheProcess", IdleCache)
    monkeypatch.setattr(worker.pool.node, "Scheduler", IdleScheduler)
    monkeypatch.setattr(sys.modules[__name__], "ENDED", [])
    return monkeypatch


def make_node(
    directory: Path,
    said: Said,
    load: Callable[[], None] = lambda: None,
    follow: Callable[[Config], None] = lambda _: None,
    shutdown_timeout: str = "300s",
) -> Node:
    """A node; `load` is called before its configuration is read."""

    def configuration() -> Config:
        load()
        return Config.from_mapping(
            {
                "queue_directory": str(directory / "queue"),
                "postrio_shutdown_timeout": shutdown_timeout,
            }
        )

    return Node(
        load=configuration,
        arguments=(),
        cache=lambda _: (),
        emit=said.emit,
        wall=lambda: 1_000.0,
        follow=follow,
    )


@trio_test
async def test_a_second_signal_ends_it_at_once_whoever_does_not_and_later_ones_do_no_harm(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    close = SqliteStore.aclose

    async def closed_under_a_signal(store: SqliteStore) -> None:
        if "store" not in ENDED:  # it is closed twice, to be sure
            signal.raise_signal(signal.SIGTERM)
            await close(store)
            ENDED.append("store")

    parts.setattr(worker.pool.node, "Workers", StubbornWorkers)
    parts.setattr(SqliteStore, "aclose", closed_under_a_signal)
    said = Said()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_pool, make_node(tmp_path, said), 1)
            signal.raise_signal(signal.SIGTERM)
            await said.wait_for("stopping on SIGTERM")
            signal.raise_signal(signal.SIGTERM)
    assert "stopped by a second signal" in said.texts
    assert said.texts[-1] == "daemon stopped"
    assert "workers killed" in ENDED
    assert "store" in ENDED
    assert unread == []


@trio_test
async def test_who_does_not_end_in_time_is_killed_when_there_is_no_work_left(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    parts.setattr(worker.pool.node, "Workers", StubbornWorkers)
    parts.setattr(worker.pool.node, "END_TIMEOUT", 0.1, raising=False)
    said = Said()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            node = make_node(tmp_path, said, shutdown_timeout="0s")
            await nursery.start(run_pool, node, 1)
            signal.raise_signal(signal.SIGTERM)
    assert ENDED == ["workers killed"]
    assert any("did not end in time" in text for text in said.texts)
    assert unread == []


@trio_test
async def test_a_start_that_hangs_ends_at_the_first_signal(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    asked = trio.Event()

    async def fail(_: SqliteStore) -> list[tuple[str, str]]:
        asked.set()
        raise StoreError("the disk is on holiday")

    parts.setattr(worker.pool.node, "Scheduler", Scheduler)
    parts.setattr(SqliteStore, "in_doubt", fail)
    said = Said()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_pool, make_node(tmp_path, said), 1)
            await asked.wait()
            signal.raise_signal(signal.SIGTERM)
    assert ENDED == ["workers", "cache stopped", "cache"]
    assert "daemon started" not in said.texts
    assert said.texts[-1] == "daemon stopped"
    assert unread == []


@trio_test
async def test_a_configuration_that_cannot_be_read_to_its_end_keeps_nobody_from_stopping(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    go_on = threading.Event()
    loading = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def load() -> None:
        if threading.current_thread() is not threading.main_thread():  # a reload
            token.run_sync_soon(loading.set)
            go_on.wait(LIMIT)

    said = Said()
    try:
        with trio.fail_after(LIMIT / 2):
            async with trio.open_nursery() as nursery:
                await nursery.start(run_pool, make_node(tmp_path, said, load), 1)
                signal.raise_signal(signal.SIGHUP)
                await loading.wait()
                signal.raise_signal(signal.SIGTERM)
    finally:
        go_on.set()
    assert "configuration reloaded" not in said.texts
    assert ENDED == ["workers", "cache stopped", "cache"]
    assert unread == []


@trio_test
async def test_a_sighup_during_a_reload_is_another_reload_after_it(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    go_on = threading.Event()
    loading = trio.Event()
    token = trio.lowlevel.current_trio_token()
    now: list[int] = []  # how many are loading, each time that one begins
    busy = 0

    def load() -> None:
        nonlocal busy
        if threading.current_thread() is not threading.main_thread():
            busy += 1
            now.append(busy)
            token.run_sync_soon(loading.set)
            go_on.wait(LIMIT)
            busy -= 1

    said = Said()
    async with trio.open_nursery() as nursery:
        await nursery.start(run_pool, make_node(tmp_path, said, load), 1)
        signal.raise_signal(signal.SIGHUP)
        await loading.wait()
        signal.raise_signal(signal.SIGHUP)
        go_on.set()
        await said.wait_for("configuration reloaded", 2)
        signal.raise_signal(signal.SIGTERM)
    assert now == [1, 1]
    assert unread == []


@trio_test
async def test_a_log_that_cannot_be_opened_leaves_the_cache_alone(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    def follow(_: Config) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere/log")

    said = Said()
    async with trio.open_nursery() as nursery:
        await nursery.start(run_pool, make_node(tmp_path, said, follow=follow), 1)
        signal.raise_signal(signal.SIGHUP)
        await said.wait_for("configuration not reloaded")
        signal.raise_signal(signal.SIGTERM)
    assert ENDED == ["workers", "cache stopped", "cache"]
    assert unread == []


class RefusingWorkers(IdleWorkers):
    """Workers that cannot live with the configuration."""

    def __init__(self, *_: object, start: object, refused: Callable[[], None]) -> None:
        super().__init__(start=start, refused=refused)
        self._refused = refused

    async def run(self) -> None:
        """Say so, and end when asked to."""
        self._refused()
        await super().run()


@trio_test
async def test_what_no_worker_can_live_with_ends_the_node_in_good_order(
    tmp_path: Path, parts: pytest.MonkeyPatch, unread: list[int]
) -> None:
    parts.setattr(worker.pool.node, "Workers", RefusingWorkers)
    said = Said()
    with trio.fail_after(LIMIT), pytest.raises(NoWorkerError, match="postrio check"):
        await run_pool(make_node(tmp_path, said), 1)
    assert "no worker can start with this configuration: run 'postrio check'" in said.texts
    assert said.texts[-1] == "daemon stopped"
    assert ENDED == ["workers", "cache stopped", "cache"]
    assert unread == []
