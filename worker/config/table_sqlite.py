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

from worker.config.main_cf import parse_main_cf
from worker.config.match_list import StringList, open_string_list
from worker.config.table import Table, TableConfigError, TableError
from worker.config.table_files import Clock, WatchedFile
from worker.config.table_templates import (
    Needs,
    Parts,
    Query,
    ResultFormat,
    read_query,
    read_template,
)
from worker.config.values import BadValueError, split_list

TIME_LIMIT: Final = 10.0  # seconds for a query
LOCK_LIMIT: Final = 5.0  # seconds that a lock of somebody else is waited for
RESULT_LIMIT: Final = 100_000  # characters of all values together
VALUE_LIMIT: Final = 1_000_000  # octets of what the database may handle for us in one piece
THREADS: Final = 4  # for each table

_LEGACY = ("select_field", "table", "where_field")  # of before Postfix 2.2, instead of query
_KNOWN = frozenset(
    {"dbpath", "query", "result_format", "domain", "expansion_limit", "additional_conditions"}
).union(_LEGACY)
_INTEGER = frozenset("-0123456789")
_PROGRESS_STEPS = 10_000  # of SQLite's machine between two looks at the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteSettings:
    """What the file of a table says."""

    dbpath: str
    query: Query
    needs: Needs
    result: ResultFormat
    domain: StringList | None  # of the keys that are looked up; None: all
    expansion_limit: int  # values; 0: no limit


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
        if not _is_text(key):
            return None  # as in Postfix: the database holds text, so it has no such key
        parts = Parts.of(key.casefold())
        if not settings.needs.met_by(parts) or not await _eligible(settings, parts):
            return None
        try:
            return await trio.to_thread.run_sync(
                _find, settings, parts, abandon_on_cancel=True, limiter=self._threads
            )
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, _TooMuchError) as exc:
            raise TableError(f"{self.spec}: {settings.dbpath}: {exc}") from exc


class _TooMuchError(Exception):
    """More was found than may be. The text says what."""


def _is_text(key: str) -> bool:
    """Whether it came from UTF-8: other octets are kept as surrogates."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


async def _eligible(settings: SqliteSettings, key: Parts) -> bool:
    if settings.domain is None:
        return True
    return bool(key.domain and key.local) and await settings.domain.matches(key.domain)


def _find(settings: SqliteSettings, key: Parts) -> str | None:
    """The values, as the format has them, with commas between. Runs in a thread."""
    end = time.monotonic() + TIME_LIMIT
    uri = f"file:{quote(settings.dbpath)}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=LOCK_LIMIT)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_LIMIT)
        connection.set_progress_handler(lambda: time.monotonic() > end, _PROGRESS_STEPS)
        found: list[str] = []
        size = 0
        for row in connection.execute(settings.query.sql, settings.query.texts(key)):
            text = settings.result.apply(_text(row[0]), key)
            if text is None:
                continue
            found.append(text)
            size += len(text) + 1
            if len(found) > settings.expansion_limit > 0:
                raise _TooMuchError(f"more than {settings.expansion_limit} values")
            if size > RESULT_LIMIT:
                raise _TooMuchError(f"more than {RESULT_LIMIT} characters")
        return ",".join(found) or None
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
    read = parse_main_cf(text, place)
    for problem in read.problems:
        raise TableConfigError(f"{place}:{problem.line}: {problem.why}", problem.expected)
    values = {setting.name: setting.value for setting in read.settings}
    warnings = [
        *read.warnings,
        *(
            f"{each.place}: {each.name} is not known"
            for each in read.settings
            if each.name not in _KNOWN
        ),
    ]
    try:
        settings = _settings(values, environ, clock)
    except (TableConfigError, BadValueError) as exc:
        raise TableConfigError(f"{place}: {exc.why}", exc.expected) from exc
    if settings.domain is not None:
        warnings += settings.domain.warnings
    return settings, warnings


def _settings(
    values: Mapping[str, str], environ: Mapping[str, str], clock: Clock
) -> SqliteSettings:
    dbpath = values.get("dbpath", "")
    if not dbpath.startswith("/"):
        raise TableConfigError(f'dbpath = "{dbpath}"', "a path from the root")
    query = read_query(_query_text(values), lambda name: f":{name}")
    template = read_template(values.get("result_format") or "%s", "result_format")
    limit = values.get("expansion_limit") or "0"
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        raise TableConfigError(f"expansion_limit = {limit}", "a whole number")
    domains = split_list(values.get("domain", ""))
    return SqliteSettings(
        dbpath=dbpath,
        query=query,
        needs=Needs.of(query.letters, template.letters),
        result=ResultFormat(template),
        domain=open_string_list(domains, environ=environ, clock=clock) if domains else None,
        expansion_limit=int(limit),
    )


def _query_text(values: Mapping[str, str]) -> str:
    if text := values.get("query"):
        return text
    if missing := [name for name in _LEGACY if not values.get(name)]:
        raise TableConfigError(f"neither query nor {missing[0]}", "query = SELECT ...")
    select, table, where = (values[name] for name in _LEGACY)
    more = values.get("additional_conditions", "")
    return f"SELECT {select} FROM {table} WHERE {where} = '%s' {more}".rstrip()
