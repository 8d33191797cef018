"""Tables that a database server answers for: hosts, connections, time limits; a driver of ours.

Real servers are in tests/integration/test_tables_databases.py and test_tables_ldap.py.
"""

import gc
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from worker.config import table_database
from worker.config.config import Config, ConfigError
from worker.config.table import Table, TableConfigError, TableError
from worker.config.table_database import (
    THREADS,
    TIME_LIMIT,
    Database,
    HostError,
    Hosts,
    QueryError,
    Source,
    split_host,
)
from worker.config.table_files import WatchedFile
from worker.config.table_query import Choice
from worker.config.table_settings import Known, TableSettings
from worker.config.table_templates import MYSQL, PGSQL, Dialect, Parts, read_query
from worker.config.tables import open_table


class Fake:
    """A Driver whose connections are numbers, and whose hosts do as they are told."""

    in_order = True

    def __init__(self, *hosts: str) -> None:
        self.hosts: Sequence[str] = hosts
        self.down: set[int] = set()  # hosts that refuse connections
        self.lost: set[int] = set()  # connections that are dead
        self.connected: list[int] = []  # to which host, by connection
        self.closed: list[int] = []
        self.waits: threading.Event | None = None  # for who asks
        self.asking = threading.Semaphore(0)  # released by each who asks
        self.slow = False

    def connect(self, host: int, end: float) -> int:
        if host in self.down:
            raise HostError("refused")
        self.connected.append(host)
        return len(self.connected) - 1

    def ask(self, connection: int, key: Parts, end: float) -> Iterable[str]:
        self.asking.release()
        if self.waits is not None:
            self.waits.wait()
        if connection in self.lost:
            raise HostError("lost")
        if key.whole == "bad":
            raise QueryError("no such column")
        return self._values(key)

    def close(self, connection: int) -> None:
        self.closed.append(connection)

    @staticmethod
    def _values(key: Parts) -> Iterator[str]:
        if key.whole != "none":
            yield "one"
        if key.whole == "many":
            yield "two"
        if key.whole == "late":
            raise HostError("lost in the middle")


class World:
    """A table with such a driver."""

    def __init__(self, tmp_path: Path, *hosts: str, settings: str = "expansion_limit = 1") -> None:
        self.driver = Fake(*(hosts or ("first",)))
        self.now = 0.0
        path = tmp_path / "table.cf"
        path.write_text(f"{settings}\n")
        self.hosts = Hosts[int](self.driver, self.clock)
        self.table = Database[int]("fake:x", WatchedFile("fake:x", path, self.clock, self._read))

    def clock(self) -> float:
        return self.now

    def _read(self, text: str, place: str) -> tuple[Source[int], list[str]]:
        file = TableSettings(text, place, Known(frozenset({"expansion_limit", "domain"})))
        choice = Choice.of(file, frozenset("s"), "", {}, self.clock)
        return Source(choice, self.hosts), file.warnings

    async def failure(self, key: str) -> str:
        with pytest.raises(TableError) as caught:
            await self.table.lookup(key)
        return str(caught.value)


@trio_test
async def test_a_connection_is_kept_for_the_next_lookup(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert [await world.table.lookup(key) for key in ("a", "none", "b")] == ["one", None, "one"]
    assert world.driver.connected == [0]
    world.now = 60.0  # idle for too long
    assert await world.table.lookup("a") == "one"
    assert world.driver.connected == [0, 0]
    assert world.driver.closed == [0]


@trio_test
async def test_connections_that_a_busy_time_has_left_are_closed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.driver.waits = released = threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.table.lookup, "a")
                await trio.to_thread.run_sync(world.driver.asking.acquire)
            released.set()
    finally:
        released.set()
    assert len(world.driver.connected) == 3
    for world.now in (30.0, 60.0):
        await world.table.lookup("a")
    assert len(world.driver.connected) == 3
    assert len(world.driver.closed) == 2


