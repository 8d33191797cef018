"""Opening and closing a SQLite queue: locks, versions, damage, full and read-only disks."""

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.outcome import Action, RecipientOutcome
from protocol.request import Recipient
from tests.descriptors import open_descriptors
from worker.queue import schema
from worker.queue.queue_id import make_queue_id, row_of
from worker.queue.records import Finish, MessageState, Submission
from worker.queue.sqlite import SqliteStore, StoreSettings, open_store
from worker.queue.store import Settlement, StoreError, StoreFull, StoreLocked, StoreUnusable
from worker.queue.transactions import NewMessage
from worker.queue.writer import RetryDelays

NOW = 1_800_000_000.0
SUBMISSION = Submission(sender="a@example.com", recipients=(Recipient(address="b@example.org"),))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "queue"


async def put(store: SqliteStore, content: bytes = b"x\r\n") -> str:
    spool = store.spool()
    try:
        await spool.write(content)
        return await store.submit(SUBMISSION, spool, NOW)
    finally:
        await spool.aclose()


async def make_queue(directory: Path, messages: int = 1) -> None:
    async with await open_store(directory) as store:
        for _ in range(messages):
            await put(store)


def snapshot(directory: Path) -> dict[str, bytes]:
    """The files of a queue but its lock, and what is in them."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def file_modes(directory: Path) -> dict[str, int]:
    """Permissions of the directory and of everything in it, by name."""
    paths = [directory, *directory.rglob("*")]
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}


def make_file(path: Path, octets: bytes = b"") -> None:
    """A file, and the directory it is in."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(octets)


def content_files(directory: Path) -> list[Path]:
    return [path for path in (directory / "content").rglob("*") if path.is_file()]


# --- the directory ----------------------------------------------------------------------------


@trio_test
async def test_a_new_queue_keeps_mail_private_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        async with await open_store(directory) as store:
            await put(store, b"x" * 100_000)
            modes = file_modes(directory)
    finally:
        os.umask(before)
    assert modes.pop("queue") == 0o711  # others reach public/, and see nothing
    assert modes.pop("content") == 0o700
    assert len(modes) == 6  # the lock, the database and what belongs to it, a content
    assert {mode & 0o077 for mode in modes.values()} == {0}


@trio_test
async def test_a_queue_in_use_names_the_process_that_has_it(directory: Path) -> None:
    async with await open_store(directory):
        with pytest.raises(StoreLocked, match=rf"in use by process {os.getpid()}\b"):
            await open_store(directory)
    await (await open_store(directory)).aclose()


@trio_test
async def test_closing_twice_is_fine_and_a_closed_queue_says_so(directory: Path) -> None:
    store = await open_store(directory)
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        await put(store)
    with pytest.raises(StoreError, match="closed"):
        await store.next_due()


@trio_test
async def test_orphaned_contents_are_removed_at_start(directory: Path) -> None:
    async with await open_store(directory) as store:
        queue_id = await put(store, b"x" * 100_000)
        await put(store, b"y" * 100_000)
        await store.delete([queue_id])
    [kept] = content_files(directory)
    orphan = directory / "content" / "ab" / "abcdef"
    make_file(orphan, b"never submitted")
    async with await open_store(directory):
        assert content_files(directory) == [kept]


@trio_test
async def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot open the queue .*: Not a directory"):
        await open_store(tmp_path / "file" / "queue")


# --- versions ---------------------------------------------------------------------------------


@trio_test
async def test_a_queue_of_a_newer_version_names_who_made_it(directory: Path) -> None:
    await make_queue(directory)
    with closing(sqlite3.connect(directory / schema.DATABASE)) as database:
        database.execute("UPDATE made_by SET version = 'postrio 99.1'")
        database.execute("PRAGMA user_version = 1234")
        database.commit()
    before = snapshot(directory)
    with pytest.raises(StoreUnusable, match=r"made by postrio 99\.1 \(schema 1234"):
        await open_store(directory)
    assert snapshot(directory) == before


