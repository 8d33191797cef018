"""The type mysql: a query to MySQL or MariaDB, as a file of settings says (mysql_table(5)).

PyMySQL writes what a query takes from the key into its text, escaped as the connection needs it;
where that may stand is checked when the query is read (`table_templates.py`).
"""

import configparser
import functools
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pymysql
from pymysql.charset import charset_by_name
from pymysql.connections import Connection
from pymysql.cursors import Cursor

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
from worker.config.table_query import QUERY_NAMES, Search
from worker.config.table_settings import Known, TableSettings
from worker.config.table_templates import MYSQL, RESULT_LIMIT, Parts, Query

PORT: Final = 3306
# Where servers of the distributions listen; "localhost" means the first that is there.
SOCKETS: Final = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")
_TLS: Final = frozenset(
    {"tls_CAfile", "tls_CApath", "tls_cert_file", "tls_ciphers", "tls_key_file", "tls_verify_cert"}
)
_KNOWN: Final = Known(
    QUERY_NAMES
    | _TLS
    | {"hosts", "user", "password", "dbname", "charset", "idle_interval", "retry_interval"}
    | {"option_file", "option_group", "require_result_set"}
)
# Errors of the client, numbers of errmsg.h, and of a server that ends: the connection is of no use.
_LOST: Final = frozenset({0, *range(2000, 3000), 1053, 1077, 1079, 1927, 4031})
# What PyMySQL raises, too, when a server says what is not of the protocol.
_GARBLED: Final = (AssertionError, LookupError, TypeError, AttributeError, ValueError, struct.error)
# So that a query without an end has one. Each row has a value at least.
_ROW_LIMIT: Final = RESULT_LIMIT

if TYPE_CHECKING:
    MysqlConnection = Connection[Cursor]
else:
    MysqlConnection = Connection  # which takes a parameter in its stubs alone

Mysql = Database[MysqlConnection]


def open_mysql(spec: str, name: str, environ: Mapping[str, str], clock: Clock) -> Mysql:
    """`mysql:/file`. Raises TableConfigError."""
    read = functools.partial(_read, environ=environ, clock=clock)
    return Mysql(spec, WatchedFile(spec, Path(name), clock, read))


def _read(
    text: str, place: str, *, environ: Mapping[str, str], clock: Clock
) -> tuple[Source[MysqlConnection], list[str]]:
    """What the file says. Raises TableConfigError."""
    file = TableSettings(text, place, _KNOWN)
    search = Search.of(file, MYSQL, lambda name: f"%({name})s", environ, clock)
    hosts: Hosts[MysqlConnection] = Hosts(
        MysqlDriver(file, search.query),
        clock,
        idle_interval=file.whole("idle_interval", IDLE_INTERVAL, 1),
        retry_interval=file.whole("retry_interval", RETRY_INTERVAL, 1),
    )
    return Source(search.choice, hosts), file.warnings


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a server listens: a socket's path, or a host and port."""

    path: str | None = None
    host: str | None = None
    port: int = 0


