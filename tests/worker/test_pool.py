"""The queue process around its parts: which settings the scheduler gets. Workers and scheduler are
stand-ins without work; the store, the doors and the signals are real.
"""

import signal
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

import worker.pool.node
from worker.config.config import Config
from worker.pool.node import Node, run_pool
from worker.queue.settings import QueueSettings
from worker.status.events import Event, Noted

ENDED: list[str] = []  # what has ended, in order; a new list for each test


class IdleWorkers:
    """Worker processes that are never asked for a slot."""

    def __init__(self, *_: object, start: object) -> None:
        self._stopped = trio.Event()

    async def run(self) -> None:
        """Until stop()."""
        await self._stopped.wait()
        await trio.lowlevel.checkpoint()
        ENDED.append("workers")

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
    assert ENDED == ["workers", "cache stopped", "cache"]
