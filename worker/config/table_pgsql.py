"""The type pgsql: a query to PostgreSQL, as a file of settings says (pgsql_table(5)).

libpq is used by way of psycopg.pq without blocking: its blocking calls know no time limit. What the
query takes from the key are parameters of no declared type, so the server understands them as it
does a text in single quotes.
"""

import functools
import re
import select
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from protocol.sasl.secret import Secret
from worker.config.table import TableConfigError
from worker.config.table_database import (
    IDLE_INTERVAL,
    RETRY_INTERVAL,
    Database,
    HostError,
    Hosts,
    QueryError,
    Source,
    seconds_left,
    split_host,
)
from worker.config.table_files import Clock, WatchedFile
from worker.config.table_query import FUNCTION_NAMES, QUERY_NAMES, Search
from worker.config.table_settings import Known, TableSettings
from worker.config.table_templates import PGSQL, Parts, Query

PORT: Final = 5432
_URI: Final = ("postgresql:", "postgres:")
_KNOWN: Final = Known(
    QUERY_NAMES
    | FUNCTION_NAMES
    | {"hosts", "user", "password", "dbname", "encoding", "idle_interval", "retry_interval"}
)
_PORTS: Final = re.compile(r"[0-9,]*", re.ASCII)  # one for each host of an address
_ENCODED: Final = "postgresql://user:password@host/database, with %2F for a slash in a password"
_READ, _WRITE = select.POLLIN, select.POLLOUT


