"""Group commit: whatever waits is done in one transaction, and one fsync is paid for all of it.

A job is an operation and one request for it. The writer takes all waiting jobs, calls each
operation once with all its requests, commits, and only then tells the callers, all of them with a
single wake-up of the trio loop. While one group is being written the next one gathers, so the
group grows with the load and no timer is needed.

If a group fails, it is rolled back and its jobs are tried one by one, each in a transaction of its
own: one bad job costs the others an fsync, not their result. (A savepoint for each job would do the
same at a price that every good group pays.)

A job of an operation that *insists* is never given up while the disk is full or failing: it is
parked and tried again with growing delays, until the writer is closed.
"""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NoReturn, TypeVar

import trio

from worker.queue.store import StoreError, StoreFull, StoreUnusable

Request = TypeVar("Request")
Result = TypeVar("Result")

BUSY_GROUP: Final = 4  # messages in one group that tell of a crowd
GATHER_TIME: Final = 0.004  # seconds in which a crowd gathers for the next group
# The same where all who come have just been answered: soon they are back, and wait for us alone.
SHORT_GATHER_TIME: Final = 0.001
GROUP_LIMIT: Final = 1000  # jobs in one transaction: bounds what a crowd makes everybody wait

_TRANSIENT: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True, eq=False)
class Operation(Generic[Request, Result]):
    """Something to do in a transaction, for many requests at once: one result for each, in order.

    Several requests of one group may be given to one call. `run` may raise; then none of them has
    happened.
    """

    name: str  # what it does, for messages: "settle"
    run: Callable[[sqlite3.Connection, Sequence[Request]], list[Result]]
    insists: bool = False
    gather: float = GATHER_TIME  # seconds; in a group the longest counts