class MysqlDriver:
    """See Driver."""

    in_order = False

    def __init__(self, file: TableSettings, query: Query) -> None:
        """Raises TableConfigError."""
        self._query = query
        self._user = file.text("user")
        self._password = Secret(file.text("password"))
        self._dbname = file.text("dbname")
        if not self._dbname:
            raise file.wrong("no dbname", "dbname = database")
        self._charset = file.text("charset", "utf8mb4")
        if not (
            self._charset.lower().startswith("utf8") and charset_by_name(self._charset) is not None
        ):
            raise file.wrong(f"charset = {self._charset}", "utf8mb4, whatever the database has")
        self._needs_rows = file.is_yes("require_result_set", default=True)
        self._tls = _tls(file)
        self._options, self._group = _option_file(file)
        self.hosts = file.words("hosts", "localhost")
        self._addresses = [_address(text, file) for text in self.hosts]

    def connect(self, host: int, end: float) -> MysqlConnection:
        """See Driver."""
        address = self._addresses[host]
        limit = seconds_left(end)
        path = address.path or _local_socket(address)
        try:
            connection = MysqlConnection(
                user=self._user or None,
                password=self._password.reveal().encode(),
                host=address.host,
                port=address.port,
                unix_socket=path,
                database=self._dbname,
                charset=self._charset,
                conv={},  # values as the server writes them
                autocommit=True,  # or each lookup would see the tables as the first one did
                init_command=f"SET SESSION sql_select_limit = {_ROW_LIMIT + 1}",
                connect_timeout=limit,
                read_timeout=limit,
                write_timeout=limit,
                ssl=self._tls,
                read_default_file=self._options,
                read_default_group=self._group,
                program_name="postrio",
                defer_connect=True,
            )
            # A socket that it makes itself stays open if this fails (PyMySQL 1.2).
            connection.connect(_connected(path, limit) if path else None)
        except pymysql.Error as exc:
            raise HostError(_why(exc)) from exc
        except (configparser.Error, UnicodeDecodeError, UnicodeEncodeError) as exc:
            if self._options:  # their texts show what is in the file
                raise HostError(f"{self._options} cannot be read as an option file") from None
            raise HostError("what the server says is no text") from exc
        except UnicodeError as exc:  # of the codec idna
            raise HostError("not the name of a host") from exc
        except (OSError, RuntimeError, *_GARBLED) as exc:
            raise HostError(f"cannot connect: {exc}") from exc
        return connection

    def ask(self, connection: MysqlConnection, key: Parts, end: float) -> Iterable[str]:
        """See Driver."""
        del end  # the limits of the connection hold
        try:
            with connection.cursor() as cursor:
                cursor.execute(self._query.sql, self._query.texts(key))
                return list(self._values(cursor))
        except pymysql.Error as exc:
            if exc.args and exc.args[0] in _LOST:
                raise HostError(_why(exc)) from exc
            raise QueryError(_why(exc)) from exc
        except UnicodeError:
            raise
        except (OSError, *_GARBLED) as exc:
            raise HostError(str(exc)) from exc

    def close(self, connection: MysqlConnection) -> None:
        """See Driver."""
        if connection.open:
            connection.close()

    def _values(self, cursor: Cursor) -> Iterator[str]:
        """All columns of all rows, as text. NULL is as good as none."""
        sets = 0
        more: bool | None = True
        while more:
            if cursor.description:
                sets += 1
                rows = cursor.fetchall()
                if sets > 1:
                    raise QueryError("more than one result set")
                if len(rows) > _ROW_LIMIT:
                    raise QueryError(f"more than {_ROW_LIMIT} rows")
                yield from (_text(value) for row in rows for value in row)
            more = cursor.nextset()
        if not sets and self._needs_rows:
            raise QueryError("no result set; expected require_result_set = no")


def _text(value: str | bytes | None) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value or ""


def _address(text: str, file: TableSettings) -> _Address:
    """What one of the hosts means. Raises TableConfigError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise file.wrong(f"hosts: {text}", "unix:/path")
        return _Address(path=path)
    try:
        host, port = split_host(text, PORT)
    except TableConfigError as exc:
        raise file.wrong(f"hosts: {exc.why}", exc.expected) from exc
    return _Address(host=host, port=port)


def _local_socket(address: _Address) -> str | None:
    """As MySQL's own client has it, localhost is not the network."""
    if address.host != "localhost":
        return None
    return next((path for path in SOCKETS if Path(path).is_socket()), SOCKETS[0])


def _connected(path: str, limit: float) -> socket.socket:
    """A connection to a socket. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(limit)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _option_file(file: TableSettings) -> tuple[str | None, str | None]:
    """The file and group with options for the client. Raises TableConfigError.

    Only a file that is named: whatever my.cnf a system has is read differently by each client.
    """
    path, group = file.text("option_file"), file.text("option_group", "client")
    if not path:
        if file.text("option_group"):
            raise file.wrong("option_group without option_file", "option_file = /path")
        return None, None
    try:
        Path(path).read_bytes()
    except OSError as exc:
        raise file.wrong(f"option_file = {path}: {exc.strerror or exc}") from exc
    return path, group


def _tls(file: TableSettings) -> ssl.SSLContext | None:
    """How TLS is to be; None: where the server offers it. Raises TableConfigError.

    If anything is said of it, a server without TLS is not talked to; if an authority is named, it
    must have signed the certificate; with tls_verify_cert, for this name.
    """
    if not any(file.text(name) for name in _TLS):
        return None
    verify = file.is_yes("tls_verify_cert", default=False)
    authorities = file.text("tls_CAfile") or None, file.text("tls_CApath") or None
    try:
        context = ssl.create_default_context(cafile=authorities[0], capath=authorities[1])
        context.verify_flags &= (
            ~ssl.VERIFY_X509_STRICT
        )  # MySQL's own certificates are not so strict
        context.check_hostname = verify
        if not verify and not any(authorities):
            context.verify_mode = ssl.CERT_NONE
        if ciphers := file.text("tls_ciphers"):
            context.set_ciphers(ciphers)
        if certificate := file.text("tls_cert_file"):
            context.load_cert_chain(certificate, file.text("tls_key_file") or None, _no_password)
    except (OSError, ValueError) as exc:  # SSLError is an OSError
        raise file.wrong(f"TLS cannot be set up: {exc}") from exc
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")  # else OpenSSL would ask at the terminal


def _why(exc: pymysql.Error) -> str:
    """The server's words; without the number in front."""
    return str(exc.args[-1]) if exc.args else type(exc).__name__