@trio_test
async def test_the_database_of_another_program_is_left_alone(directory: Path) -> None:
    path = directory / schema.DATABASE
    make_file(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE message (text TEXT)")
        database.commit()
    before = snapshot(directory)
    with pytest.raises(StoreUnusable, match="another program"):
        await open_store(directory)
    assert snapshot(directory) == before


@pytest.mark.parametrize("killed_after", ["creating the file", "choosing the journal"])
@trio_test
async def test_a_queue_whose_making_was_cut_short_is_made(
    directory: Path, killed_after: str
) -> None:
    path = directory / schema.DATABASE
    make_file(path)
    if killed_after == "choosing the journal":
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
    await make_queue(directory)


OLD_SCHEMA = (
    "CREATE TABLE made_by (version TEXT NOT NULL) STRICT",
    "CREATE TABLE message (id INTEGER PRIMARY KEY, sender TEXT) STRICT",
    "CREATE TABLE recipient (id INTEGER PRIMARY KEY) STRICT",
    "INSERT INTO message VALUES (1, 'a@example.com')",
)
MIGRATION = (
    "ALTER TABLE message ADD COLUMN size INTEGER NOT NULL DEFAULT 7",
    "UPDATE message SET sender = upper(sender)",
)


@pytest.fixture
def old_database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database with a synthetic schema 0."""
    with closing(sqlite3.connect(tmp_path / "old", isolation_level=None)) as database:
        schema.prepare_database(database, "postrio 0.0", version=0, schema=OLD_SCHEMA)
        yield database


def test_an_older_queue_is_migrated_in_one_step(old_database: sqlite3.Connection) -> None:
    schema.prepare_database(old_database, "postrio 1.0", version=1, migrations={0: MIGRATION})
    assert old_database.execute("SELECT * FROM message").fetchall() == [(1, "A@EXAMPLE.COM", 7)]
    assert schema.user_version(old_database) == 1
    assert old_database.execute("SELECT version FROM made_by").fetchall() == [("postrio 1.0",)]


def test_a_migration_that_fails_changes_nothing(old_database: sqlite3.Connection) -> None:
    broken = (*MIGRATION, "UPDATE no_such_table SET x = 1")
    with pytest.raises(sqlite3.OperationalError):
        schema.prepare_database(old_database, "postrio 1.0", version=1, migrations={0: broken})
    assert schema.user_version(old_database) == 0
    assert old_database.execute("SELECT * FROM message").fetchall() == [(1, "a@example.com")]


def test_several_migrations_follow_each_other(old_database: sqlite3.Connection) -> None:
    steps = {0: MIGRATION, 1: ["UPDATE message SET size = size + 1"]}
    schema.prepare_database(old_database, "postrio 2.0", version=2, migrations=steps)
    assert old_database.execute("SELECT size FROM message").fetchall() == [(8,)]


def old_queue(directory: Path) -> None:
    """A queue of schema 1, with one message."""
    last = "client TEXT NOT NULL"
    before = [
        statement.partition(last)[0] + last + ") STRICT" if last in statement else statement
        for statement in schema.SCHEMA
    ]
    directory.mkdir()
    with closing(sqlite3.connect(directory / schema.DATABASE, isolation_level=None)) as database:
        schema.prepare_database(database, "postrio 0.1.0", version=1, schema=before)
        assert [row[1] for row in database.execute("PRAGMA table_info(message)")][-1] == "client"
        database.execute(
            "INSERT INTO message VALUES"
            " (1, 2, 'q', 0, 0, 0, NULL, 0, 0, 0, 0, 9, '', 0, 0, 's@s', '', '')"
        )
        database.execute("INSERT INTO recipient VALUES (2, 0, 0, 0, 0, 0, 'r@r', '', '', '')")
        database.execute("INSERT INTO content VALUES (1, x'78')")
        database.execute("UPDATE sequence SET next = 3")


@trio_test
async def test_a_queue_of_schema_1_is_taken_over_with_its_mail(directory: Path) -> None:
    old_queue(directory)
    async with await open_store(directory, threads=False) as store:
        (message,) = await store.claim(NOW, 10)
        queue_id = await put(store)
        (newer,) = await store.claim(NOW, 10)
    assert (message.sender, message.hops, message.probe) == ("s@s", 0, False)
    assert newer.queue_id == queue_id


@trio_test
async def test_the_store_counts_hops_and_remembers_what_is_a_probe(directory: Path) -> None:
    async with await open_store(directory, threads=False) as store:
        spool = store.spool()
        await spool.write(b"Received: a\nReceived: b\nSubject: c\n\nReceived: no\n")
        recipients = (Recipient(address="r@one.example"),)
        submission = Submission(sender="s@here.example", recipients=recipients, probe=True)
        await store.submit(submission, spool, NOW)
        (message,) = await store.claim(NOW, 10)
        assert (message.hops, message.probe) == (2, True)
        assert message.due <= NOW
        await put(store)
        (message,) = await store.claim(NOW, 10)
        assert (message.hops, message.probe) == (0, False)


def test_a_version_without_a_way_to_ours_says_what_to_do(
    old_database: sqlite3.Connection,
) -> None:
    with pytest.raises(StoreUnusable, match="let the version that made it deliver"):
        schema.prepare_database(old_database, "postrio 2.0", version=2, migrations={0: MIGRATION})
    assert schema.user_version(old_database) == 0


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("octets", [b"From: somebody\n" * 1000, b"x", b"SQLite format 3"])
@trio_test
async def test_a_file_that_is_no_database_is_left_alone(directory: Path, octets: bytes) -> None:
    make_file(directory / schema.DATABASE, octets)
    before = snapshot(directory)
    with pytest.raises(StoreUnusable, match="not a queue database"):
        await open_store(directory)
    assert snapshot(directory) == before


def overwrite(path: Path, table: str) -> None:
    """Spoil the page where a table or an index begins; "": the first page."""
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
        (page,) = found.fetchone() or (1,)
    octets = bytearray(path.read_bytes())
    octets[page * 4096 - 3996 : page * 4096] = b"\xa5" * 3996
    path.write_bytes(octets)


@pytest.mark.parametrize("table", ["", "message", "recipient", "message_due"])
@trio_test
async def test_a_damaged_database_is_left_alone(directory: Path, table: str) -> None:
    await make_queue(directory, messages=200)
    overwrite(directory / schema.DATABASE, table)
    before = snapshot(directory)
    with pytest.raises(StoreUnusable, match="damaged"):
        await open_store(directory)
    assert snapshot(directory) == before


@trio_test
async def test_a_database_that_somebody_has_locked_is_not_called_damaged(directory: Path) -> None:
    await make_queue(directory)
    with closing(sqlite3.connect(directory / schema.DATABASE, isolation_level=None)) as database:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        database.execute("UPDATE sequence SET next = next + 1")  # writes the WAL
        with pytest.raises(StoreError, match="locked") as caught:
            schema.check_database(directory / schema.DATABASE)
        assert not isinstance(caught.value, StoreUnusable)
        database.execute("ROLLBACK")


@trio_test
async def test_damage_found_later_is_an_error_of_that_call(directory: Path) -> None:
    await make_queue(directory)
    overwrite(directory / schema.DATABASE, "content")
    async with await open_store(directory) as store:
        [message] = await store.claim(NOW, 1)
        with pytest.raises(StoreError, match=r"cannot begin an attempt: .* damaged"):
            await store.begin([(message.id, [])])
        with pytest.raises(StoreError, match=r"cannot read the queue: .* damaged"):
            await store.content_head(message.id, 10)
        assert len(await store.summaries()) == 1


# --- a full disk ------------------------------------------------------------------------------


class Disk:
    """Bounds the database's pages: SQLite then says what it says on a full disk."""

    def __init__(self, store: SqliteStore) -> None:
        self._database = store._opening.connections[0]

    def fill(self) -> None:
        self._database.execute("PRAGMA max_page_count = 1")  # that is: as it is now

    def relieve(self) -> None:
        self._database.execute("PRAGMA max_page_count = 1000000")


async def fill(store: SqliteStore, disk: Disk) -> int:
    """Submit until the disk is full; returns how many are queued and waiting."""
    disk.fill()
    with suppress(StoreFull):
        for _ in range(1000):
            await put(store, b"x" * 60_000)
    with pytest.raises(StoreFull, match="no space left"):
        await put(store, b"x" * 60_000)
    return (await store.counts())[MessageState.INCOMING]


def deferred(recipient: Recipient, reason: str) -> RecipientOutcome:
    return RecipientOutcome(recipient=recipient, action=Action.DEFERRED, dsn="4.0.0", reason=reason)


@trio_test
async def test_on_a_full_disk_nothing_is_accepted_and_nothing_lost(directory: Path) -> None:
    async with await open_store(directory) as store:
        await put(store)
        disk = Disk(store)
        accepted = await fill(store, disk)
        disk.relieve()
        await put(store)
        assert len(await store.summaries()) == accepted + 1


@trio_test
async def test_outcomes_wait_for_space_and_are_recorded_then(directory: Path) -> None:
    warnings: list[str] = []
    warned = trio.Event()

    def warn(text: str) -> None:
        warnings.append(text)
        warned.set()

    delays = RetryDelays(first=0.001, longest=0.002)
    async with await open_store(directory, warn=warn, retry_delays=delays) as store:
        queue_id = await put(store)
        [message] = await store.claim(NOW, 1)
        disk = Disk(store)
        await fill(store, disk)
        long_reason = Settlement(deferred(message.recipients[0], "x" * 500_000))
        finish = Finish(message_id=message.id, next_attempt=NOW + 1000.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.settle, message.id, [long_reason], finish)
            await warned.wait()
            [before] = await store.summaries([queue_id])
            assert before.next_attempt is None  # still active
            disk.relieve()
        [after] = await store.summaries([queue_id])
    assert after.next_attempt == NOW + 1000.0
    assert len(after.recipients[0].reason) == 500_000
    assert warnings[0].startswith("cannot record outcomes: no space left for the queue")


@trio_test
async def test_a_cancelled_caller_leaves_its_outcome_behind(directory: Path) -> None:
    warned = trio.Event()
    delays = RetryDelays(first=0.001, longest=0.002)
    async with await open_store(
        directory, warn=lambda _: warned.set(), retry_delays=delays
    ) as store:
        queue_id = await put(store)
        [message] = await store.claim(NOW, 1)
        disk = Disk(store)
        await fill(store, disk)
        long_reason = Settlement(deferred(message.recipients[0], "x" * 500_000))
        finish = Finish(message_id=message.id, next_attempt=NOW + 1000.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.settle, message.id, [long_reason], finish)
            await warned.wait()
            nursery.cancel_scope.cancel()
        disk.relieve()
        await put(store)  # whatever comes next takes it along
        [after] = await store.summaries([queue_id])
        assert after.next_attempt == NOW + 1000.0


@trio_test
async def test_closing_on_a_full_disk_ends_and_says_what_was_not_recorded(
    directory: Path,
) -> None:
    warnings: list[str] = []
    warned = trio.Event()

    def warn(text: str) -> None:
        warnings.append(text)
        warned.set()

    store = await open_store(directory, warn=warn)
    await put(store)
    [message] = await store.claim(NOW, 1)
    await fill(store, Disk(store))
    long_reason = Settlement(deferred(message.recipients[0], "x" * 500_000))

    async def settle() -> None:
        with pytest.raises(StoreFull, match="closes with 1 unrecorded"):
            await store.settle(message.id, [long_reason])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settle)
        await warned.wait()
        await store.aclose()
    assert "closes with 1 unrecorded" in warnings[-1]