@trio_test
async def test_a_kept_connection_that_is_dead_costs_a_new_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.table.lookup("a")
    world.driver.lost = {0}
    assert await world.table.lookup("a") == "one"
    assert world.driver.connected == [0, 0]
    assert world.driver.closed == [0]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("bad", "fake:x: no such column"),
        ("many", "fake:x: more than 1 values"),
        ("late", "fake:x: first: lost in the middle"),
    ],
)
@trio_test
async def test_trouble_closes_the_connection(tmp_path: Path, key: str, why: str) -> None:
    world = World(tmp_path)
    assert await world.failure(key) == why
    assert world.driver.closed == [0]


@trio_test
async def test_a_host_that_fails_is_passed_over_for_a_while(tmp_path: Path) -> None:
    world = World(tmp_path, "first", "second")
    world.driver.down = {0}
    for _ in range(2):
        assert await world.table.lookup("a") == "one"
    assert world.driver.connected == [1]
    world.driver.lost, world.driver.down = {0}, {0, 1}
    assert await world.failure("a") == "fake:x: second: refused"
    assert await world.failure("a") == "fake:x: first: refused, lately; second: refused, lately"
    world.driver.down = set()
    world.now = 1.0  # a server that starts again is not missed for longer
    assert await world.table.lookup("a") == "one"
    assert world.driver.connected == [1, 0]


@trio_test
async def test_a_host_that_took_long_to_fail_is_passed_over_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_database, "SLOW", -1.0)  # whatever time it took is long
    world = World(tmp_path)
    world.driver.down = {0}
    assert await world.failure("a") == "fake:x: first: refused"
    world.driver.down = set()
    world.now = 59.0
    assert await world.failure("a") == "fake:x: first: refused, lately"
    world.now = 60.0
    assert await world.table.lookup("a") == "one"


def test_a_lookup_ends_at_its_time_and_a_silent_server_is_let_rest(tmp_path: Path) -> None:
    world = World(tmp_path)
    clock = MockClock()
    released = threading.Event()
    world.driver.waits = released

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            failures: list[str] = []

            async def fail() -> None:
                failures.append(await world.failure("a"))

            for _ in range(THREADS + 3):
                nursery.start_soon(fail)
            for _ in range(THREADS):  # threads are at work: real ones, so waited for in a thread
                await trio.to_thread.run_sync(world.driver.asking.acquire)
            assert len(world.driver.connected) == THREADS  # and no more of them
            clock.jump(TIME_LIMIT)
        assert failures == ["fake:x: no reply within 30 seconds"] * (THREADS + 3)
        released.set()  # who asked now would get an answer
        assert await world.failure("a") == "fake:x: no reply within 30 seconds, lately"
        clock.jump(60.0)
        assert await world.table.lookup("a") == "one"

    try:
        trio.run(main, clock=clock)
    finally:
        released.set()


@trio_test
async def test_connections_are_closed_with_the_settings_that_made_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.table.lookup("a")
    driver = world.driver
    del world
    gc.collect()  # its parts know each other
    assert driver.closed == [0]


KEYS = ("a@b.c", "a@d.e", "b.c", "", "\udcff@b.c", "a\0@b.c")


@trio_test
async def test_keys_that_nobody_is_to_be_asked_for_are_not_found(tmp_path: Path) -> None:
    world = World(tmp_path, settings="domain = b.c")
    found = [await world.table.lookup(key) for key in KEYS]
    assert found == ["one", None, None, None, None, None]
    assert len(world.driver.connected) == 1


# --- what a file says ----------------------------------------------------------------------------


FILE = "hosts = h\ndbname = d\nuser = u\npassword = canary\nquery = select 1\n"


def opened(tmp_path: Path, kind: str, text: str) -> Table:
    path = tmp_path / "table.cf"
    path.write_text(text)
    return open_table(f"{kind}:{path}", environ={}, clock=lambda: 0.0)


