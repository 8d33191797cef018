"""The database of a queue: its tables, their version, and how an older one becomes a current one.

`application_id` says that a file is a queue of ours, `user_version` which schema it has. A new
schema means: a higher SCHEMA_VERSION, and one more entry in MIGRATIONS, keyed by the version it
starts from. Nothing here knows what the rows mean: that is in rows.py and transactions.py.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from worker.queue.store import StoreError, StoreUnusable

APPLICATION_ID: Final = 0x706F5351  # "poSQ"
SCHEMA_VERSION: Final = 2
OLDEST_SQLITE: Final = (3, 37, 0)  # STRICT tables; RETURNING came in 3.35
PAGE_SIZE: Final = 4096  # octets; SQLite's default, of which DiskSpace should be sure
DATABASE: Final = "queue.sqlite3"
_MAGIC: Final = b"SQLite format 3\0"

# Failures that say nothing about what is in the file. Whatever else comes from reading a file that
# begins as a database is damage: a page of garbage can give almost any other error.
_PASSING: Final = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY),
    }
)

# Message states as stored; records.MessageState has the names. The numbers matter: `state < 2` is
# "waits for its time" and the condition of the index that claim() and next_due() live from.
INCOMING, DEFERRED, ACTIVE, HOLD = range(4)

UNTOLD: Final = 2  # recipient.begun: an attempt was under way when we were killed, not yet logged

# A message takes the row ids id .. last of one sequence: its own, then one for each recipient. So
# its recipients are a range of the recipient table's own key, and no further index is needed.
SCHEMA: Final = (
    """CREATE TABLE sequence (
        next INTEGER NOT NULL      -- the next row id to hand out; none is ever handed out twice
    ) STRICT""",
    "INSERT INTO sequence VALUES (1)",
    """CREATE TABLE made_by (
        version TEXT NOT NULL      -- the program that wrote this schema, for the error message
    ) STRICT""",
    """CREATE TABLE message (
        id INTEGER PRIMARY KEY,
        last INTEGER NOT NULL,     -- its recipients are the rows above id, up to this one
        queue_id TEXT NOT NULL,
        state INTEGER NOT NULL,
        hold INTEGER NOT NULL,     -- 1: goes on hold when the run under way ends
        next_attempt REAL NOT NULL,
        retry_at REAL,             -- when what this pass deferred is due; null: nothing yet
        attempts INTEGER NOT NULL, -- passes over all recipients that have ended
        warned INTEGER NOT NULL,
        notice INTEGER NOT NULL,
        arrival REAL NOT NULL,
        size INTEGER NOT NULL,
        encoding TEXT NOT NULL,
        options INTEGER NOT NULL,
        ret INTEGER NOT NULL,
        sender TEXT NOT NULL,
        envelope_id TEXT NOT NULL,
        client TEXT NOT NULL,      -- JSON, empty: nothing known
        hops INTEGER NOT NULL DEFAULT 0,  -- Received fields of its header
        probe INTEGER NOT NULL DEFAULT 0  -- 1: only the addresses are tried
    ) STRICT""",
    "CREATE INDEX message_due ON message (next_attempt) WHERE state < 2",
    "CREATE INDEX message_active ON message (id) WHERE state = 2",
    """CREATE TABLE recipient (
        id INTEGER PRIMARY KEY,
        settled INTEGER NOT NULL,  -- 1: sent or failed, and still to be reported
        begun INTEGER NOT NULL,    -- 1: an attempt is under way, or was when we were killed
                                   -- 2: so it was found, see UNTOLD
        doubts INTEGER NOT NULL,   -- attempts of which nobody knows how they ended
        pass INTEGER NOT NULL,     -- the pass in which it was last deferred; 0: never
        notify INTEGER NOT NULL,
        address TEXT NOT NULL,
        original TEXT NOT NULL,
        orcpt TEXT NOT NULL,
        outcome TEXT NOT NULL      -- JSON, the last one; empty: never tried
    ) STRICT""",
    # Small contents. A table of its own, so that changing a message does not rewrite its content.
    "CREATE TABLE content (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT",
    # Large contents: the name of the file below content/.
    "CREATE TABLE content_file (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
)

Migration = Sequence[str]  # statements that turn one version into the next
MIGRATIONS: Final[Mapping[int, Migration]] = {
    1: (
        "ALTER TABLE message ADD COLUMN hops INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE message ADD COLUMN probe INTEGER NOT NULL DEFAULT 0",
    ),
}


def check_database(path: Path, version: int = SCHEMA_VERSION) -> bool:
    """True if there is a queue database that we can use, False if there is none yet.

    Changes nothing. Raises StoreUnusable if the file is no queue of ours, damaged, or newer than
    `version`; StoreError if it cannot be read now.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise StoreError(f"cannot read the queue database {path}: {exc.strerror}") from exc
    if not head:
        return False  # killed between creating the file and writing to it
    if head != _MAGIC:
        raise StoreUnusable(
            f"{path} is not a queue database (it does not begin as one); move it away, or restore"
            " it from a backup"
        )
    # Without a WAL nobody was killed and the file alone is the database: then not even the usual
    # files beside it are made.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)) as database:
            return _check(database, path, version)
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _PASSING:
            raise StoreError(f"cannot read the queue database {path}: {exc}") from exc
        raise StoreUnusable(f"the queue database {path} is damaged: {exc}") from exc