@trio_test
async def test_without_threads_an_outcome_waits_in_virtual_time(
    autojump_clock: MockClock, directory: Path
) -> None:
    async with await open_store(directory, threads=False) as store:
        await put(store)
        [message] = await store.claim(NOW, 1)
        disk = Disk(store)
        await fill(store, disk)
        long_reason = Settlement(deferred(message.recipients[0], "x" * 500_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.settle, message.id, [long_reason])
            await trio.sleep(100.0)  # tries at 0, 1, 3, 7, 15, 31, 63 seconds
            disk.relieve()
        assert trio.current_time() == 123.0


@trio_test
async def test_too_little_free_space_refuses_submissions_but_not_outcomes(
    directory: Path,
) -> None:
    await make_queue(directory)
    async with await open_store(directory, settings=StoreSettings(queue_minfree=2**62)) as store:
        with pytest.raises(StoreFull, match="queue_minfree"):
            await put(store)
        [message] = await store.claim(NOW, 1)
        done = RecipientOutcome(
            recipient=message.recipients[0], action=Action.SENT, dsn="2.0.0", reason="ok"
        )
        await store.settle(message.id, [Settlement(done)], Finish(message_id=message.id))
        assert await store.summaries() == []


# --- what it costs, and what comes first ---


@trio_test
async def test_claiming_looks_only_at_what_is_due_however_long_the_queue(
    directory: Path,
) -> None:
    """The steps of SQLite's machine are counted, not time."""
    steps: list[int] = []
    async with await open_store(directory, threads=False) as store:
        for waiting in (10, 2000):
            database = store._opening.connections[0]
            database.execute(
                """WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
                INSERT INTO message SELECT 1000000 + (SELECT count(*) FROM message) + i,
                    1000000, 'q', 1, 0, ? + i, NULL, 1, 0, 0, 0, 0, '', 0, 0, '', '', '', 0, 0
                FROM n""",
                (waiting, NOW + 1000.0),
            )
            await put(store)
            counted = 0

            def count() -> int:
                nonlocal counted
                counted += 1
                return 0

            database.set_progress_handler(count, 1)
            assert len(await store.claim(NOW, 10)) == 1
            database.set_progress_handler(None, 1)
            steps.append(counted)
    assert steps[1] < steps[0] * 2


@trio_test
async def test_a_large_content_is_on_disk_before_its_row_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    async with await open_store(directory, threads=False) as store:
        monkeypatch.setattr(os, "fsync", record)
        operation = store._submit

        def check(database: sqlite3.Connection, requests: Sequence[NewMessage]) -> list[str]:
            [file] = content_files(directory)
            assert synced == [str(directory / "content"), str(file), str(file.parent)]
            synced.clear()
            return operation.run(database, requests)

        monkeypatch.setattr(store, "_submit", replace(operation, run=check))
        await put(store, b"x" * 100_000)
        assert synced == []  # it was looked at


@trio_test
async def test_a_content_that_cannot_be_opened_is_an_error_and_leaks_no_descriptor(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def without_descriptors(path: Path, flags: int) -> int:
        if path == last:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_file(path, flags)

    async with await open_store(directory, threads=False) as store:
        queue_ids = [await put(store, b"x" * 100_000) for _ in range(3)]
        messages = await store.claim(NOW, 3)
        attempts = [(one.id, [each.key for each in one.recipients]) for one in messages]
        name = store._reader.execute("SELECT name FROM content_file ORDER BY id DESC").fetchone()
        last = store._content.file(name[0])
        before = open_descriptors()
        monkeypatch.setattr(os, "open", without_descriptors)
        with pytest.raises(StoreError, match="cannot open a content: Too many open files"):
            await store.begin(attempts)
        with pytest.raises(StoreError, match="cannot open a content: Too many open files"):
            await store.read_content(queue_ids[-1])
        assert open_descriptors() <= before


# --- queue ids --------------------------------------------------------------------------------


def test_a_queue_id_holds_its_row_and_sorts_by_time() -> None:
    ids = [make_queue_id(NOW + number * 0.001, 7 + number * 1000) for number in range(500)]
    assert ids == sorted(ids)
    assert [row_of(queue_id) for queue_id in ids] == [7 + number * 1000 for number in range(500)]
    assert row_of(make_queue_id(NOW, 2**62)) == 2**62


@pytest.mark.parametrize("text", ["", "z", "A", "?", "0" * 40, "0zzzzzzz", "\N{SNOWMAN}z1"])
def test_any_text_can_be_looked_up_as_a_queue_id(text: str) -> None:
    assert 0 <= row_of(text) < 2**63  # the store compares the whole id with the row's


@pytest.mark.parametrize("row", [1, 51, 10**9])
def test_queue_ids_have_the_form_that_log_tools_know(row: int) -> None:
    queue_id = make_queue_id(NOW, row)
    assert queue_id.isalnum()
    assert queue_id.isascii()
    assert queue_id.rpartition("z")[0] == make_queue_id(NOW, 1)[:10]
    assert not set(queue_id.lower()) & set("aeiou")
