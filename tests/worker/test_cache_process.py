"""The connection cache of a node: when it is started, replaced and left alone. No process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

import worker.pool.cache_process
from tests.worker.fake_process import FakeProcesses
from worker.config.config import Config
from worker.config.problems import ConfigError
from worker.pool.cache_process import CacheProcess, own_socket
from worker.pool.child import Child


class World:
    """A queue directory and the cache in it; `processes` are its lives."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        (directory / "private").mkdir()
        self.processes = FakeProcesses()

        def child(*arguments: object) -> Child:
            return Child(*arguments, start=self.processes)  # type: ignore[arg-type]

        monkeypatch.setattr(worker.pool.cache_process, "Child", child)

    def config(self, **parameters: str) -> Config:
        return Config.from_mapping({"queue_directory": str(self.directory), **parameters})

    @property
    def sockets(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "private").iterdir())

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[CacheProcess]:
        """The cache under a configuration, stopped at the end."""
        cache = CacheProcess(config, command_line, lambda _: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.run)
            await wait_all_tasks_blocked()
            yield cache
            cache.stop()
        assert self.sockets == []


def command_line(config: Config) -> list[str]:
    """What a cache is started with; this parameter is in it, others are not."""
    return ["scache", "--ttl-limit", config.text("connection_cache_ttl_limit")]


@trio_test
async def test_a_reload_restarts_it_if_and_only_if_its_command_line_changed(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    async with world.running(world.config()) as cache:
        assert world.sockets == ["scache"]
        cache.reload(world.config(smtp_helo_name="other.example"))
        await wait_all_tasks_blocked()
        assert len(world.processes.started) == 1
        cache.reload(world.config(connection_cache_ttl_limit="5s"))
        await wait_all_tasks_blocked()
        first, second = world.processes.started
        assert first.returncode == 0  # it was asked to end, not killed
        assert second.returncode is None
        assert list(world.processes.arguments[1]) == ["scache", "--ttl-limit", "5s"]


@trio_test
async def test_there_is_none_without_a_name_or_with_the_path_of_somebody_elses(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    for name in ("", "/run/other/scache"):
        async with world.running(world.config(connection_cache_service_name=name)) as cache:
            assert world.sockets == []
            cache.reload(world.config(connection_cache_service_name="idle"))
            await wait_all_tasks_blocked()
            assert world.sockets == ["idle"]
            cache.reload(world.config(connection_cache_service_name=name))
            await wait_all_tasks_blocked()
            assert world.sockets == []


@trio_test
async def test_a_socket_that_cannot_be_made_costs_the_cache_and_nothing_else(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    (tmp_path / "private").rmdir()
    (tmp_path / "private").touch()
    events: list[object] = []
    cache = CacheProcess(world.config(), command_line, events.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        await wait_all_tasks_blocked()
        cache.stop()
    assert "no connection cache at" in str(events)
    assert not world.processes.started


@trio_test
async def test_a_configuration_can_be_checked_without_following_it(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    async with world.running(world.config()) as cache:
        cache.check(world.config(connection_cache_ttl_limit="5s"))
        with pytest.raises(ConfigError, match="not a free name"):
            cache.check(world.config(connection_cache_service_name="control"))
        await wait_all_tasks_blocked()
        (only,) = world.processes.started
        assert only.returncode is None


@pytest.mark.parametrize("name", ["control", "worker.0", "a/b", "..", "../x"])
def test_a_name_that_is_taken_or_a_path_is_refused(tmp_path: Path, name: str) -> None:
    config = Config.from_mapping({"connection_cache_service_name": name})
    with pytest.raises(ConfigError, match=r"connection_cache_service_name = .*not a free name"):
        own_socket(config)