@pytest.mark.parametrize("kind", ["pgsql", "mysql"])
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("canary", 'table.cf:6: no "=" in the line; expected name = value'),
        ("= canary", "table.cf:6: no name in the line"),
        ("password:canary==", 'table.cf:6: what stands before the "=" is not known'),
        ("pasword = canary", "table.cf:6: pasword is not known; expected one of"),
        ("dbname =", "no dbname"),
        ("query =", "neither query nor select_field"),
        ("query = select '%x'", '"%x" in the query'),
        ("query = select canary_%s", "an expansion in"),
        ("hosts = h:0", '"h:0" names no server'),
        ("hosts = unix:x", "hosts: unix:x; expected unix:/"),
        ("hosts = [::1", '"[::1" names no server'),
        ("expansion_limit = 1k", "expansion_limit = 1k; expected a whole number"),
        ("retry_interval = 0", "retry_interval = 0; expected a whole number, 1 or more"),
        ("domain = hsh:x", 'no table type "hsh"'),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    tmp_path: Path, kind: str, more: str, why: str
) -> None:
    with pytest.raises(TableConfigError) as caught:
        opened(tmp_path, kind, f"{FILE}{more}\n")
    told = str(caught.value)
    assert told.startswith(str(tmp_path / "table.cf"))
    assert why in told
    assert "canary" not in told or "canary" in why or "query" in more


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("pgsql", "encoding = LATIN1", "encoding = LATIN1; expected UTF8"),
        ("pgsql", "hosts = postgresql://u:canary@[x", "postgresql:// address that libpq cannot"),
        ("pgsql", "hosts = postgresql://u:canary@h/d?x=y", "postgresql:// address that libpq"),
        ("pgsql", "hosts = postgresql://u:canary/x@h/d", "postgresql:// address that libpq"),
        ("pgsql", "hosts = postgresql://u:1/canary@h/d", "postgresql:// address that libpq"),
        ("pgsql", "option_file = /x", "option_file is not known"),
        ("mysql", "charset = utf8mb5", "charset = utf8mb5; expected utf8mb4"),
        ("mysql", "charset = latin1", "charset = latin1; expected utf8mb4"),
        ("mysql", "option_group = x", "option_group without option_file"),
        ("mysql", "option_file = /no/where", "option_file = /no/where: No such file"),
        ("mysql", "require_result_set = maybe", "require_result_set = maybe; expected yes or no"),
        ("mysql", "tls_CAfile = /no/where", "TLS cannot be set up"),
        ("mysql", "tls_ciphers = nonsense", "TLS cannot be set up"),
        ("mysql", "select_function = f", "select_function is not known"),
    ],
)
def test_settings_of_one_kind_that_cannot_be_used_are_refused(
    tmp_path: Path, kind: str, more: str, why: str
) -> None:
    with pytest.raises(TableConfigError) as caught:
        opened(tmp_path, kind, f"{FILE}{more}\n")
    assert why in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pgsql", "mysql"])
def test_what_is_odd_is_told_without_its_value(tmp_path: Path, kind: str) -> None:
    table = opened(tmp_path, kind, f" canary\n{FILE}password = canary\n")
    path = tmp_path / "table.cf"
    assert table.warnings == (
        f"{path}:1: a line that continues none is left out",
        f"{path}:7: password overrides an earlier setting",
    )


def test_a_host_in_an_error_has_no_password(tmp_path: Path) -> None:
    uri = "postgresql://u:canary@127.0.0.1:1/d"
    table = opened(tmp_path, "pgsql", f"hosts = {uri}\nquery = select 1\n")
    with pytest.raises(TableError, match=r"postgresql://127\.0\.0\.1/d: ") as caught:
        trio.run(table.lookup, "a")
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(vars(table))


@pytest.mark.parametrize("kind", ["pgsql", "mysql"])
def test_s084_a_server_that_says_nothing_is_trouble(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_database, "STEP_LIMIT", 0.05)

    async def main() -> None:
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        with listener:
            hosts = f"hosts = 127.0.0.1:{listener.getsockname()[1]}\n"
            table = opened(tmp_path, kind, FILE.replace("hosts = h\n", hosts))
            with pytest.raises(TableError, match=r"no reply in time|timed out"):
                await table.lookup("a")

    trio.run(main)


