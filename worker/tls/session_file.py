"""TLS sessions that the processes of one host share, in a file: each may resume what one has made.

A SQLite database that only its owner can read, because a session's secrets are in it. It is a cache
and no more: a busy, damaged or missing file is a session not found, and whatever was lost with it
costs a full handshake. All calls are short and are made in the loop.

A row is believed only as a whole: its digest covers key, time, session and verdict, for a session
with another one's verdict would be a certificate that nobody has seen.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time
from typing import Final, TypeVar

from worker import shared_file
from worker.shared_file import TROUBLE, claim, in_words, is_busy, open_or_renew, use_wal
from worker.status.events import Emit, Noted, Warned
from worker.tls.policy import TlsFacts, Trust
from worker.tls.session_der import can_encode

FORMAT: Final = 1  # of the rows; a file of another format begins anew
BUSY: Final = 0.005  # seconds that a call may wait for another process
ROWS: Final = 10_000  # about; the oldest go first
PURGE_EVERY: Final = 32  # saves
# Rows that go at one time: more than have come since the last time, and done in a few milliseconds.
PURGED: Final = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """What another process remembers."""

    proved: float  # seconds since the epoch
    der: bytes = field(repr=False)
    facts: TlsFacts


class SessionFile:
    """An open file, shared with other processes. No call raises for what is wrong with it."""

    def __init__(
        self, path: Path, timeout: float, emit: Emit, wall: Callable[[], float] = time
    ) -> None:
        """Open or make it. Raises OSError, shared_file.TROUBLE. See opened()."""
        self._path = path
        self._wall = wall
        self._timeout = timeout  # seconds that a row is good for
        self._emit = emit
        self._saves = 0
        claim(path)
        self._database: sqlite3.Connection | None = sqlite3.connect(
            path, timeout=shared_file.OPENING, isolation_level=None
        )
        try:
            self._prepare(self._database)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def opened(
        cls, path: Path, timeout: float, emit: Emit, wall: Callable[[], float] = time
    ) -> "SessionFile | None":
        """The file, made anew if it is damaged; None, and told why: it cannot be used."""
        if not can_encode():
            emit(
                Noted(
                    f"{path}: not used: the installed cryptography package cannot write "
                    "TLS sessions; each process remembers its own"
                )
            )
            return None
        try:
            return open_or_renew(path, lambda: cls(path, timeout, emit, wall))
        except (OSError, *TROUBLE) as exc:
            emit(Warned(f"{path}: {in_words(exc)}: TLS sessions are not shared between processes"))
            return None

    def close(self) -> None:
        """Nothing is found or saved from now on."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def find(self, key: str) -> Row | None:
        """What is kept under `key`, however old."""
        name = _name(key)

        def select(database: sqlite3.Connection) -> object:
            return database.execute(
                "SELECT proved, der, facts, digest FROM session WHERE name = ?", (name,)
            ).fetchone()

        return _row(name, self._try(select))

    def save(self, key: str, proved: float, der: bytes, facts: TlsFacts) -> None:
        """Keep it in place of what is there. `proved`: seconds since the epoch."""
        name, text = _name(key), _facts_text(facts)
        row = (name, proved, der, text, _digest(name, proved, der, text))
        self._try(lambda d: d.execute("INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?)", row))
        self._saves += 1
        if self._saves % PURGE_EVERY == 0:
            self._try(self._purge)

    def forget(self, key: str) -> None:
        """Keep nothing under `key`."""
        name = _name(key)
        self._try(lambda d: d.execute("DELETE FROM session WHERE name = ?", (name,)))

    def _prepare(self, database: sqlite3.Connection) -> None:
        # Nothing here has to survive a crash of the machine; one of a process harms no WAL.
        use_wal(database)
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA secure_delete = ON")
        if database.execute("PRAGMA user_version").fetchone() != (FORMAT,):
            database.executescript(
                "BEGIN IMMEDIATE;"
                "DROP TABLE IF EXISTS session;"
                "CREATE TABLE session (name BLOB PRIMARY KEY, proved REAL NOT NULL,"
                " der BLOB NOT NULL, facts TEXT NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;"
                "CREATE INDEX oldest ON session (proved);"
                f"PRAGMA user_version = {FORMAT};"
                "COMMIT"
            )
        # A file that is there is opened in a running loop, too, by a reload: from here on nobody is
        # waited for.
        database.execute(f"PRAGMA busy_timeout = {int(BUSY * 1000)}")
        try:
            self._purge(database)
        except sqlite3.OperationalError as exc:
            if not is_busy(exc):
                raise

    def _purge(self, database: sqlite3.Connection) -> None:
        """Some rows of those that are too old, or too many, or of the future."""
        now = self._wall()
        some = "DELETE FROM session WHERE name IN (SELECT name FROM session"
        for when, limit in (("proved < ?", now - self._timeout), ("proved > ?", now)):
            database.execute(f"{some} WHERE {when} LIMIT ?)", (limit, PURGED))
        (rows,) = database.execute("SELECT count(*) FROM session").fetchone()
        if rows > ROWS:
            database.execute(f"{some} ORDER BY proved LIMIT ?)", (min(rows - ROWS, PURGED),))

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` returns; None: it could not be done, which matters to nobody."""
        if self._database is None:
            return None
        try:
            return work(self._database)
        except TROUBLE as exc:
            if not is_busy(exc):
                self._emit(
                    Warned(
                        f"{self._path}: {in_words(exc)}: "
                        "TLS sessions are no longer shared between processes"
                    )
                )
                self.close()
            return None


def _name(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _digest(name: bytes, proved: float, der: bytes, facts: str) -> bytes:
    digest = hashlib.sha256()
    for part in (name, repr(proved).encode(), der, facts.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _facts_text(facts: TlsFacts) -> str:
    return json.dumps({**asdict(facts), "trust": facts.trust.value, "resumed": False})


def _row(name: bytes, found: object) -> Row | None:
    """The row as read, if it is one that save() has written."""
    if not isinstance(found, tuple):
        return None
    match found:
        case (float(proved), bytes(der), str(text), bytes(digest)) if digest == _digest(
            name, proved, der, text
        ):
            facts = _facts(text)
            return None if facts is None else Row(proved, der, facts)
    return None


def _facts(text: str) -> TlsFacts | None:
    """What _facts_text() was given; None: another release of ours was given something else."""
    try:
        values = json.loads(text)
        values["trust"] = Trust(values["trust"])
        return TlsFacts(**values)
    except (ValueError, TypeError, KeyError):
        return None
