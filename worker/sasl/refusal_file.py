"""Refused logins that the processes of one host share, in a file (smtp_sasl_auth_cache_name).

A SQLite database that only its owner can read. It does not give passwords away: a refused login is
kept under a digest that is slow to make, of server, user and password, with a salt of the
file. A trial, which is a row for as long as one process tries a login, has no password in it at
all, for that one may be right.

A process that dies leaves its trials behind; the next one that wants the same login sees that, and
tries itself. Whatever is lost with the file costs one more attempt.

Calls may wait for other processes, up to BUSY seconds: they are made in threads, one at a time.
"""

import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Final, TypeVar

from worker import shared_file
from worker.shared_file import claim, open_or_renew, use_wal

FORMAT: Final = 1  # of the rows; a file of another format begins anew
BUSY: Final = 5.0  # seconds that a call may wait for another process
ROWS: Final = 10_000  # refusals; the oldest go first
TEXT: Final = 1_000  # characters of a reply that are kept
TRIAL: Final = 100.0  # seconds after which others try, too, although somebody seems to be at it
ROUNDS: Final = 200_000  # of PBKDF2 (RFC 8018): some 100 ms for each guess

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the server said, without our secret: enhanced status and the whole reply."""

    dsn: str
    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """What a login is called in the file. Neither part tells the secret."""

    trial: bytes  # of server and user
    refusal: bytes = field(repr=False)  # of the secret, too


class RefusalFile:
    """An open file, shared with other processes. Calls raise shared_file.TROUBLE."""

    def __init__(self, path: Path, lifetime: float, wall: Callable[[], float] = time) -> None:
        """Open or make it. `lifetime`: seconds that a refusal counts. Raises OSError too."""
        self.path = path
        self._lifetime = lifetime
        self._wall = wall
        self._owner = secrets.randbits(62)  # whose trials are ours
        self._lock = threading.Lock()  # whoever has it uses the database
        self._closed = False
        claim(path)
        self._database: sqlite3.Connection | None = sqlite3.connect(
            path, timeout=shared_file.OPENING, isolation_level=None, check_same_thread=False
        )
        try:
            self._salt = self._prepare(self._database)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def opened(cls, path: Path, lifetime: float, wall: Callable[[], float] = time) -> "RefusalFile":
        """The file, made anew if it is damaged. Raises OSError, shared_file.TROUBLE."""
        return open_or_renew(path, lambda: cls(path, lifetime, wall))

    def close(self) -> None:
        """Let go of the file; calls do nothing from now on. Waits for nobody."""
        self._closed = True
        if self._lock.acquire(blocking=False):  # else whoever has it looks, when done
            try:
                database, self._database = self._database, None
                if database is not None:
                    with suppress(sqlite3.Error):
                        database.close()
            finally:
                self._lock.release()

    def name(self, server: str, login: tuple[str, str], secret: str) -> Name:
        """What a login is called: server name, (user, authorization identity), secret. Slow."""
        who = packed(server.lower(), *login)
        return Name(
            trial=hashlib.sha256(self._salt + who).digest(),
            refusal=hashlib.pbkdf2_hmac("sha256", who + packed(secret), self._salt, ROUNDS),
        )

    def find(self, name: Name) -> tuple[Refusal, float] | None:
        """A refusal that counts, and for how many seconds yet."""
        return self._do(lambda database: self._find(database, name))

    def begin(self, name: Name) -> tuple[Refusal, float] | bool:
        """A refusal as find() has it; True: it is ours to try; False: another process tries.

        After True, end() is due.
        """

        def work(database: sqlite3.Connection) -> tuple[Refusal, float] | bool:
            found = self._find(database, name)
            if found is not None:
                return found
            now = self._wall()
            row = database.execute(
                "SELECT process, since FROM trial WHERE name = ?", (name.trial,)
            ).fetchone()
            match row:
                case (int(process), float(since)) if 0 <= now - since < TRIAL and _lives(process):
                    return False
            database.execute(
                "INSERT OR REPLACE INTO trial VALUES (?, ?, ?, ?)",
                (name.trial, os.getpid(), self._owner, now),
            )
            return True

        done = self._do(work, writes=True)
        return True if done is None else done

    def end(self, name: Name, refusal: Refusal | None, *, accepted: bool) -> None:
        """A trial of ours is over. `refusal`: what was said, if that was no for good."""

        def work(database: sqlite3.Connection) -> None:
            if refusal is not None:
                row = (name.refusal, self._wall(), refusal.dsn, refusal.text[:TEXT])
                database.execute("INSERT OR REPLACE INTO refusal VALUES (?, ?, ?, ?)", row)
                self._purge(database)
            elif accepted:
                database.execute("DELETE FROM refusal WHERE name = ?", (name.refusal,))
            trial = (name.trial, self._owner)
            database.execute("DELETE FROM trial WHERE name = ? AND owner = ?", trial)

        self._do(work, writes=True)

    def _prepare(self, database: sqlite3.Connection) -> bytes:
        """The salt."""
        use_wal(database)
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA secure_delete = ON")
        if database.execute("PRAGMA user_version").fetchone() != (FORMAT,):
            with _transaction(database):
                # Again: of processes that start together, one makes the tables.
                if database.execute("PRAGMA user_version").fetchone() != (FORMAT,):
                    _make_tables(database)
        database.execute(f"PRAGMA busy_timeout = {int(BUSY * 1000)}")
        salt = database.execute("SELECT value FROM salt").fetchone()
        if salt is None or not isinstance(salt[0], bytes):
            raise sqlite3.DatabaseError("there is no salt in it")
        return salt[0]

    def _find(self, database: sqlite3.Connection, name: Name) -> tuple[Refusal, float] | None:
        row = database.execute(
            "SELECT since, dsn, text FROM refusal WHERE name = ?", (name.refusal,)
        ).fetchone()
        match row:
            case (float(since), str(dsn), str(text)):
                age = self._wall() - since
                # A refusal of the future is one of a clock that was set back since: who knows.
                if 0 <= age < self._lifetime:
                    return Refusal(dsn, text), self._lifetime - age
        return None

    def _purge(self, database: sqlite3.Connection) -> None:
        """Only what counts, and not too much of it. Refusals are rare, and so is this."""
        now = self._wall()
        database.execute(
            "DELETE FROM refusal WHERE since <= ? OR since > ?", (now - self._lifetime, now)
        )
        database.execute(
            "DELETE FROM refusal WHERE name IN"
            " (SELECT name FROM refusal ORDER BY since DESC LIMIT -1 OFFSET ?)",
            (ROWS,),
        )
        database.execute("DELETE FROM trial WHERE since <= ? OR since > ?", (now - TRIAL, now))

    def _do(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T | None:
        """What `work` returns; None: the file is closed."""
        try:
            with self._lock:
                database = self._database
                if database is None or self._closed:
                    return None
                if not writes:
                    return work(database)
                with _transaction(database):
                    return work(database)
        finally:
            if self._closed:
                self.close()


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # it may be over already
            database.execute("ROLLBACK")
        raise


def _make_tables(database: sqlite3.Connection) -> None:
    for table in ("salt", "refusal", "trial"):
        database.execute(f"DROP TABLE IF EXISTS {table}")
    database.execute("CREATE TABLE salt (value BLOB NOT NULL)")
    database.execute("INSERT INTO salt VALUES (?)", (secrets.token_bytes(32),))
    database.execute(
        "CREATE TABLE refusal (name BLOB PRIMARY KEY, since REAL NOT NULL, dsn TEXT NOT NULL,"
        " text TEXT NOT NULL) WITHOUT ROWID"
    )
    database.execute("CREATE INDEX oldest ON refusal (since)")
    database.execute(
        "CREATE TABLE trial (name BLOB PRIMARY KEY, process INTEGER NOT NULL,"
        " owner INTEGER NOT NULL, since REAL NOT NULL) WITHOUT ROWID"
    )
    database.execute(f"PRAGMA user_version = {FORMAT}")


def packed(*texts: str) -> bytes:
    """Texts as octets, so that no two lists of them look alike."""
    parts = [text.encode("utf-8", "surrogateescape") for text in texts]
    return b"".join(b"%d:%s" % (len(part), part) for part in parts)


def _lives(process: int) -> bool:
    """Whether there is such a process, perhaps another one by now: TRIAL bounds the mistake."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the other: no process has such a number
        return False
    except OSError:
        pass  # somebody else's
    return True
