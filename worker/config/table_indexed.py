"""The types hash, btree, cdb and lmdb: indexed files that postmap(1) makes of a text.

The file is opened for each lookup, read-only, and in the loop: that costs some microseconds, and
sees a file that was replaced or written anew. postmap writes hash, btree and lmdb files in place,
under a lock; a lookup waits for that. Keys and values may end in NUL, or not: postmap decides it
when it makes the file, so both are looked for, as in Postfix.

A file of type hash or btree is read as a whole when it has changed (`index_berkeley.py` says why).
"""

import fcntl
import functools
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from worker.config.index_berkeley import Berkeley
from worker.config.index_cdb import Cdb
from worker.config.index_lmdb import Lmdb
from worker.config.index_octets import CorruptIndexError, Index, Octets
from worker.config.table import Table, TableConfigError, TableError

LOCK_LIMIT: Final = 10.0  # seconds that somebody else may be writing
LOOK_AGAIN: Final = 0.05  # seconds between two looks whether the file is free

Lock = Callable[[int], None]  # (descriptor); raises BlockingIOError while somebody writes


def _no_lock(_descriptor: int) -> None:
    """A new file takes the place of the old one: nobody writes into one that we have open."""


def _flock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _record_lock(descriptor: int) -> None:
    # Of this opening of the file, not of the process: a lock of the old kind would be gone as soon
    # as another lookup closes the same file. struct flock: type, whence, start, length, pid.
    whole_file = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole_file)


@dataclass(frozen=True, slots=True)
class Format:
    """How a type keeps its entries, and how who writes them keeps others away."""

    suffix: str  # of the file, after the name of the table
    read: Callable[[Octets], Index]
    lock: Lock
    kept: bool  # what was read is good for as long as the file does not change, open or not


FORMATS: Final[Mapping[str, Format]] = {
    "btree": Format(".db", functools.partial(Berkeley, kind="btree"), _flock, kept=True),
    "cdb": Format(".cdb", Cdb, _no_lock, kept=False),
    "hash": Format(".db", functools.partial(Berkeley, kind="hash"), _flock, kept=True),
    "lmdb": Format(".lmdb", Lmdb, _record_lock, kept=False),
}

_Signature = tuple[int, int, int, int]


class Indexed(Table):
    """`hash:/file` and its kin; keys in any case of letters."""

    def __init__(self, spec: str, name: str, file_format: Format) -> None:
        """Raises TableConfigError."""
        super().__init__(spec)
        self._text = Path(name)  # what postmap made the file of; it may be gone
        if not self._text.is_absolute():
            raise TableConfigError(
                f'"{name}" depends on the working directory',
                f"a path from the root, as $config_directory/{name}",
            )
        self._path = Path(f"{name}{file_format.suffix}")
        self._format = file_format
        self._kept: tuple[_Signature, Index] | None = None
        try:
            with self._opened() as descriptor:
                file_format.lock(descriptor)
                self._index(descriptor)
        except BlockingIOError:
            pass  # somebody writes it; the first lookup will wait for the end of that
        except (OSError, CorruptIndexError) as exc:
            raise TableConfigError(
                f"{self._path} cannot be read: {_why(exc)}", f"a file made by: postmap {spec}"
            ) from exc

    async def lookup(self, key: str) -> str | None:
        """See Table. Raises TableError while the file cannot be read."""
        octets = key.casefold().encode("utf-8", "surrogateescape")
        try:
            with self._opened() as descriptor:
                await self._lock(descriptor)
                index = self._index(descriptor)
                for each in (octets + b"\0", octets):
                    if (value := index.find(each)) is not None:
                        return _shown(value)
        except (OSError, CorruptIndexError) as exc:
            raise TableError(f"{self.spec}: {self._path} cannot be read: {_why(exc)}") from exc
        except UnicodeError as exc:
            raise TableError(f"{self.spec}: a key or value that is not UTF-8 text") from exc
        return None

    def entries(self) -> Mapping[str, str]:
        """See Table: of types that are read as a whole. What it shows is what was read last."""
        if self._kept is None or not isinstance(self._kept[1], Berkeley):
            return {}
        try:
            return {_shown(key): _shown(value) for key, value in self._kept[1].values.items()}
        except UnicodeError as exc:
            raise TableError(f"{self.spec}: a key or value that is not UTF-8 text") from exc

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Table; in Postfix's words."""
        try:
            is_older = self._path.stat().st_mtime < self._text.stat().st_mtime
        except OSError:
            return ()
        return (f"database {self._path} is older than source file {self._text}",) * is_older

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    async def _lock(self, descriptor: int) -> None:
        """Wait until nobody writes. Raises TableError after LOCK_LIMIT."""
        for _ in range(int(LOCK_LIMIT / LOOK_AGAIN)):
            try:
                self._format.lock(descriptor)
            except BlockingIOError:
                # Asked again and again: to wait in the system call would take a thread, and who
                # waits there cannot be cancelled.
                await trio.sleep(LOOK_AGAIN)
            else:
                return
        raise TableError(f"{self.spec}: {self._path} is locked by who writes it")

    def _index(self, descriptor: int) -> Index:
        """Raises CorruptIndexError, OSError."""
        if not self._format.kept:
            return self._format.read(Octets(descriptor))
        status = os.fstat(descriptor)
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._kept is None or self._kept[0] != signature:
            self._kept = None  # not two of them in memory at a time
            self._kept = signature, self._format.read(Octets(descriptor))
        return self._kept[1]


def _shown(octets: bytes) -> str:
    """The text up to a NUL. Raises UnicodeError."""
    return octets.partition(b"\0")[0].decode("utf-8")


def _why(exc: OSError | CorruptIndexError) -> str:
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)
