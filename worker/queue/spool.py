"""Content on its way into the queue: canonical, small ones in memory, large ones in files.

A large content is a file `content/<xx>/<name>` of the queue directory from its first block on, and
is on disk, directory entry included, before the database is told of it. A file that no row names is
a submission that was never finished; remove_orphans() takes those away when the queue is opened.
"""

import errno
import os
import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

import trio

from protocol.data import ContentFacts, ContentScanner
from protocol.hops import HopCounter
from worker.content import BLOCK_SIZE, INLINE_LIMIT
from worker.queue.store import StoreError, StoreFull, SubmissionRefused

Args = ParamSpec("Args")
Result = TypeVar("Result")

_SMALL_WAL: Final = 131_072  # octets; not worth a checkpoint
_NAME_OCTETS: Final = 10  # of randomness in a file name


class InThread(Protocol):
    """Where blocking work is done: trio.to_thread.run_sync, or at once for a simulation."""

    def __call__(
        self, function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Awaitable[Result]:
        """Call it there; return what it returns."""


class DiskSpace:
    """The room on the disk of a queue, and how much of it is spoken for. Methods block briefly.

    What was committed lies in the WAL and needs the same room once more, in the database, before
    the WAL can be written from its beginning again. And a queue empties by writing: outcomes go
    through the WAL too. So submissions stop while there still is room for both; a disk filled to
    the last block would keep its queue for ever.
    """

    def __init__(self, directory: Path, database: Path, reserve: int) -> None:
        """`reserve`: octets that submissions must leave free; 0: no check at all."""
        self._directory = directory
        self._wal = database.with_name(f"{database.name}-wal")
        self._reserve = reserve

    def check(self, wanted: int, reusable: int = 0) -> None:
        """Raise StoreFull unless a submission may write so many octets more.

        `reusable`: octets inside the database that hold nothing any more. The file never gets
        shorter, so after a jam most of the room is there and not on the disk; what fits there may
        use half of the reserve for its way through the WAL.
        """
        if not self._reserve:
            return
        growth = max(0, wanted - reusable)
        needed = self._reserve + growth if growth else self._reserve // 2
        if self._free() - self._wal_size() < needed:
            raise StoreFull(
                "not enough space left for the queue: less than queue_minfree and 1.5 times"
                f" message_size_limit would be free ({self._reserve} octets)"
            )

    def wal_must_shrink(self) -> bool:
        """True if the WAL is about to need room that there may not be later."""
        size = self._wal_size()
        return size > _SMALL_WAL and self._free() < 2 * size + self._reserve

    def _free(self) -> int:
        space = os.statvfs(self._directory)
        return space.f_bavail * space.f_frsize

    def _wal_size(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0


class ContentDirectory:
    """The files of large contents. All methods block; names come from new_name()."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def new_name(self) -> str:
        """A name that no other file has."""
        return secrets.token_hex(_NAME_OCTETS)

    def file(self, name: str) -> Path:
        """Where the content of this name is. Spread over 256 directories."""
        return self.path / name[:2] / name

    def create(self, name: str) -> int:
        """Create the file; the caller owns the descriptor. Raises OSError."""
        folder = self.file(name).parent
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self.path)
        return os.open(self.file(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def remove(self, names: Collection[str]) -> None:
        """Remove files; one that is gone already is fine. Does not raise: orphans go at start."""
        for name in names:
            with suppress(OSError):
                self.file(name).unlink()

    def remove_orphans(self, wanted: Collection[str]) -> int:
        """Remove every file that is not `wanted`; returns how many. Raises OSError."""
        orphans = 0
        with os.scandir(self.path) as folders:
            for folder in folders:
                if not folder.is_dir(follow_symlinks=False):
                    continue
                with os.scandir(folder.path) as files:
                    for file in files:
                        if file.name not in wanted:
                            Path(file.path).unlink()
                            orphans += 1
        return orphans


class ContentSpool:
    """The Spool of the SQLite store. States: taking, then sealed; closed at any time."""

    def __init__(
        self,
        directory: ContentDirectory,
        space: DiskSpace,
        size_limit: int,
        in_thread: InThread,
    ) -> None:
        """`size_limit`: octets of the canonical content (message_size_limit); 0: no limit."""
        self._directory = directory
        self._space = space
        self._size_limit = size_limit
        self._in_thread = in_thread
        self._scanner = ContentScanner()
        self._hops = HopCounter()
        self._blocks: list[bytes] = []  # not yet in a file
        self._held = 0  # octets in _blocks
        self._fd = -1
        self.name = ""  # of the file; empty: the content is in memory
        self.accepted = False  # a row names it: it is the queue's now

    async def write(self, data: bytes) -> None:
        """Take the next octets. Raises StoreFull, StoreError, SubmissionRefused (too large)."""
        # No checkpoint while it only goes to memory: at most INLINE_LIMIT octets do.
        await self._take(self._scanner.feed(data))

    async def seal(self) -> ContentFacts:
        """Everything was written. When this returns, a large content is on disk (fsync).

        Call once, before the database is told. Raises as write().
        """
        await self._take(self._scanner.finish())
        if self._fd >= 0:
            await self._in_thread(self._flush_and_sync)
        return self._scanner.facts

    @property
    def hops(self) -> int:
        """Received fields of the header."""
        return self._hops.count

    def in_memory(self) -> bytes:
        """The whole content, if `name` is empty."""
        return b"".join(self._blocks)

    async def aclose(self) -> None:
        """Forget what was spooled, unless it was accepted."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._blocks.clear()
        if self.name and not self.accepted:
            name, self.name = self.name, ""
            self._directory.remove([name])

    async def _take(self, block: bytes) -> None:
        if not block:
            return
        self._hops.feed(block)
        self._blocks.append(block)
        self._held += len(block)
        octets = self._scanner.facts.octets
        if self._size_limit and octets > self._size_limit:
            raise SubmissionRefused(
                f"message content is larger than message_size_limit ({self._size_limit} octets)"
            )
        if self._held > (BLOCK_SIZE if self._fd >= 0 else INLINE_LIMIT):
            await self._in_thread(self._flush)

    def _flush(self) -> None:
        blocks, self._blocks, self._held = self._blocks, [], 0
        self._space.check(sum(map(len, blocks)))
        try:
            if self._fd < 0:
                # Its name is known before it exists: whatever happens next, aclose() removes it.
                self.name = self._directory.new_name()
                self._fd = self._directory.create(self.name)
            for block in blocks:
                _write_all(self._fd, block)
        except OSError as exc:
            raise _spool_error(exc) from exc

    def _flush_and_sync(self) -> None:
        self._flush()
        try:
            os.fsync(self._fd)
            sync_directory(self._directory.file(self.name).parent)
        except OSError as exc:
            raise _spool_error(exc) from exc


async def at_once(
    function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Call `function` here and now: the InThread of a simulation."""
    await trio.lowlevel.checkpoint()
    return function(*args, **kwargs)


async def in_thread(
    function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Call `function` in a thread of trio's; not cancellable: it owns a file meanwhile."""
    return await trio.to_thread.run_sync(lambda: function(*args, **kwargs))


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _spool_error(error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("no space left for the content of the message")
    return StoreError(f"cannot write the content of the message: {error.strerror}")
