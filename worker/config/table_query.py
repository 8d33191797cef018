"""A query to a database, as the file of a table has it: the same for sqlite, pgsql and mysql."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from worker.config.match_list import StringList
from worker.config.table import TableConfigError
from worker.config.table_files import Clock
from worker.config.table_settings import TableSettings
from worker.config.table_templates import (
    Dialect,
    Needs,
    Parts,
    Query,
    ResultFormat,
    joined,
    read_query,
    read_template,
)

_LEGACY: Final = ("select_field", "table", "where_field")  # of before Postfix 2.2, instead of query
_FUNCTION: Final = "select_function"
QUERY_NAMES: Final = frozenset(
    {"query", "result_format", "domain", "expansion_limit", "additional_conditions", *_LEGACY}
)
FUNCTION_NAMES: Final = frozenset({_FUNCTION})  # where the database has functions (pgsql)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which keys are looked up, and what becomes of the values that are found."""

    needs: Needs
    domains: StringList | None  # of the keys; None: all
    result: ResultFormat
    limit: int  # values; 0: no limit

    @classmethod
    def of(
        cls,
        file: TableSettings,
        letters: frozenset[str],
        result_format: str,
        environ: Mapping[str, str],
        clock: Clock,
    ) -> "Choice":
        """`letters`: the expansions of the query. Raises TableConfigError."""
        try:
            template = read_template(result_format or "%s", "result_format")
        except TableConfigError as exc:
            raise file.wrong(exc.why, exc.expected) from exc
        return cls(
            Needs.of(letters, template.letters),
            file.domains(environ, clock),
            ResultFormat(template),
            file.whole("expansion_limit", 0),
        )

    async def parts(self, key: str) -> Parts | None:
        """The key as it is asked for, in lower case; None: it is not. Raises TableError."""
        if not _is_text(key):
            return None
        parts = Parts.of(key.casefold())
        if not self.needs.met_by(parts) or not await self._is_listed(parts):
            return None
        return parts

    async def _is_listed(self, key: Parts) -> bool:
        if self.domains is None:
            return True
        return bool(key.domain and key.local) and await self.domains.matches(key.domain)

    def joined(self, values: Iterable[str], key: Parts) -> str | None:
        """The text of a lookup that found these values. Raises TooMuchError."""
        return joined(values, self.result, key, self.limit)


@dataclass(frozen=True, slots=True)
class Search:
    """A query, and whom for."""

    query: Query
    choice: Choice

    @classmethod
    def of(
        cls,
        file: TableSettings,
        dialect: Dialect,
        mark: Callable[[str], str],
        environ: Mapping[str, str],
        clock: Clock,
    ) -> "Search":
        """What a file says. `mark`: see read_query(). Raises TableConfigError."""
        try:
            query = read_query(_query_text(file), mark, dialect)
        except TableConfigError as exc:
            raise file.wrong(exc.why, exc.expected) from exc
        result_format = file.text("result_format")
        return cls(query, Choice.of(file, query.letters, result_format, environ, clock))


def _query_text(file: TableSettings) -> str:
    if text := file.text("query"):
        return text
    if function := file.text(_FUNCTION):
        return f"SELECT {function}('%s')"
    if missing := [name for name in _LEGACY if not file.text(name)]:
        raise TableConfigError(f"neither query nor {missing[0]}", "query = SELECT ...")
    select, table, where = (file.text(name) for name in _LEGACY)
    more = file.text("additional_conditions")
    return f"SELECT {select} FROM {table} WHERE {where} = '%s' {more}".rstrip()


def _is_text(key: str) -> bool:
    """Whether it came from UTF-8 (other octets are kept as surrogates), without NUL.

    A database holds text, so it has no such key (as in Postfix). libpq would ask for what stands
    before a NUL.
    """
    if "\0" in key:
        return False
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