def open_pgsql(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> "Pgsql":
    """`pgsql:/file`. Raises TableConfigError."""
    read = functools.partial(_read, environ=environ, clock=clock)
    return Pgsql(spec, WatchedFile(spec, Path(name), clock, read))


Pgsql = Database[pq.abc.PGconn]


def _read(
    text: str, place: str, *, environ: Mapping[str, str], clock: Clock
) -> tuple[Source[pq.abc.PGconn], list[str]]:
    """What the file says. Raises TableConfigError."""
    file = TableSettings(text, place, _KNOWN)
    encoding = file.text("encoding", "UTF8")
    if encoding.upper().replace("-", "") != "UTF8":
        raise file.wrong(f"encoding = {encoding}", "UTF8, whatever the database has")
    search = Search.of(file, PGSQL, lambda name: f"${name.removeprefix('postrio')}", environ, clock)
    hosts: Hosts[pq.abc.PGconn] = Hosts(
        PgsqlDriver(file, search.query),
        clock,
        idle_interval=file.whole("idle_interval", IDLE_INTERVAL, 1),
        retry_interval=file.whole("retry_interval", RETRY_INTERVAL, 1),
    )
    return Source(search.choice, hosts), file.warnings


class PgsqlDriver:
    """See Driver."""

    in_order = False

    def __init__(self, file: TableSettings, query: Query) -> None:
        """Raises TableConfigError."""
        self._query = query
        self._sql = query.sql.encode()
        common = {"user": file.text("user"), "password": file.text("password")}
        common["dbname"] = file.text("dbname")
        texts = file.words("hosts", "localhost")
        if not common["dbname"] and not all(text.startswith(_URI) for text in texts):
            raise file.wrong("no dbname", "dbname = database")
        self._how = [_conninfo(text, common, file) for text in texts]
        self.hosts = [_shown(text) for text in texts]

    def connect(self, host: int, end: float) -> pq.abc.PGconn:
        """See Driver."""
        connection = pq.PGconn.connect_start(self._how[host].reveal().encode())
        try:
            _finish_connecting(connection, end)
            connection.nonblocking = 1
        except psycopg.Error as exc:
            connection.finish()
            raise HostError(_line(str(exc))) from exc
        except BaseException:
            connection.finish()
            raise
        return connection

    def ask(self, connection: pq.abc.PGconn, key: Parts, end: float) -> Iterable[str]:
        """See Driver."""
        texts = [text.encode() for text in self._query.texts(key).values()]
        try:
            connection.send_query_params(self._sql, texts)
            connection.set_single_row_mode()  # so that a limit ends what has no end
            while connection.flush():
                _wait(connection, _READ | _WRITE, end)
                connection.consume_input()
            for result in _results(connection, end):
                yield from _values(connection, result)
        except psycopg.Error as exc:  # libpq's own failures, not the server's
            raise HostError(_line(str(exc))) from exc

    def close(self, connection: pq.abc.PGconn) -> None:
        """See Driver."""
        connection.finish()


def _finish_connecting(connection: pq.abc.PGconn, end: float) -> None:
    state = pq.PollingStatus.FAILED
    while connection.status != pq.ConnStatus.BAD:
        state = pq.PollingStatus(connection.connect_poll())
        if state == pq.PollingStatus.OK:
            return
        if state == pq.PollingStatus.FAILED:
            break
        _wait(connection, _READ if state == pq.PollingStatus.READING else _WRITE, end)
    raise HostError(_line(connection.get_error_message()))


def _results(connection: pq.abc.PGconn, end: float) -> Iterator[pq.abc.PGresult]:
    while True:
        while connection.is_busy():
            _wait(connection, _READ, end)
            connection.consume_input()
        result = connection.get_result()
        if result is None:
            return
        try:
            yield result
        finally:
            result.clear()


def _values(connection: pq.abc.PGconn, result: pq.abc.PGresult) -> Iterator[str]:
    """All columns of all rows, as text. NULL is as good as none."""
    status = pq.ExecStatus(result.status)
    if status in {pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_OK}:
        for row in range(result.ntuples):
            for column in range(result.nfields):
                yield (result.get_value(row, column) or b"").decode()
        return
    if connection.status == pq.ConnStatus.BAD or _ends_session(result):
        raise HostError(_line(result.get_error_message()))
    if status == pq.ExecStatus.FATAL_ERROR:
        raise QueryError(_line(result.get_error_message()))
    raise QueryError("the query gives no rows")


def _ends_session(result: pq.abc.PGresult) -> bool:
    severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
    return severity in {b"FATAL", b"PANIC"}


def _wait(connection: pq.abc.PGconn, events: int, end: float) -> None:
    """Until the connection is ready. Raises HostError at the end."""
    poll = select.poll()
    poll.register(connection.socket, events)
    if not poll.poll(seconds_left(end) * 1000):
        raise HostError("no reply in time")


def _conninfo(text: str, common: Mapping[str, str], file: TableSettings) -> Secret:
    """How libpq is told of a host; it has the password. Raises TableConfigError."""
    settings = {"application_name": "postrio"}
    settings |= {name: value for name, value in common.items() if value}
    if text.startswith(_URI):
        try:
            settings |= {name: str(value) for name, value in conninfo_to_dict(text).items()}
            is_right = bool(_PORTS.fullmatch(settings.get("port", "")))
        except psycopg.Error:  # its text shows the URI, which may have a password
            is_right = False
        # The end of user:pass/word@host is the path, and libpq would show the rest as a port.
        if not is_right or "@" in urlsplit(text).path:
            raise file.wrong("hosts: a postgresql:// address that libpq cannot read", _ENCODED)
    elif text.startswith("unix:"):
        settings["host"] = _directory(text.removeprefix("unix:"), settings, file)
    else:
        try:
            host, port = split_host(text, PORT)
        except TableConfigError as exc:
            raise file.wrong(f"hosts: {exc.why}", exc.expected) from exc
        settings |= {"host": host, "port": str(port)}
    return Secret(make_conninfo(**settings, client_encoding="UTF8"))


def _directory(path: str, settings: dict[str, str], file: TableSettings) -> str:
    """The directory of a socket: libpq makes its name of that and the port."""
    if not path.startswith("/"):
        raise file.wrong(f"hosts: unix:{path}", "unix:/directory")
    directory, _, name = path.rpartition("/")
    port = name.removeprefix(".s.PGSQL.")
    if port == name:
        return path
    settings["port"] = port
    return directory


def _shown(text: str) -> str:
    """A host for people."""
    if not text.startswith(_URI):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "postgresql://..."
    return f"postgresql://{parts.hostname or ''}{parts.path}"


def _line(text: str) -> str:
    """In one line."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
