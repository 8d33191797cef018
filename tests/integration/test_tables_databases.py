"""Tables in PostgreSQL and MariaDB beside real `postmap -q`: the same files, the same keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.integration.database_servers import PASSWORD, USER, MariaServer, PostgresServer
from tests.integration.postmap import TROUBLE, Answer, age, postmap_query
from worker.config.tables import Table, TableError, open_table

ROWS = """
create table a (k varchar(99), v varchar(99), w varchar(99), n integer);
insert into a values
 ('a@b.c', 'x@y', 'two', 5), ('a@b.c', 'z', null, 6), ('it''s@b.c', 'q', '', 7),
 ('empty@b.c', '', null, 8), ('null@b.c', null, null, 9), ('domain@b.c', '@dom', null, 14),
 ('ba\\\\ck@b.c', 'back', null, 15), ('per%cent@b.c', 'percent', null, 16),
 ('quo"te@b.c', 'quote', null, 17), ('\u00fc@b.c', '\u00e4', null, 18);
"""
PLAIN = "query = select v from a where k = '%s' order by n"
# Settings, key, answer; of both databases.
CASES: list[tuple[str, str, Answer]] = [
    (PLAIN, "A@b.C", "x@y,z"),
    (PLAIN, "it's@b.c", "q"),
    (PLAIN, "ba\\ck@b.c", "back"),
    (PLAIN, "per%cent@b.c", "percent"),
    (PLAIN, 'quo"te@b.c', "quote"),
    (PLAIN, "' or 1=1 -- ", None),
    (PLAIN, "\\' or 1=1 -- ", None),
    (PLAIN, "empty@b.c", None),
    (PLAIN, "null@b.c", None),
    (PLAIN, "nobody@b.c", None),
    ("query = select v, w from a where k = '%s' order by n", "a@b.c", "x@y,two,z"),
    ("query = select n from a where k = '%u@%d' order by n;", "a@b.c", "5,6"),
    ("query = select n from a where k = '%u@%d' order by n;", "b.c", None),
    ("query = select '%1.%2'", "x@mail.b.c", "c.b"),
    ("query = select '%1.%2'", "x@c", None),
    ("query = select v from a where k like '%%%u%%'", "it's", "q"),
    ("query = select 'a%%b' /* 100%% */", "x", "a%b"),
    (PLAIN + "\nresult_format = [%s]%%%u|%S|%U|%D|%1", "it's@b.c", "[q]%q|it's@b.c|it's|b.c|c"),
    (PLAIN + "\nresult_format = %d!", "a@b.c", "y!"),
    (PLAIN + "\nexpansion_limit = 1", "it's@b.c", "q"),
    ("query = select '%s'\ndomain = b.c, d.e", "x@b.c", "x@b.c"),
    ("query = select '%s'\ndomain = b.c, d.e", "x@sub.b.c", None),
    ("table = a\nselect_field = v\nwhere_field = k\nadditional_conditions = and n = 5", "a@b.c",
     "x@y"),
]  # fmt: skip


def opened(spec: str) -> Table:
    return open_table(spec, environ={}, clock=lambda: 0.0)


def ours(table: Table, key: str) -> Answer:
    try:
        return trio.run(table.lookup, key)
    except TableError:
        return TROUBLE


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        server.execute(ROWS.replace("\\\\", "\\"))
        password = PASSWORD.replace("'", "''")
        server.execute(
            f"create role {USER} login password '{password}'; grant select on a to {USER};"
            "create function twice(text) returns setof text language sql"
            " as $$ select v from a where k = $1 order by n $$;"
        )
        yield server


@pytest.fixture(scope="module")
def maria() -> Iterator[MariaServer]:
    with MariaServer() as server:
        password = PASSWORD.replace("\\", "\\\\").replace("'", "''")
        server.execute(
            "create database d character set utf8mb4",
            "use d",
            *(each for each in ROWS.split(";") if each.strip()),
            f"create user {USER} identified by '{password}'",
            f"grant select, execute on d.* to {USER}",
            "create procedure p(in key_ varchar(99)) select v from a where k = key_ order by n",
            "create procedure none_() set @x = 1",
            "create procedure two() begin select 1; select 2; end",
        )
        yield server


def file_of(directory: Path, hosts: str, settings: str, dbname: str) -> Path:
    path = directory / "table.cf"
    path.write_text(
        f"hosts = {hosts}\nuser = {USER}\npassword = {PASSWORD}\ndbname = {dbname}\n{settings}\n"
    )
    return age(path)


@pytest.mark.peer("postfix", "postgres", "initdb", "postfix-pgsql.so")
@pytest.mark.parametrize(
    ("settings", "key", "answer"),
    [
        *CASES,
        ("select_function = twice", "a@b.c", "x@y,z"),
        ("query = select n from a where n = '%s'", "5", "5"),
        ("query = select n from a where n = '%s'", "five", TROUBLE),
        (PLAIN + "\nexpansion_limit = 1", "a@b.c", TROUBLE),
        ("query = select '%s'; select 1", "x", TROUBLE),
        ("query = select true, 1.50::numeric, 'x'::bytea", "x", "t,1.50,\\x78"),
        ("query = select v from a where k = any(array['%s', 'b'])", "a@b.c", "x@y,z"),
    ],
)
def test_s084_pgsql_answers_as_postmap(
    tmp_path: Path, postgres: PostgresServer, settings: str, key: str, answer: Answer
) -> None:
    spec = f"pgsql:{file_of(tmp_path, f'127.0.0.1:{postgres.port}', settings, 'postgres')}"
    if "; select 1" not in settings:  # Postfix sends it; the results that it forgets are its own
        assert postmap_query(tmp_path, spec, key) == answer
    assert ours(opened(spec), key) == answer


@pytest.mark.peer("postfix", "mariadbd", "mariadb-install-db", "postfix-mysql.so")
@pytest.mark.parametrize(
    ("settings", "key", "answer"),
    [
        *CASES,
        ('query = select v from a where k = "%s" order by n', "a@b.c", "x@y,z"),
        ("query = call p('%s')", "a@b.c", "x@y,z"),
        ("query = call p('%s')", "nobody@b.c", None),
        ("query = call none_()", "x", TROUBLE),
        ("query = call none_()\nrequire_result_set = no", "x", None),
        ("query = call two()", "x", TROUBLE),
        ("query = select 1.50, 2e0, date('2020-01-02'), cast('x' as binary), true", "x",
         "1.50,2,2020-01-02,x,1"),
    ],
)  # fmt: skip
def test_s084_mysql_answers_as_postmap(
    tmp_path: Path, maria: MariaServer, settings: str, key: str, answer: Answer
) -> None:
    spec = f"mysql:{file_of(tmp_path, f'127.0.0.1:{maria.port}', settings, 'd')}"
    assert postmap_query(tmp_path, spec, key) == answer
    assert ours(opened(spec), key) == answer


def failure(table: Table, key: str = "a@b.c") -> str:
    """Why there is no answer."""
    with pytest.raises(TableError) as caught:
        trio.run(table.lookup, key)
    return str(caught.value)


@pytest.mark.peer("postgres", "initdb")
def test_s084_pgsql_answers_again_after_its_connection_and_its_server_were_gone(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    now = 0.0
    path = file_of(
        tmp_path, f"unix:{postgres.directory}/.s.PGSQL.{postgres.port}", PLAIN, "postgres"
    )
    table = open_table(f"pgsql:{path}", environ={}, clock=lambda: now)
    assert postgres.clients() == 0
    assert ours(table, "a@b.c") == ours(table, "a@b.c") == "x@y,z"
    assert postgres.clients() == 1  # the connection is kept
    postgres.end_clients()
    assert ours(table, "a@b.c") == "x@y,z"
    postgres.stop()
    try:
        assert "No such file or directory" in failure(table)
        assert failure(table).endswith(", lately")
    finally:
        postgres.start()
    now = 2.0
    assert ours(table, "a@b.c") == "x@y,z"


@pytest.mark.peer("postgres", "initdb")
def test_s084_pgsql_asks_the_next_host_and_takes_addresses(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    here = f"127.0.0.1:{postgres.port}"
    address = f"postgresql://{here}/postgres?sslmode=disable"
    for hosts in (f"127.0.0.1:1 {here}", address, f"postgresql://127.0.0.1:1/x inet:{here}"):
        table = opened(f"pgsql:{file_of(tmp_path, hosts, PLAIN, 'postgres')}")
        assert {ours(table, "a@b.c") for _ in range(5)} == {"x@y,z"}


@pytest.mark.peer("mariadbd", "mariadb-install-db")
def test_s084_mysql_answers_again_after_its_connection_and_its_server_were_gone(
    tmp_path: Path, maria: MariaServer
) -> None:
    now = 0.0
    path = file_of(tmp_path, f"unix:{maria.socket}", PLAIN, "d")
    table = open_table(f"mysql:{path}", environ={}, clock=lambda: now)
    assert maria.clients() == []
    assert ours(table, "a@b.c") == ours(table, "a@b.c") == "x@y,z"
    [client] = maria.clients()  # the connection is kept
    maria.execute(f"kill {client}")
    assert ours(table, "a@b.c") == "x@y,z"
    maria.execute("insert into d.a values ('new@b.c', 'new', null, 1)")
    assert ours(table, "new@b.c") == "new"  # no transaction hides it
    maria.stop()
    try:
        assert "No such file or directory" in failure(table)
        assert failure(table).endswith(", lately")
    finally:
        maria.start()
    now = 2.0
    assert ours(table, "a@b.c") == "x@y,z"


@pytest.mark.peer("mariadbd", "mariadb-install-db")
def test_s084_mysql_without_the_tls_that_was_asked_for_is_trouble(
    tmp_path: Path, maria: MariaServer
) -> None:
    path = file_of(tmp_path, f"127.0.0.1:{maria.port}", f"{PLAIN}\ntls_ciphers = HIGH", "d")
    assert "SSL is required but the server doesn't support it" in failure(opened(f"mysql:{path}"))


@pytest.mark.peer("mariadbd", "mariadb-install-db")
def test_s084_mysql_reads_an_option_file(tmp_path: Path, maria: MariaServer) -> None:
    maria.execute("create or replace user optional identified by 'canary'",
                  "grant select on d.* to optional")  # fmt: skip
    options = tmp_path / "my.cnf"
    options.write_text("[client]\nuser = optional\npassword = canary\n")
    path = tmp_path / "table.cf"
    path.write_text(
        f"hosts = 127.0.0.1:{maria.port}\ndbname = d\n{PLAIN}\noption_file = {options}\n"
    )
    assert ours(opened(f"mysql:{path}"), "a@b.c") == "x@y,z"
    for broken in ("[client]\npassword = canary\nuser canary\n=\n", "[client]\npassword = \u20ac"):
        options.write_text(broken)
        why = failure(opened(f"mysql:{path}"))
        assert f"{options} cannot be read as an option file" in why
        assert "canary" not in why
        assert "20ac" not in why


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("pgsql", marks=pytest.mark.peer("postgres", "initdb")),
        pytest.param("mysql", marks=pytest.mark.peer("mariadbd", "mariadb-install-db")),
    ],
)
def test_s084_a_password_that_is_wrong_is_never_shown(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres" if kind == "pgsql" else "maria")
    path = file_of(tmp_path, f"127.0.0.1:{server.port}", PLAIN, "d")
    path.write_text(path.read_text().replace(PASSWORD, "canary"))
    why = failure(opened(f"{kind}:{path}"))
    assert USER in why
    assert f"127.0.0.1:{server.port}" in why
    assert "canary" not in why
