"""The type sqlite: a query to an SQLite database, as a file of settings says (sqlite_table(5)).

The database is opened for each lookup, read-only and in a thread: that costs a fraction of a
millisecond, sees a database that was replaced, and leaves nothing open when a lookup is cancelled.
A thread ends by itself after TIME_LIMIT, whoever still waits for it.
"""

import functools
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from worker.config.table import Table, TableError
from worker.config.table_files import Clock, WatchedFile
from worker.config.table_query import QUERY_NAMES, Search
from worker.config.table_settings import Known, TableSettings
from worker.config.table_templates import SQLITE, Parts, TooMuchError

TIME_LIMIT: Final = 10.0  # seconds for a query
LOCK_LIMIT: Final = 5.0  # seconds that a lock of somebody else is waited for
VALUE_LIMIT: Final = 1_000_000  # octets of what the database may handle for us in one piece
THREADS: Final = 4  # for each table

_KNOWN = Known(QUERY_NAMES | {"dbpath"})
_INTEGER = frozenset("-0123456789")
_PROGRESS_STEPS = 10_000  # of SQLite's machine between two looks at the clock


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """What the file of a table says."""

    dbpath: str
    search: Search


class Sqlite(Table):
    """`sqlite:/file`."""

    def __init__(self, spec: str, path: Path, environ: Mapping[str, str], clock: Clock) -> None:
        """Raises TableConfigError."""
        super().__init__(spec)
        read = functools.partial(read_settings, environ=environ, clock=clock)
        self._file = WatchedFile(spec, path, clock, read)
        self._threads = trio.CapacityLimiter(THREADS)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Table."""
        return tuple(self._file.warnings)

    async def lookup(self, key: str) -> str | None:
        """See Table. Keys in any case of letters, as in Postfix. Raises TableError."""
        settings = self._file.contents()
        parts = await settings.search.choice.parts(key)
        if parts is None:
            return None
        try:
            return await trio.to_thread.run_sync(
                _find, settings, parts, abandon_on_cancel=True, limiter=self._threads
            )
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, TooMuchError) as exc:
            raise TableError(f"{self.spec}: {settings.dbpath}: {exc}") from exc


def _find(settings: SqliteSettings, key: Parts) -> str | None:
    """The values, as the format has them, with commas between. Runs in a thread."""
    end = time.monotonic() + TIME_LIMIT
    uri = f"file:{quote(settings.dbpath)}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=LOCK_LIMIT)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_LIMIT)
        connection.set_progress_handler(lambda: time.monotonic() > end, _PROGRESS_STEPS)
        query = settings.search.query
        rows = connection.execute(query.sql, query.texts(key))
        return settings.search.choice.joined((_text(row[0]) for row in rows), key)
    finally:
        connection.close()


def _text(value: str | bytes | float | None) -> str:
    """A value as SQLite shows it in text; empty for NULL, which is as good as no row."""
    match value:
        case None:
            return ""
        case bytes():
            return value.decode("utf-8")
        case float():
            text = f"{value:.15g}"
            if set(text) <= _INTEGER:
                return f"{text}.0"
            return text if "." in text else text.replace("e", ".0e")
    return str(value)


def read_settings(
    text: str, place: str, *, environ: Mapping[str, str], clock: Clock
) -> tuple[SqliteSettings, list[str]]:
    """The settings in a file, and what is odd there. Raises TableConfigError."""
    file = TableSettings(text, place, _KNOWN)
    dbpath = file.text("dbpath")
    if not dbpath.startswith("/"):
        raise file.wrong(f'dbpath = "{dbpath}"', "a path from the root")
    return SqliteSettings(
        dbpath, Search.of(file, SQLITE, lambda name: f":{name}", environ, clock)
    ), (file.warnings)