def _check(database: sqlite3.Connection, path: Path, version: int) -> bool:
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    application, found = application_id(database), user_version(database)
    if not tables and not application:
        return False  # killed while the schema was being written
    if application != APPLICATION_ID:
        raise StoreUnusable(f"{path} is the database of another program; nothing was changed")
    if found > version:
        (maker,) = database.execute("SELECT version FROM made_by").fetchone()
        raise StoreUnusable(
            f"the queue database {path} was made by {maker} (schema {found}; this program knows up"
            f" to {version}): use that version or a later one"
        )
    # The tables that decide what is delivered. Contents are too many to look at now; a damaged
    # one is reported when it is read.
    for table in ("message", "recipient"):
        (verdict,) = database.execute(f"PRAGMA quick_check({table})").fetchone()
        if verdict != "ok":
            raise StoreUnusable(f"the queue database {path} is damaged: {verdict.splitlines()[-1]}")
    return True


def prepare_database(
    database: sqlite3.Connection,
    program: str,
    *,
    version: int = SCHEMA_VERSION,
    schema: Sequence[str] = SCHEMA,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> None:
    """Create the tables, or bring those of an older version up to date, in one transaction.

    `program`: name and version of this program. Raises StoreUnusable if there is no way from the
    version found; sqlite3.Error. Then nothing was changed.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        if application_id(database) == 0:
            steps = [*schema]
        else:
            steps = _steps(user_version(database), version, migrations)
        for statement in steps:
            database.execute(statement)
        if steps:
            database.execute("DELETE FROM made_by")
            database.execute("INSERT INTO made_by VALUES (?)", (program,))
            # Both live in the database header, and so in the same transaction.
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {version}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _steps(found: int, version: int, migrations: Mapping[int, Migration]) -> list[str]:
    missing = [step for step in range(found, version) if step not in migrations]
    if missing:
        raise StoreUnusable(
            f"the queue database has schema {found}, from which this program cannot migrate to"
            f" {version}: let the version that made it deliver what is queued"
        )
    return [statement for step in range(found, version) for statement in migrations[step]]


def application_id(database: sqlite3.Connection) -> int:
    """Whose file it is; 0: nobody's yet."""
    (found,) = database.execute("PRAGMA application_id").fetchone()
    return int(found)


def user_version(database: sqlite3.Connection) -> int:
    """Which schema it has."""
    (found,) = database.execute("PRAGMA user_version").fetchone()
    return int(found)
