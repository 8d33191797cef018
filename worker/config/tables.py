"""Lookup tables as a parameter holds them: a list of `type:name`, asked in order.

To add a type, write a Table (`table.py`) and put its opener into TYPES.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from worker.config.table import Table, TableConfigError, TableError
from worker.config.table_combined import open_pipe, open_union
from worker.config.table_files import Clock, open_texthash
from worker.config.table_memory import Environ, Fail, Inline, Random, Static
from worker.config.table_patterns import open_cidr, open_pcre, open_regexp

__all__ = ["TYPES", "Maps", "Table", "TableConfigError", "TableError", "open_maps", "open_table"]

# (whole `type:name`, name, environment, clock) -> table
Opener = Callable[[str, str, Mapping[str, str], Clock], Table]


def _open_socketmap(spec: str, name: str) -> Table:
    # Modules that need an event loop are loaded for who has such a table: commands start sooner.
    from worker.config.table_socketmap import open_socketmap

    return open_socketmap(spec, name)


def _open_behind_proxy(name: str, environ: Mapping[str, str], clock: Clock) -> Table:
    """The table itself, in this process: there is no proxymap(8). A jail is no wider for it."""
    while name.startswith("proxy:"):
        name = name.removeprefix("proxy:")
    return open_table(name, environ=environ, clock=clock)


def _open_indexed(spec: str, name: str) -> Table:
    from worker.config.table_indexed import FORMATS, Indexed

    return Indexed(spec, name, FORMATS[spec.partition(":")[0]])


def _open_ldap(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> Table:
    try:
        from worker.config.table_ldap import open_ldap
    except ImportError as exc:
        raise _missing("ldap", "python-ldap", exc) from exc
    return open_ldap(spec, name, environ, clock)


def _open_mysql(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> Table:
    try:
        from worker.config.table_mysql import open_mysql
    except ImportError as exc:
        raise _missing("mysql", "PyMySQL", exc) from exc
    return open_mysql(spec, name, environ, clock)


def _open_pgsql(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> Table:
    try:
        from worker.config.table_pgsql import open_pgsql
    except ImportError as exc:
        raise _missing("pgsql", "psycopg", exc) from exc
    return open_pgsql(spec, name, environ, clock)


def _missing(kind: str, package: str, exc: ImportError) -> TableConfigError:
    """The error for a type whose library is not there: an extra of ours."""
    return TableConfigError(
        f'the table type "{kind}" needs {package}, which cannot be loaded ({exc})',
        f"it to be installed: pip install 'postrio[{kind}]'",
    )


def _open_sqlite(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> Table:
    from worker.config.table_sqlite import Sqlite

    return Sqlite(spec, Path(name), environ, clock)


def _open_tcp(spec: str, name: str) -> Table:
    from worker.config.table_tcp import open_tcp

    return open_tcp(spec, name)


TYPES: Mapping[str, Opener] = {
    "btree": lambda spec, name, _environ, _clock: _open_indexed(spec, name),
    "cdb": lambda spec, name, _environ, _clock: _open_indexed(spec, name),
    "cidr": lambda spec, name, _environ, clock: open_cidr(spec, name, clock),
    "environ": lambda spec, _name, environ, _clock: Environ(spec, environ),
    "fail": lambda spec, _name, _environ, _clock: Fail(spec),
    "hash": lambda spec, name, _environ, _clock: _open_indexed(spec, name),
    "inline": lambda spec, name, _environ, _clock: Inline(spec, name),
    "ldap": _open_ldap,
    "lmdb": lambda spec, name, _environ, _clock: _open_indexed(spec, name),
    "pcre": lambda spec, name, _environ, clock: open_pcre(spec, name, clock),
    "mysql": _open_mysql,
    "pgsql": _open_pgsql,
    "pipemap": lambda spec, name, environ, clock: open_pipe(spec, name, _opener(environ, clock)),
    "proxy": lambda _spec, name, environ, clock: _open_behind_proxy(name, environ, clock),
    "randmap": lambda spec, name, _environ, _clock: Random(spec, name),
    "regexp": lambda spec, name, _environ, clock: open_regexp(spec, name, clock),
    "socketmap": lambda spec, name, _environ, _clock: _open_socketmap(spec, name),
    "sqlite": _open_sqlite,
    "static": lambda spec, name, _environ, _clock: Static(spec, name),
    "tcp": lambda spec, name, _environ, _clock: _open_tcp(spec, name),
    "texthash": lambda spec, name, _environ, clock: open_texthash(spec, name, clock),
    "unionmap": lambda spec, name, environ, clock: open_union(spec, name, _opener(environ, clock)),
}

# Types of Postfix that we may meet in a configuration made for it.
INDEXED = frozenset({"dbm", "sdbm"})  # made by postmap(1)
SERVED = frozenset(
    {"debug", "internal", "memcache", "mongodb", "netinfo", "nis", "nisplus", "proxywrite", "unix"}
)


class Maps:
    """Tables in order; the first that has the key answers."""

    def __init__(self, tables: Sequence[Table] = ()) -> None:
        self.tables = tuple(tables)

    def __bool__(self) -> bool:
        """Whether there is any table."""
        return bool(self.tables)

    async def find(self, key: str, *, partial: bool = False) -> str | None:
        """The text of the first table that has `key`; None: none has. Raises TableError.

        `partial`: the key is a part of an address (a domain, say); tables for whole keys are
        left out. A table in trouble ends the search: what it would have said is not known.
        """
        for table in self.tables:
            if partial and table.whole_keys_only:
                continue
            found = await table.lookup(key)
            if found is not None:
                return found
        return None

    def entries(self) -> Iterator[tuple[str, str]]:
        """Key and text of all that the tables can list. Raises TableError."""
        for table in self.tables:
            yield from table.entries().items()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The oddities of all tables."""
        return tuple(text for table in self.tables for text in table.warnings)


def open_maps(specs: Sequence[str], *, environ: Mapping[str, str], clock: Clock) -> Maps:
    """The tables of a list of `type:name`. Raises TableConfigError for the first bad one.

    `environ` is what environ: looks into; `clock` gives seconds and bounds how often a file is
    looked at for changes.
    """
    return Maps([open_table(spec, environ=environ, clock=clock) for spec in specs])


def _opener(environ: Mapping[str, str], clock: Clock) -> Callable[[str], Table]:
    """How a table opens the tables that it is made of."""
    return lambda spec: open_table(spec, environ=environ, clock=clock)


def open_table(spec: str, *, environ: Mapping[str, str], clock: Clock) -> Table:
    """The table of one `type:name`. Raises TableConfigError."""
    kind, colon, name = spec.partition(":")
    if not colon or not name:
        raise TableConfigError(f'"{spec}" is not a table', "type:name, as texthash:/file")
    opener = TYPES.get(kind)
    if opener is not None:
        return opener(spec, name, environ, clock)
    supported = ", ".join(sorted(TYPES))
    if kind in INDEXED:
        raise TableConfigError(
            f'the table type "{kind}" is not supported yet',
            f"texthash:{name}, which reads the text file itself",
        )
    if kind in SERVED:
        raise TableConfigError(
            f'the table type "{kind}" is not supported yet', f"one of: {supported}"
        )
    raise TableConfigError(f'there is no table type "{kind}"', f"one of: {supported}")
