"""The writer: what shares a commit, what does not share a failure, and who is told when.

The order is forced: an operation of the test's own stops the writer thread until the test lets it
go on, so that what is handed over meanwhile is known to wait for the next group.
"""

import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import trio_test, wait_all_tasks_blocked

from worker.queue import writer
from worker.queue.store import StoreError
from worker.queue.writer import Committer, Operation, RetryDelays, ThreadWriter


class Bench:
    """A writer over a one-table database, and what it did."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.groups: list[list[str]] = []  # texts of each commit
        self.calls: list[list[str]] = []  # texts of each call of the operation
        self.rolled_back = 0
        self.warnings: list[str] = []
        self._pending: list[str] = []
        self._gate = threading.Event()
        self._reached = threading.Event()
        self.insert = Operation("insert", self._insert)
        self.insist = Operation("insist", self._insert, insists=True)
        self.stop = Operation("stop", self._stop)
        committer = Committer(database, self._committed, self._undone, lambda: False)
        delays = RetryDelays(first=0.001, longest=0.002)
        self.writer = ThreadWriter(committer, self.warnings.append, delays)

    def _insert(self, database: sqlite3.Connection, texts: Sequence[str]) -> list[str]:
        self.calls.append([*texts])
        if "bad" in texts:
            raise ValueError("a bad text")
        database.executemany("INSERT INTO t VALUES (?)", [(text,) for text in texts])
        self._pending += texts
        return [text.upper() for text in texts]

    def _stop(self, _database: sqlite3.Connection, requests: Sequence[None]) -> list[None]:
        self._reached.set()
        self._gate.wait(10.0)
        return [*requests]

    async def stop_writer(self, nursery: trio.Nursery) -> None:
        """The writer is in the middle of a group from now on, until go_on()."""
        nursery.start_soon(self.writer.perform, self.stop, None)
        await trio.to_thread.run_sync(self._reached.wait, 10.0)

    def go_on(self) -> None:
        self._gate.set()

    def _committed(self) -> None:
        self.groups.append(self._pending)
        self._pending = []

    def _undone(self) -> None:
        self._pending = []
        self.rolled_back += 1

    def rows(self) -> list[str]:
        return [text for (text,) in self.database.execute("SELECT * FROM t ORDER BY rowid")]


@asynccontextmanager
async def bench(path: Path) -> AsyncIterator[Bench]:
    database = sqlite3.connect(path / "db", isolation_level=None, check_same_thread=False)
    try:
        database.execute("CREATE TABLE t (text TEXT NOT NULL UNIQUE)")
        one = Bench(database)
        try:
            yield one
        finally:
            one.go_on()
            await one.writer.aclose()
    finally:
        database.close()


async def collect(one: Bench, text: str, results: dict[str, object]) -> None:
    try:
        result = await one.writer.perform(one.insert, text)
        results[text] = result
    except (StoreError, ValueError) as exc:
        results[text] = str(exc)


@trio_test
async def test_what_waits_together_shares_a_call_and_a_commit(tmp_path: Path) -> None:
    results: dict[str, object] = {}
    async with bench(tmp_path) as one, trio.open_nursery() as nursery:
        await one.stop_writer(nursery)
        for text in "abc":
            nursery.start_soon(collect, one, text, results)
        await wait_all_tasks_blocked()
        assert results == {}  # nobody is told before the commit
        one.go_on()
    assert results == {"a": "A", "b": "B", "c": "C"}
    assert [sorted(group) for group in one.groups] == [[], ["a", "b", "c"]]
    assert len(one.calls) == 1


@pytest.mark.parametrize(
    ("crowd", "gathers"),
    [
        ("quick quick quick", []),  # too few
        ("quick quick quick quick", [0.25]),
        ("quick quick slow quick", [0.5]),  # the longest counts
    ],
)
@trio_test
async def test_after_a_crowd_the_next_gathers_for_as_long_as_its_operations_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crowd: str, gathers: list[float]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(writer, "time", SimpleNamespace(sleep=slept.append))
    async with bench(tmp_path) as one, trio.open_nursery() as nursery:
        operations = {
            "quick": Operation("quick", one.insert.run, gather=0.25),
            "slow": Operation("slow", one.insert.run, gather=0.5),
        }
        await one.stop_writer(nursery)
        for number, word in enumerate(crowd.split()):
            nursery.start_soon(one.writer.perform, operations[word], str(number))
        await wait_all_tasks_blocked()
        one.go_on()
    assert slept == gathers  # the writer has ended: nothing is on its way


@pytest.mark.parametrize("complaint", ["bad", "a"])  # raised by the operation, and by SQLite
@trio_test
async def test_one_bad_job_does_not_spoil_the_others(tmp_path: Path, complaint: str) -> None:
    results: dict[str, object] = {}
    async with bench(tmp_path) as one, trio.open_nursery() as nursery:
        await one.writer.perform(one.insert, "a")
        await one.stop_writer(nursery)
        for text in ("b", complaint, "c"):
            nursery.start_soon(collect, one, text, results)
        await wait_all_tasks_blocked()
        one.go_on()
    assert results.pop(complaint) in ("a bad text", "insert: UNIQUE constraint failed: t.text")
    assert results == {"b": "B", "c": "C"}
    assert sorted(one_text for group in one.groups for one_text in group) == ["a", "b", "c"]
    assert one.rolled_back == 2  # the group, then the bad one alone


@trio_test
async def test_a_cancelled_caller_learns_what_became_of_its_job(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        results: dict[str, object] = {}
        async with trio.open_nursery() as nursery:
            await one.stop_writer(nursery)
            nursery.start_soon(collect, one, "a", results)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            one.go_on()
        assert results == {"a": "A"}
        assert one.rows() == ["a"]


@trio_test
async def test_closing_finishes_what_was_handed_over_and_takes_no_more(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        results: dict[str, object] = {}
        async with trio.open_nursery() as nursery:
            await one.stop_writer(nursery)
            nursery.start_soon(collect, one, "a", results)
            await wait_all_tasks_blocked()
            nursery.start_soon(one.writer.aclose)
            await wait_all_tasks_blocked()
            await collect(one, "b", results)
            one.go_on()
        assert results == {"a": "A", "b": "insert: the queue is closed"}
        assert one.rows() == ["a"]


@trio_test
async def test_a_job_that_insists_fails_at_once_when_no_waiting_can_help(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        with pytest.raises(ValueError, match="a bad text"):
            await one.writer.perform(one.insist, "bad")
        assert one.warnings == []


@trio_test
async def test_nobody_waits_for_a_writer_that_a_bug_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Committer, _jobs: Sequence[object]) -> None:
        raise RuntimeError("a bug of ours")

    async with bench(tmp_path) as one:
        monkeypatch.setattr(Committer, "commit", broken)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"a bug of ours|is closed"):
                await one.writer.perform(one.insert, "a")
        assert one.warnings == ["the queue's writer failed: RuntimeError('a bug of ours')"]


def test_delays_double_up_to_the_longest_and_start_over() -> None:
    delays = RetryDelays(first=1.0, longest=5.0)
    assert [delays.next() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    delays.reset()
    assert delays.next() == 1.0
