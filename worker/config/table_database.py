"""Tables that a database server answers for: hosts, connections, time limits, what is trouble.

How a server is talked to is a Driver's: `table_pgsql.py`, `table_mysql.py`, `table_ldap.py`.
Drivers block, so a lookup runs in a thread, THREADS of them for each table at most; it ends by
itself when its time is over, whoever still waits for it. A connection serves one lookup at a time
and is kept for the next one. A kept connection may have been closed by its server meanwhile, so a
lookup that fails on one is tried again on a new one; lookups change nothing, and the second try
tells the truth. A host that cannot be used is passed over for a while, and the next one is asked.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import trio

from worker.config.table import Table, TableConfigError, TableError
from worker.config.table_files import Clock, WatchedFile
from worker.config.table_query import Choice
from worker.config.table_templates import Parts, TooMuchError

THREADS: Final = 4  # for each table of a process; so many connections to each host at most
TIME_LIMIT: Final = 30.0  # seconds for one lookup, all hosts and waiting for a thread included
ASK_LIMIT: Final = 25.0  # seconds for one lookup, once it has a thread
STEP_LIMIT: Final = 10.0  # seconds to connect, and for a query
IDLE_INTERVAL: Final = 60  # seconds; the next lookup closes connections that were idle for longer
RETRY_INTERVAL: Final = 60  # seconds in which a host that did not answer in time is not asked
# Seconds in which a host that failed otherwise is not asked: a server that starts again should not
# be missed for a minute, and a wrong password not be tried for each recipient.
SHORT_REST: Final = 1.0
SLOW: Final = 2.0  # seconds; what fails later than that was waited for

Connection = TypeVar("Connection")


class HostError(Exception):
    """A host or connection cannot be used; another may. The text is for people, without secrets."""


class QueryError(Exception):
    """The server does not answer this query. The text is for people, without secrets."""


class Driver(Protocol[Connection]):
    """How servers of a kind are talked to. All of it runs in threads, and blocks.

    `end` (seconds of time.monotonic()) is when a call must have ended. All may raise HostError,
    and QueryError.
    """

    @property
    def hosts(self) -> Sequence[str]:
        """As people know them: without passwords."""

    @property
    def in_order(self) -> bool:
        """Whether the first host is asked first; else any, those on this machine first."""

    def connect(self, host: int, end: float) -> Connection:
        """A connection to a host, a place in `hosts`."""

    def ask(self, connection: Connection, key: Parts, end: float) -> Iterable[str]:
        """The values for a key. After an exception, or values not all taken, it is closed."""

    def close(self, connection: Connection) -> None:
        """Close a connection. Raises nothing."""


@dataclass(slots=True)
class _Host(Generic[Connection]):
    """What is known of a host."""

    place: int
    name: str
    idle: deque[tuple[float, Connection]] = field(default_factory=deque)  # since, latest last
    rests_until: float = -math.inf
    why: str = ""  # it rests


class Hosts(Generic[Connection]):
    """The hosts of a table and their connections. Its methods may run in several threads at once:
    what they share is changed in single steps.
    """

    def __init__(
        self,
        driver: Driver[Connection],
        clock: Clock,
        *,
        idle_interval: float = IDLE_INTERVAL,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._idle_interval = idle_interval
        self._retry_interval = retry_interval
        self._hosts = [_Host[Connection](place, name) for place, name in enumerate(driver.hosts)]

    def __del__(self) -> None:
        """Settings that were replaced are forgotten; the server must not keep its clients."""
        for host in getattr(self, "_hosts", ()):
            while (kept := self._pop(host)) is not None:
                self._driver.close(kept[1])

    def ask(self, key: Parts, join: Callable[[Iterable[str]], str | None]) -> str | None:
        """What `join` makes of the values. Raises QueryError, TooMuchError; HostError if no host
        can be used.
        """
        end = time.monotonic() + ASK_LIMIT
        failures = []
        for host in self._order():
            began = time.monotonic()
            if began >= end:
                failures.append(f"{host.name}: no time left")
                break
            try:
                return self._ask_host(host, key, join, end)
            except HostError as exc:
                failures.append(f"{host.name}: {exc}")
                slow = time.monotonic() - began > SLOW
                host.why = str(exc)
                host.rests_until = self._clock() + (self._retry_interval if slow else SHORT_REST)
        if not failures:
            failures = [f"{host.name}: {host.why}, lately" for host in self._hosts]
        raise HostError("; ".join(failures))

    def _order(self) -> list[_Host[Connection]]:
        """The hosts to try: with connections first, and on this machine (as in Postfix)."""
        now = self._clock()
        hosts = [host for host in self._hosts if host.rests_until <= now]
        if not self._driver.in_order:
            random.shuffle(hosts)
            hosts.sort(key=lambda host: (not host.idle, not host.name.startswith("unix:")))
        return hosts

    def _ask_host(
        self,
        host: _Host[Connection],
        key: Parts,
        join: Callable[[Iterable[str]], str | None],
        end: float,
    ) -> str | None:
        self._close_old(host)
        if (kept := self._pop(host)) is not None:
            try:
                return self._ask(host, kept[1], key, join, end)
            except HostError:
                pass  # it may have been closed while it was idle
        connection = self._driver.connect(host.place, min(end, time.monotonic() + STEP_LIMIT))
        return self._ask(host, connection, key, join, end)

    def _ask(
        self,
        host: _Host[Connection],
        connection: Connection,
        key: Parts,
        join: Callable[[Iterable[str]], str | None],
        end: float,
    ) -> str | None:
        try:
            values = self._driver.ask(connection, key, min(end, time.monotonic() + STEP_LIMIT))
            text = join(values)
        except BaseException:  # the rest of an answer must not be taken for the next one
            self._driver.close(connection)
            raise
        host.idle.append((self._clock(), connection))
        return text

    def _close_old(self, host: _Host[Connection]) -> None:
        """Of many that a busy time has left the latest are used again and again, and the others
        would be the server's to keep.
        """
        while True:
            try:
                since, connection = host.idle.popleft()
            except IndexError:
                return
            if self._clock() - since < self._idle_interval:
                host.idle.appendleft((since, connection))
                return
            self._driver.close(connection)

    @staticmethod
    def _pop(host: _Host[Connection]) -> tuple[float, Connection] | None:
        try:
            return host.idle.pop()
        except IndexError:
            return None


@dataclass(frozen=True, slots=True)
class Source(Generic[Connection]):
    """What the file of a table says, ready for use."""

    choice: Choice
    hosts: Hosts[Connection]


class Database(Table, Generic[Connection]):
    """A table in a database, as a file says."""

    def __init__(
        self,
        spec: str,
        file: WatchedFile[Source[Connection]],
    ) -> None:
        super().__init__(spec)
        self._file = file
        self._threads = trio.CapacityLimiter(THREADS)
        self._rests_until = -math.inf  # trio's clock

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Table."""
        return tuple(self._file.warnings)

    async def lookup(self, key: str) -> str | None:
        """See Table. Keys in any case of letters, as in Postfix. Raises TableError."""
        source = self._file.contents()
        parts = await source.choice.parts(key)
        if parts is None:
            return None
        if trio.current_time() < self._rests_until:
            raise TableError(f"{self.spec}: no reply within {TIME_LIMIT:.0f} seconds, lately")
        try:
            with trio.move_on_after(TIME_LIMIT):
                return await trio.to_thread.run_sync(
                    _find, source, parts, abandon_on_cancel=True, limiter=self._threads
                )
        except (HostError, QueryError, TooMuchError) as exc:
            raise TableError(f"{self.spec}: {exc}") from exc
        except UnicodeError as exc:
            raise TableError(f"{self.spec}: a value that is not UTF-8 text") from exc
        # The hosts' own limits should have ended it: a name server that hangs, or threads that all
        # wait. A message's recipients are looked up one after another, and must not wait so each.
        self._rests_until = trio.current_time() + RETRY_INTERVAL
        raise TableError(f"{self.spec}: no reply within {TIME_LIMIT:.0f} seconds")


def _find(source: Source[Connection], key: Parts) -> str | None:
    """Runs in a thread."""
    return source.hosts.ask(key, lambda values: source.choice.joined(values, key))


def split_host(text: str, default_port: int) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `[address]:port`, with or without `inet:` before.

    An IPv6 address may also stand alone. Raises TableConfigError.
    """
    name = text.removeprefix("inet:")
    if name.startswith("["):
        host, bracket, port = name[1:].partition("]")
        colon = port[:1]
        port = port[1:]
        is_right = bool(bracket) and colon in {"", ":"}
    elif name.count(":") > 1:
        host, colon, port, is_right = name, "", "", True
    else:
        host, colon, port = name.partition(":")
        is_right = True
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    number = number if colon else default_port
    if not (is_right and host and 0 < number < 65_536):
        raise TableConfigError(f'"{text}" names no server', "host, host:port or unix:/path")
    return host, number


def seconds_left(end: float) -> float:
    """Seconds until `end`, but more than none. Raises HostError when it has passed."""
    left = end - time.monotonic()
    if left <= 0:
        raise HostError("no reply in time")
    return left