@dataclass(slots=True, eq=False)
class _Job:
    operation: Operation[Any, Any]
    request: Any
    messages: int = 1  # that it is for
    task: trio.lowlevel.Task | None = None  # who waits; None: nobody any more
    result: Any = None
    error: BaseException | None = None
    parked: bool = False  # waits for better times; the caller may leave. Owned by the trio thread
    raise_cancel: Callable[[], NoReturn] | None = None

    def abort(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        """The caller is cancelled: a job that is not parked will be done in a moment."""
        if self.parked:
            self.task = None
            return trio.lowlevel.Abort.SUCCEEDED
        self.raise_cancel = raise_cancel
        return trio.lowlevel.Abort.FAILED

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


def store_error(error: sqlite3.Error, doing: str) -> StoreError:
    """The same failure in words for an operator."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"{doing}: no space left for the queue")
    if code in _DAMAGED:
        return StoreUnusable(f"{doing}: the queue database is damaged: {error}")
    return StoreError(f"{doing}: {error}")


def is_transient(error: BaseException | None) -> bool:
    """True if the same job can succeed later: no space, or a disk that fails now."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT
    return isinstance(error, StoreFull)


@dataclass(slots=True)
class Committer:
    """Runs groups of jobs against the database; knows nothing of threads or trio."""

    database: sqlite3.Connection
    committed: Callable[[], None]  # called after each commit
    rolled_back: Callable[[], None]  # called after each roll-back
    wal_must_shrink: Callable[[], bool]  # asked after each commit: space is short

    def commit(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Do these jobs. Afterwards each has its result or error, but those returned.

        Those returned insist and met a full or failing disk; their `error` says which.
        """
        error = self._transact(jobs)
        if error is None:
            return []
        if len(jobs) > 1:
            return [parked for job in jobs for parked in self.commit([job])]
        [job] = jobs
        if is_transient(error):
            self._checkpoint()  # what the WAL takes may be all the room that is missing
            error = self._transact(jobs)
            if error is None:
                return []
        job.error = error
        if job.operation.insists and is_transient(error):
            return [job]
        if isinstance(error, sqlite3.Error):
            job.error = store_error(error, job.operation.name)
            job.error.__cause__ = error
        return []

    def _transact(self, jobs: Sequence[_Job]) -> BaseException | None:
        groups: dict[Operation[Any, Any], list[_Job]] = {}
        for job in jobs:
            groups.setdefault(job.operation, []).append(job)
        try:
            self.database.execute("BEGIN IMMEDIATE")
            for operation, members in groups.items():
                results = operation.run(self.database, [job.request for job in members])
                for job, result in zip(members, results, strict=True):
                    job.result = result
                    job.error = None
            self.database.execute("COMMIT")
        # Whatever it is, somebody waits for it: the callers get it, the writer must live.
        except BaseException as exc:  # noqa: BLE001
            with suppress(sqlite3.Error):
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")
            self.rolled_back()
            return exc
        self.committed()
        if self.wal_must_shrink():
            self._checkpoint()
        return None

    def _checkpoint(self) -> None:
        """Empty the WAL, if there is room for what it holds; the next time will do as well."""
        with suppress(sqlite3.Error):
            self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@dataclass(slots=True)
class RetryDelays:
    """Seconds between attempts of what a full disk stopped: doubled each time, up to `longest`."""

    first: float = 1.0
    longest: float = 60.0
    _next: float = field(init=False, default=0.0)

    def next(self) -> float:
        """How long to wait now."""
        self._next = min(self._next * 2, self.longest) or self.first
        return self._next

    def reset(self) -> None:
        """Things are well again."""
        self._next = 0.0


class ThreadWriter:
    """Does the jobs in one thread of its own. Belongs to the trio loop that made it."""

    def __init__(
        self, committer: Committer, warn: Callable[[str], None], delays: RetryDelays
    ) -> None:
        """`warn` gets a sentence, in the trio thread; it must neither block nor raise."""
        self._committer = committer
        self._warn = warn
        self._delays = delays
        self._token = trio.lowlevel.current_trio_token()
        self._incoming: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: stop
        self._closed = False
        self._group: list[_Job] = []  # under way; the writer thread's
        self._thread = threading.Thread(target=self._work, name="queue writer", daemon=True)
        self._thread.start()

    async def perform(
        self, operation: Operation[Request, Result], request: Request, messages: int = 1
    ) -> Result:
        """Have it done; return its result once that is durable. Raises StoreError.

        `messages`: how many the request is for.

        Once handed over it happens, so a cancelled caller still waits for the result (a fraction
        of a second), unless the job is parked: then the caller leaves and the job stays.
        """
        if self._closed:
            raise StoreError(f"{operation.name}: the queue is closed")
        job = _Job(operation, request, messages, trio.lowlevel.current_task())
        self._incoming.put(job)
        await trio.lowlevel.wait_task_rescheduled(job.abort)
        if job.parked and job.raise_cancel is not None:
            job.raise_cancel()
        result: Result = job.outcome()
        return result

    async def aclose(self) -> None:
        """Do what was handed over, then end the thread. What is parked gets one more try."""
        if not self._closed:
            self._closed = True
            self._incoming.put(None)
        # Shielded: the thread ends by itself, and who closes the database next must know it has.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join)

    # --- in the trio thread

    def _wake(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            if job.task is not None:
                job.parked = False
                trio.lowlevel.reschedule(job.task)

    def _park(self, jobs: Sequence[_Job], reason: str, delay: float) -> None:
        self._warn(f"{reason}; {len(jobs)} waiting, next try in {delay:g} seconds")
        for job in jobs:
            job.parked = True
            if job.raise_cancel is not None and job.task is not None:
                task, job.task = job.task, None
                trio.lowlevel.reschedule(task)

    # --- in the writer thread

    def _work(self) -> None:
        try:
            self._work_on()
        # A bug in this module: without a writer nobody may be left waiting for one.
        except BaseException as exc:  # noqa: BLE001
            self._closed = True
            jobs, _ = self._take(0.001)
            for job in (*self._group, *jobs):
                job.error = StoreError(f"{job.operation.name}: the queue's writer failed: {exc!r}")
            self._tell(self._warn, f"the queue's writer failed: {exc!r}")
            self._tell(self._wake, [*self._group, *jobs])

    def _work_on(self) -> None:
        parked: list[_Job] = []
        delay: float | None = None
        closing = False
        busy = False
        gather = GATHER_TIME
        while not closing:
            if busy:
                # More are on their way, and nobody waits who could go on alone. One larger group
                # costs one fsync, and asleep we need no waking for each of its jobs.
                time.sleep(gather)
            jobs, closing = self._take(delay)
            waiting = {id(job) for job in parked}
            group = self._group = [*parked, *jobs]
            busy = sum(job.messages for job in group) >= BUSY_GROUP
            gather = max((job.operation.gather for job in group), default=GATHER_TIME)
            parked = self._committer.commit(group) if group else []
            failed = {id(job) for job in parked}
            self._group = parked
            self._tell(self._wake, [job for job in group if id(job) not in failed])
            if not parked:
                delay = None
                self._delays.reset()
            elif not closing and (delay is None or not jobs or failed - waiting):
                delay = self._delays.next()
                self._tell(self._park, parked, _reason(parked), delay)
        self._give_up(parked)

    def _take(self, delay: float | None) -> tuple[list[_Job], bool]:
        """Wait for jobs, at most `delay` seconds; also whether they are the last."""
        jobs: list[_Job] = []
        with suppress(queue.Empty):
            job = self._incoming.get(timeout=delay)
            while job is not None:
                jobs.append(job)
                if len(jobs) == GROUP_LIMIT:
                    return jobs, False
                job = self._incoming.get_nowait()
            return jobs, True
        return jobs, False

    def _give_up(self, parked: Sequence[_Job]) -> None:
        if not parked:
            return
        text = f"{_reason(parked)}; the queue closes with {len(parked)} unrecorded"
        for job in parked:
            job.error = StoreFull(text)
        self._tell(self._warn, text)
        self._tell(self._wake, parked)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(trio.RunFinishedError):  # nobody is left to be told
            self._token.run_sync_soon(function, *args)


class InlineWriter:
    """Does each job where it stands, in the trio thread: no thread, so one seed is one run.

    For simulations on a virtual clock. A slow disk stalls the loop.
    """

    def __init__(
        self, committer: Committer, warn: Callable[[str], None], delays: RetryDelays
    ) -> None:
        """As ThreadWriter."""
        self._committer = committer
        self._warn = warn
        self._delays = delays
        self._closed = False

    async def perform(
        self, operation: Operation[Request, Result], request: Request, messages: int = 1
    ) -> Result:
        """As ThreadWriter.perform(), but a cancelled caller takes a parked job with it."""
        if self._closed:
            raise StoreError(f"{operation.name}: the queue is closed")
        job = _Job(operation, request, messages)
        while parked := self._committer.commit([job]):
            delay = self._delays.next()
            self._warn(f"{_reason(parked)}; next try in {delay:g} seconds")
            await trio.sleep(delay)
        self._delays.reset()
        # Not a full checkpoint: it is done, and a cancelled caller must learn so.
        await trio.lowlevel.cancel_shielded_checkpoint()
        result: Result = job.outcome()
        return result

    async def aclose(self) -> None:
        """Refuse further jobs."""
        self._closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()


Writer = ThreadWriter | InlineWriter


def _reason(parked: Sequence[_Job]) -> str:
    job = parked[0]
    error = job.error
    if isinstance(error, sqlite3.Error):
        error = store_error(error, job.operation.name)
    return str(error)
