"""Tables in SQLite databases; their templates. Answers were checked against postmap -q (3.7)."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from trio.testing import trio_test

from worker.config import table_sqlite
from worker.config.table import Table, TableConfigError, TableError
from worker.config.table_templates import read_query
from worker.config.tables import open_table

ROWS = [
    ("a@b.c", "x@y", 5),
    ("a@b.c", "z", 6),
    ("it's@b.c", "q", 7),
    ("empty@b.c", "", 8),
    ("null@b.c", None, 9),
    ("float@b.c", 1.5, 10),
    ("int@b.c", 42, 11),
    ("large@b.c", 1e20, 12),
    ("whole@b.c", 2.0, 13),
    ("domain@b.c", "@dom", 14),
    ("bytes@b.c", b"text", 15),
    ("bad@b.c", b"\xff", 16),
]
PLAIN = "query = select v from a where k = '%s'\n"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a?b%c.sqlite"  # a name that means something in a URI
    make(path)
    return path


def make(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table a (k, v, n integer)")
        connection.executemany("insert into a values (?, ?, ?)", ROWS)
        connection.commit()


def table(database: Path, settings: str) -> Table:
    path = database.parent / "table.cf"
    path.write_text(f"dbpath = {database}\n{settings}")
    return open_table(f"sqlite:{path}", environ={}, clock=lambda: 0.0)


@pytest.mark.parametrize(
    ("settings", "key", "text"),
    [
        (PLAIN, "A@b.C", "x@y,z"),
        (PLAIN, "it's@b.c", "q"),
        (PLAIN, "' or 1=1 --", None),
        (PLAIN, "", None),
        (PLAIN, "empty@b.c", None),
        (PLAIN, "null@b.c", None),
        (PLAIN, "\udcff@b.c", None),
        (PLAIN + "result_format = [%s]", "empty@b.c", None),
        (PLAIN + "result_format = [%s]", "null@b.c", None),
        (PLAIN, "float@b.c", "1.5"),
        (PLAIN, "int@b.c", "42"),
        (PLAIN, "large@b.c", "1.0e+20"),
        (PLAIN, "whole@b.c", "2.0"),
        (PLAIN, "bytes@b.c", "text"),
        (
            PLAIN + "result_format = [%s]%%%u|%S|%U|%D|%1|%2",
            "it's@b.c",
            "[q]%q|it's@b.c|it's|b.c|c|b",
        ),
        (PLAIN + "result_format = %d!", "a@b.c", "y!"),
        (PLAIN + "result_format = %d!", "domain@b.c", "dom!"),
        (PLAIN + "result_format = %u!", "a@b.c", "x!,z!"),
        (PLAIN + "result_format = %u!", "domain@b.c", None),
        (PLAIN + "expansion_limit = 1", "it's@b.c", "q"),
        ("query = select v from a where k = '%u@%d';", "a@b.c", "x@y,z"),
        ("query = select v from a where n = %s", "5", "x@y"),
        ("query = select v from a where n = %s", "5 or 1=1", None),
        ("query = select v from a where k like '%%%u%%' order by n", "it's", "q"),
        ("query = select '%1.%2'", "x@mail.b.c", "c.b"),
        ("query = select '%1.%2'", "x@b..c", "c.b"),
        ("query = select '%1.%2'", "x@.c", None),
        ("query = select '%1.%2'", "b.c", None),
        ("query = select 'u=%u'", "@b.c", None),
        ("query = select 'u=%u'", "x", "u=x"),
        ("query = select 'a%%b' /* 100%% */", "x", "a%b"),
        ("query = select '$x %s'", "x@y@b.c", "$x x@y@b.c"),
        ("query = select '%d'\ndomain = b.c, d.e", "x@b.c", "b.c"),
        ("query = select '%s'\ndomain = b.c, d.e", "b.c", None),
        ("query = select '%s'\ndomain = b.c, d.e", "@b.c", None),
        ("query = select '%s'\ndomain = b.c, d.e", "x@sub.b.c", None),
        (
            "table = a\nselect_field = v\nwhere_field = k\nadditional_conditions = and n = 5",
            "a@b.c",
            "x@y",
        ),
    ],
)
@trio_test
async def test_queries_answer_as_in_postfix(
    database: Path, settings: str, key: str, text: str | None
) -> None:
    assert await table(database, settings).lookup(key) == text


@pytest.mark.parametrize(
    ("settings", "key", "why"),
    [
        (PLAIN + "expansion_limit = 1", "a@b.c", "more than 1 values"),
        (PLAIN, "bad@b.c", "can't decode"),
        ("query = selec v", "x", "syntax error"),
        ("query = select 1; select 2", "x", "one statement"),
        ("query = insert into a values ('%s', 1, 1)", "x", "readonly database"),
        ("query = select ?", "x", "inding 1"),
        ("query = select zeroblob(2000000)", "x", "too big"),
        (
            "query = with recursive r(n) as (select 1 union all select n + 1 from r)"
            " select n from r",
            "x",
            "more than 100000 characters",
        ),
        ("query = select '%s'\ndomain = fail:x", "x@y", "fail:x lookup of y"),
    ],
)
@trio_test
async def test_trouble_is_never_not_found(
    database: Path, settings: str, key: str, why: str
) -> None:
    with pytest.raises(TableError) as caught:
        await table(database, settings).lookup(key)
    assert why in str(caught.value)


@trio_test
async def test_a_query_without_an_end_is_cut(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_sqlite, "TIME_LIMIT", 0.0)
    endless = "with recursive r(n) as (select 1 union all select n from r) select sum(n) from r"
    with pytest.raises(TableError, match="interrupted"):
        await table(database, f"query = {endless}").lookup("x")


@trio_test
async def test_a_database_that_is_gone_fails_lookups_until_it_is_back(database: Path) -> None:
    under_test = table(database, PLAIN)
    away = database.with_name("away")
    os.rename(database, away)  # noqa: PTH104  # Path's would be asked to be awaited
    with pytest.raises(TableError, match="unable to open"):
        await under_test.lookup("a@b.c")
    os.link(away, database)  # fails if the lookup has made a database
    assert await under_test.lookup("a@b.c") == "x@y,z"


@trio_test
async def test_changed_settings_are_read_again(database: Path) -> None:
    now = 0.0
    path = database.parent / "table.cf"
    path.write_text(f"dbpath = {database}\nquery = select 'one'\n")
    under_test = open_table(f"sqlite:{path}", environ={}, clock=lambda: now)
    assert await under_test.lookup("x") == "one"
    path.write_text(f"dbpath = {database}\nquery = select 'another'\n")
    now = 1.0
    assert await under_test.lookup("x") == "another"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("query = select '%x'", '"%x" in the query; expected %s, %u'),
        ("query = select '%", "' without its partner"),
        ("query = select 5%", '"%" in the query'),
        ('query = select "%s"', 'an expansion in "%s"; expected expansions in single quotes'),
        ("query = select 1 -- %s", "an expansion in -- %s"),
        ("query = select [%s]", "an expansion in [%s]"),
        (PLAIN + "result_format = %q", '"%q" in result_format'),
        (PLAIN + "expansion_limit = -1", "expansion_limit = -1; expected a whole number"),
        (PLAIN + "domain = hsh:x", 'no table type "hsh"'),
        (PLAIN + "domain = {", "expected"),
        (PLAIN + "dbpath = here", 'dbpath = "here"; expected a path from the root'),
        ("table = a", "neither query nor select_field"),
        ("nonsense", 'table.cf:2: no "="'),
        ("= nonsense", "table.cf:2: no name in the line"),
        (PLAIN + "result_fromat = x", "table.cf:3: result_fromat is not known; expected one of"),
        ("query = select a_%d from a", "an expansion in _%d"),
        ("query = select %d_a from a", "an expansion before _a"),
        ("query = select x'%s'", "an expansion in x'%s'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(database: Path, settings: str, why: str) -> None:
    with pytest.raises(TableConfigError) as caught:
        table(database, settings)
    assert "table.cf:" in str(caught.value)
    assert why in str(caught.value)


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(TableConfigError, match="depends on the working directory"):
        open_table("sqlite:table.cf", environ={}, clock=lambda: 0.0)


def test_a_query_takes_nothing_of_the_key_into_its_text() -> None:
    query = read_query("select 'it''s %u' || %s, '%%', x - 1 / 2 -- 'x'", lambda name: f":{name}")
    assert query.sql == "select :postrio1 || :postrio2, '%', x - 1 / 2 -- 'x'"