@pytest.mark.parametrize("kind", ["pgsql", "mysql"])
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.0 400 Bad Request\r\n\r\n",
        b"\x01\0\0\0\x0a",  # packets of MySQL that end too soon
        b"\x0a\0\0\0\x0a5.5.5\0\1\0\0",
        bytes(range(256)),
    ],
)
def test_s084_a_server_of_another_protocol_is_trouble(
    tmp_path: Path, kind: str, said: bytes
) -> None:
    async def main() -> None:
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen()

        async def serve() -> None:
            while True:
                client, _ = await listener.accept()
                # Whoever has heard enough may close it in the middle.
                with client, suppress(OSError, trio.BrokenResourceError):
                    await trio.SocketStream(client).send_all(said)
                    client.shutdown(trio.socket.SHUT_WR)
                    while await client.recv(1000):
                        pass

        with listener:
            hosts = f"hosts = 127.0.0.1:{listener.getsockname()[1]}\n"
            table = opened(tmp_path, kind, FILE.replace("hosts = h\n", hosts))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                with pytest.raises(TableError, match=r"127\.0\.0\.1:"):
                    await table.lookup("a")
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("kind", ["pgsql", "mysql"])
def test_s084_a_host_without_a_name_is_trouble(tmp_path: Path, kind: str) -> None:
    table = opened(tmp_path, kind, FILE.replace("hosts = h\n", "hosts = a..b\n"))
    with pytest.raises(TableError, match=r": a\.\.b: (not the name of a host|could not translate)"):
        trio.run(table.lookup, "a")


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [
        ("pgsql", "psycopg", "psycopg"),
        ("mysql", "pymysql", "PyMySQL"),
        ("ldap", "ldap", "python-ldap"),
    ],
)
def test_s084_a_driver_that_is_missing_is_named(
    kind: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"worker.config.table_{kind}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping({"transport_maps": f"{kind}:/x"})
    assert f'the table type "{kind}" needs {package}, which cannot be loaded' in str(caught.value)
    assert f"pip install 'postrio[{kind}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("h", "h", 1),
        ("h:2", "h", 2),
        ("inet:h:2", "h", 2),
        ("[::1]", "::1", 1),
        ("[::1]:2", "::1", 2),
        ("inet:[h]:2", "h", 2),
        ("::1", "::1", 1),
    ],
)
def test_hosts_are_read(text: str, host: str, port: int) -> None:
    assert split_host(text, 1) == (host, port)


@pytest.mark.parametrize("text", ["", "h:", "h:x", "h:65536", "[h", "[h]x", "[h]:", ":2"])
def test_hosts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(TableConfigError, match="names no server"):
        split_host(text, 1)


@pytest.mark.parametrize(
    ("dialect", "text", "sql"),
    [
        (PGSQL, "f('%s', \"a'b\", x[1]) -- '", "f(<1>, \"a'b\", x[1]) -- '"),
        (PGSQL, "$$ ' $$ || $t$ %% ' $t$ || '%u'", "$$ ' $$ || $t$ % ' $t$ || <1>"),
        (PGSQL, "a like'%s' and b::text = '\\'", "a like<1> and b::text = '\\'"),
        (MYSQL, "a = \"%s\" and b = '\\'' and `\"` = %u", "a = <1> and b = '\\'' and `\"` = <2>"),
        (MYSQL, "'%%' # it's\n, '%s'", "'%%' # it's\n, <1>"),
        (MYSQL, "1--1 -- it's\n, '%s'", "1--1 -- it's\n, <1>"),
    ],
)
def test_a_query_is_read_in_its_dialect(dialect: Dialect, text: str, sql: str) -> None:
    query = read_query(text, lambda name: f"<{name.removeprefix('postrio')}>", dialect)
    assert query.sql == sql


@pytest.mark.parametrize(
    ("dialect", "text", "why"),
    [
        (PGSQL, "E'%s'", "an expansion in E'%s'"),
        (PGSQL, "U&'%s'", "an expansion in U&'%s'"),
        (PGSQL, '"%s"', 'an expansion in "%s"'),
        (PGSQL, "$$%s$$", r"an expansion in \$\$%s\$\$"),
        (MYSQL, "_utf8mb4'%s'", "an expansion in _utf8mb4'%s'"),
        (MYSQL, "'\\\\%s'", "an expansion beside a backslash"),
        (MYSQL, "`%s`", "an expansion in `%s`"),
    ],
)
def test_an_expansion_that_can_be_no_parameter_is_refused(
    dialect: Dialect, text: str, why: str
) -> None:
    with pytest.raises(TableConfigError, match=why):
        read_query(text, str, dialect)
