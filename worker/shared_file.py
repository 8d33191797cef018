"""A SQLite database that the processes of one user share, and nobody else may see.

What such files hold is a cache and no more, so a damaged one is made anew. Each user of this module
has its own tables in a file of its own: `tls/session_file.py`, `sasl/refusal_file.py`.
"""

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

# What the calls of SQLite raise. Its errors quote a damaged file, and what is no text in them makes
# Python raise the second.
TROUBLE: Final = (sqlite3.Error, UnicodeDecodeError)
OPENING: Final = 5.0  # seconds to wait for others while a file is opened: they often start together

T = TypeVar("T")


def open_or_renew(path: Path, make: Callable[[], T]) -> T:
    """What `make` makes of the file; if that is damaged, of a new one.

    `make` calls claim() before anything else. Raises OSError, TROUBLE.
    """
    try:
        return make()
    except sqlite3.OperationalError:
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        _remove(path)
        return make()


def claim(path: Path) -> None:
    """Make sure that the file is there, and that it is ours alone. Raises OSError.

    A file that is there is never opened here: SQLite may have it open in this process, and to close
    any other descriptor of it would give up SQLite's locks on it (fcntl(2)).
    """
    folder = path.parent.stat()
    if folder.st_uid not in {0, os.geteuid()} or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users may write to the directory {path.parent}")
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise PermissionError("not a plain file of its own")
    if found.st_uid != os.geteuid():
        raise PermissionError("it belongs to another user")
    path.chmod(0o600)  # the files that SQLite puts beside it get the same


def use_wal(database: sqlite3.Connection) -> None:
    """Let readers and a writer not wait for each other. Raises sqlite3.Error.

    Two who change to it at once do not wait for each other: the second one finds it done.
    """
    with suppress(sqlite3.OperationalError):
        database.execute("PRAGMA journal_mode = WAL")


def is_busy(error: Exception) -> bool:
    """Somebody else was at it: the next time it may work."""
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def in_words(error: Exception) -> str:
    """What is wrong, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
