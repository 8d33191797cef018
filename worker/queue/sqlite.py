"""The Store over SQLite: one file in WAL mode, one writer thread, group commit.

Where things are: the tables in schema.py, the SQL in transactions.py, the writer thread in
writer.py, content on its way in in spool.py. Here is what holds them together: opening and closing
a queue, the Store's methods, and reading.

A queue directory belongs to one process at a time (`lock`, an flock). Its other entries are the
database with its WAL, and `content/` for the contents too large to keep in it.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import time
from types import TracebackType
from typing import Concatenate, Final, ParamSpec, Self, TypeVar

import trio

from worker.content import Content, FileContent, InlineContent
from worker.queue import schema
from worker.queue.reading import (
    Selection,
    content_head,
    count_messages,
    find_content,
    next_due,
    select_rows,
    summaries,
)
from worker.queue.records import (
    Finish,
    MessageState,
    MessageSummary,
    QueuedMessage,
    Submission,
)
from worker.queue.rows import text_factory
from worker.queue.spool import (
    ContentDirectory,
    ContentSpool,
    DiskSpace,
    InThread,
    at_once,
    in_thread,
)
from worker.queue.store import (
    RECIPIENT_LIMIT,
    Settlement,
    Spool,
    StoreError,
    StoreLocked,
    StoreNotMade,
)
from worker.queue.submission import check_submission
from worker.queue.transactions import (
    Change,
    Claim,
    NewMessage,
    Settle,
    StoredContent,
    Transactions,
    recover,
)
from worker.queue.writer import (
    SHORT_GATHER_TIME,
    Committer,
    InlineWriter,
    Operation,
    RetryDelays,
    ThreadWriter,
    store_error,
)

Args = ParamSpec("Args")
Result = TypeVar("Result")

CHUNK: Final = 1000  # messages that one transaction of a queue command changes
_CHECKPOINT_PAGES: Final = 8000  # 32 MB of WAL: what is delivered by then is never written twice
_WAL_LIMIT: Final = 64 * 1024 * 1024  # octets the WAL may keep when it was once longer
_CACHE_KIB: Final = 16 * 1024  # page cache of the writer
_READER_CACHE_KIB: Final = 2 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What can be configured about a queue."""

    message_size_limit: int = 10_240_000  # message_size_limit, octets; 0: none
    queue_minfree: int = 0  # queue_minfree, octets
    recipient_limit: int = 50_000  # most recipients of one submission

    @property
    def reserve(self) -> int:
        """Octets that must stay free when a message is accepted, as Postfix's smtpd(8) has it.

        More than queue_minfree asks for: on a disk that submissions could fill to the last block
        there would be no room for the outcomes by which it empties.
        """
        return max(self.queue_minfree, self.message_size_limit * 3 // 2)


def _ignore(_warning: str) -> None:
    """Nobody listens."""


async def open_store(
    directory: Path,
    *,
    settings: StoreSettings | None = None,
    warn: Callable[[str], None] = _ignore,
    wall: Callable[[], float] = time,
    threads: bool = True,
    retry_delays: RetryDelays | None = None,
) -> "SqliteStore":
    """Open the queue in `directory`, making it if there is none; the caller closes it.

    `warn` gets a sentence about trouble that the store deals with by itself. `wall`: when notices
    arrive. Without `threads` all work is done in the trio thread, for simulations on a virtual
    clock. Raises StoreLocked, StoreFull, StoreUnusable, StoreError; an existing queue is left as it
    was then.
    """
    call: InThread = in_thread if threads else at_once
    opening = _Opening(directory)
    try:
        database, reader = await call(opening.run)
        content = ContentDirectory(directory / "content")
        settings = settings or StoreSettings()
        space = DiskSpace(directory, directory / schema.DATABASE, settings.reserve)
        operations = Transactions(space, content, wall)
        committer = Committer(
            database, operations.committed, operations.rolled_back, space.wal_must_shrink
        )
        writer = (ThreadWriter if threads else InlineWriter)(
            committer, warn, retry_delays or RetryDelays()
        )
    except BaseException:
        opening.undo()
        raise
    return SqliteStore(opening, reader, content, space, operations, writer, settings, call)


class _Opening:
    """What an open queue holds of the system: lock and connections. Blocking."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = -1
        self.connections: list[sqlite3.Connection] = []

    def run(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Return the writer's connection and the reader's."""
        if sqlite3.sqlite_version_info < schema.OLDEST_SQLITE:
            oldest = ".".join(map(str, schema.OLDEST_SQLITE))
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: {oldest} is needed")
        try:
            if not self._directory.is_dir():
                self._make_directory()
            self._take_lock()
            path = self._directory / schema.DATABASE
            if not schema.check_database(path):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            (self._directory / "content").mkdir(mode=0o700, exist_ok=True)
            return self._connect(path)
        except sqlite3.Error as exc:
            raise store_error(exc, f"cannot open the queue {self._directory}") from exc
        except OSError as exc:
            raise StoreError(f"cannot open the queue {self._directory}: {exc.strerror}") from exc

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True)
            # Others pass through to public/, and can list nothing. What holds mail is private
            # by itself: the lock, the database, content/.
            self._directory.chmod(0o711)
        except OSError as exc:
            there = isinstance(exc, FileExistsError)
            why = os.strerror(errno.ENOTDIR) if there else exc.strerror
            raise StoreNotMade(f"cannot open the queue {self._directory}: {why}") from exc

    def undo(self) -> None:
        """Close everything and let go of the queue."""
        while self.connections:
            with suppress(sqlite3.Error):
                self.connections.pop().close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        path = self._directory / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            by = f"process {holder}" if holder else "another process"
            raise StoreLocked(f"the queue {self._directory} is in use by {by}") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _connect(self, path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        database = self._open(path, _CACHE_KIB)
        database.execute(f"PRAGMA page_size = {schema.PAGE_SIZE}")  # matters only when it is new
        (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(f"the file system of {self._directory} does not allow WAL mode")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA secure_delete = OFF")
        database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
        schema.prepare_database(database, _program())
        database.execute("BEGIN IMMEDIATE")
        recover(database)
        database.execute("COMMIT")
        names = {name for (name,) in database.execute("SELECT name FROM content_file")}
        ContentDirectory(self._directory / "content").remove_orphans(names)
        return database, self._open(path, _READER_CACHE_KIB)

    def _open(self, path: Path, cache_kib: int) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connections.append(connection)
        connection.text_factory = text_factory
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        return connection


class SqliteStore:
    """An open queue: see worker.queue.store.Store for its methods."""

    def __init__(
        self,
        opening: _Opening,
        reader: sqlite3.Connection,
        content: ContentDirectory,
        space: DiskSpace,
        operations: Transactions,
        writer: ThreadWriter | InlineWriter,
        settings: StoreSettings,
        call: InThread,
    ) -> None:
        """Use open_store()."""
        self._opening = opening
        self._reader = reader
        self._reading = trio.Lock()  # one connection, one thread at a time
        self._content = content
        self._space = space
        self._writer = writer
        self._settings = settings
        self._call = call
        self._closed = False
        soon = SHORT_GATHER_TIME
        self._submit = Operation("cannot accept the message", operations.submit, gather=soon)
        self._claim = Operation("cannot claim messages", operations.claim, gather=soon)
        self._begin = Operation("cannot begin an attempt", operations.begin)
        self._settle = Operation("cannot record outcomes", operations.settle, insists=True)
        self._finish = Operation("cannot record outcomes", operations.finish, insists=True)
        self._tell = Operation("cannot read what is in doubt", operations.tell)
        self._hold = Operation("cannot hold messages", operations.hold)
        self._release = Operation("cannot release messages", operations.release)
        self._make_due = Operation("cannot flush messages", operations.make_due)
        self._requeue = Operation("cannot requeue messages", operations.requeue)
        self._delete = Operation("cannot delete messages", operations.delete)

    async def __aenter__(self) -> Self:
        """The store itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Finish pending commits and release the queue. More often than once does no harm."""
        if self._closed:
            return
        self._closed = True
        await self._writer.aclose()
        with trio.CancelScope(shield=True):  # a reader's thread ends by itself
            async with self._reading:
                await self._call(self._opening.undo)

    # --- the way of a message

    def spool(self) -> ContentSpool:
        """A new, empty content; the caller closes it."""
        limit = self._settings.message_size_limit
        return ContentSpool(self._content, self._space, limit, self._call)

    async def submit(self, submission: Submission, content: Spool, now: float) -> str:
        """Accept a message. Raises SubmissionRefused, StoreFull, StoreError."""
        if not isinstance(content, ContentSpool):
            raise TypeError("this content was not spooled by this store")
        check_submission(submission, self._settings.recipient_limit)
        facts = await content.seal()
        data = b"" if content.name else content.in_memory()
        encoding = facts.encoding if facts.eight_bit else submission.encoding or "7bit"
        size, hops = facts.octets, content.hops
        message = NewMessage(submission, now, size, encoding, data, content.name, hops)
        await trio.lowlevel.checkpoint_if_cancelled()
        queue_id = await self._writer.perform(self._submit, message)
        content.accepted = True
        return queue_id

    async def claim(
        self, now: float, limit: int, *, recipient_limit: int = RECIPIENT_LIMIT
    ) -> list[QueuedMessage]:
        """Move due messages to ACTIVE and return them, longest due first."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._writer.perform(self._claim, Claim(now, limit, recipient_limit))

    async def next_due(self) -> float | None:
        """When the next unclaimed message becomes due; None: there is none."""
        return await self._read(next_due)

    async def begin(self, attempts: Sequence[tuple[int, Collection[int]]]) -> list[Content | None]:
        """Mark recipients in doubt, durably; the caller closes the contents."""
        await trio.lowlevel.checkpoint_if_cancelled()
        stored = await self._writer.perform(self._begin, attempts, len(attempts))
        contents: list[Content | None] = []
        try:
            for one in stored:  # no comprehension: what is open must be known if one fails
                content = None if one is None else self._open_content(one)
                contents.append(content)
        except BaseException:
            for content in contents:
                if content is not None:
                    content.close()
            raise
        return contents

    async def settle(
        self, message_id: int, settlements: Sequence[Settlement], finish: Finish | None = None
    ) -> list[str]:
        """Record outcomes, and with `finish` also end the run."""
        # No checkpoint before: an outcome that is known is recorded, whoever is cancelled.
        return await self._writer.perform(self._settle, Settle(message_id, settlements, finish))

    async def finish(self, runs: Sequence[tuple[int, Collection[int]]]) -> list[int]:
        """End runs in which all went well; the ids of messages with recipients left."""
        return await self._writer.perform(self._finish, runs, len(runs))

    async def in_doubt(self) -> list[tuple[str, str]]:
        """(queue id, address) of the attempts under way when the queue was left; each once."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._writer.perform(self._tell, None)

    # --- looking

    async def content_head(self, message_id: int, limit: int) -> bytes:
        """The first `limit` octets of the content; empty if the message is gone."""
        return await self._read(content_head, self._content, message_id, limit)

    async def read_content(self, queue_id: str) -> Content | None:
        """The content of one message; the caller closes it. None: there is no such message."""
        stored = await self._read(find_content, queue_id)
        return None if stored is None else self._open_content(stored)

    async def summaries(
        self, queue_ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[MessageSummary]:
        """Messages in order of arrival, in pages; at most SHOWN_RECIPIENTS of each one's."""
        return await self._read(summaries, queue_ids, after, limit)

    async def counts(self) -> dict[MessageState, int]:
        """How many messages there are in each state (reads them all: for people, not for loops)."""
        return await self._read(count_messages)

    # --- changing

    async def hold(self, queue_ids: Collection[str] | None) -> list[str]:
        """Put messages on hold; active ones when their run ends."""
        return await self._change(self._hold, 0.0, queue_ids)

    async def release(self, queue_ids: Collection[str] | None, now: float) -> list[str]:
        """Take messages off hold, due at `now`."""
        return await self._change(self._release, now, queue_ids)

    async def make_due(
        self, queue_ids: Collection[str] | None, now: float, *, domain: str | None = None
    ) -> list[str]:
        """Flush: waiting messages become due at `now`."""
        return await self._change(self._make_due, now, queue_ids, domain)

    async def requeue(self, queue_ids: Collection[str] | None, now: float) -> list[str]:
        """Start over, but for active messages."""
        return await self._change(self._requeue, now, queue_ids)

    async def delete(self, queue_ids: Collection[str] | None) -> list[str]:
        """Remove messages without any notice."""
        return await self._change(self._delete, 0.0, queue_ids)

    # --- parts

    async def _change(
        self,
        operation: Operation[Change, list[str]],
        now: float,
        queue_ids: Collection[str] | None,
        domain: str | None = None,
    ) -> list[str]:
        """Change messages, CHUNK by CHUNK so that deliveries go on in between."""
        selection = Selection(None if queue_ids is None else frozenset(queue_ids), domain)
        changed: list[str] = []
        position: int | None = 0
        while position is not None:
            ids, position = await self._read(select_rows, selection, position, CHUNK)
            if ids:
                some = await self._writer.perform(operation, Change(ids, now))
                changed += some
        return changed

    async def _read(
        self,
        function: Callable[Concatenate[sqlite3.Connection, Args], Result],
        *args: Args.args,
        **kwargs: Args.kwargs,
    ) -> Result:
        """Have something read in a thread. Raises StoreError."""
        async with self._reading:
            if self._closed:
                raise StoreError("the queue is closed")
            try:
                return await self._call(function, self._reader, *args, **kwargs)
            except sqlite3.Error as exc:
                raise store_error(exc, "cannot read the queue") from exc
            except OSError as exc:
                raise StoreError(f"cannot read a content: {exc.strerror}") from exc

    def _open_content(self, stored: StoredContent) -> Content | None:
        """The content, which the caller closes; None: it is gone. Raises StoreError."""
        if not stored.file:
            return InlineContent(stored.data)
        try:
            return FileContent(os.open(self._content.file(stored.file), os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None  # deleted meanwhile
        except OSError as exc:
            raise StoreError(f"cannot open a content: {exc.strerror}") from exc


def _program() -> str:
    """Our name and version, for whoever finds a queue that is too new for them."""
    try:
        return f"postrio {version('postrio')}"
    except PackageNotFoundError:  # run from a source tree
        return "postrio (source)"
