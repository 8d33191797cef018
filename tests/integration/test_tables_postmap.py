"""Lookup tables beside real `postmap -q`: the same tables, the same keys.

Tables of servers are asked of a little server in a thread, by both.
"""

import socketserver
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from tests.integration.peers import find_program
from tests.integration.postmap import TROUBLE, Answer, age, postmap_queries, postmap_query
from worker.config.tables import TableConfigError, TableError, open_maps
from worker.config.values import BadValueError, split_list

pytestmark = pytest.mark.peer("postfix")  # the package of postmap


def ours(spec: str, key: str) -> Answer:
    """What our table of the same name says."""
    try:
        table = open_maps(split_list(spec), environ={}, clock=lambda: 0.0)
        return trio.run(table.find, key)
    except (BadValueError, TableConfigError, TableError):
        return TROUBLE


@pytest.mark.parametrize(
    ("spec", "key", "answer"),
    [
        ("unionmap:{static:1, static:2}", "a", "1,2"),
        ("unionmap:{inline:{a=1},inline:{b=2},inline:{a=3}}", "A", "1,3"),
        ("unionmap:{inline:{a=1},inline:{b=2}}", "c", None),
        ("unionmap:{inline:{a=1},fail:x}", "a", TROUBLE),
        ("unionmap:{static:{a b},  static:c , }", "k", "a b,c"),
        ("unionmap:{static:x, inline:{a=}, static:y}", "a", "x,,y"),
        ("unionmap:{inline:{a=}, static:x}", "a", "x"),
        ("unionmap:{}", "a", TROUBLE),
        ("pipemap:{inline:{a=B},inline:{b=C},inline:{c=D}}", "A", "D"),
        ("pipemap:{inline:{a=b},inline:{x=c}}", "a", None),
        ("pipemap:{inline:{a=b},fail:x}", "z", None),
        ("pipemap:{inline:{a=b},fail:x}", "a", TROUBLE),
        ("pipemap:{inline:{a=}, static:x}", "a", "x"),
        ("pipemap:{{static:{a b}}}", "a", TROUBLE),
        ("randmap:{x, x}", "a", "x"),
        ("randmap:{{a b}}", "a", "{a b}"),
        ("randmap:{}", "a", TROUBLE),
        ("unionmap:{cidr:{{192.0.2.0/24 x}}, static:y}", "192.0.2.7", "x,y"),
    ],
)
def test_tables_of_tables(tmp_path: Path, spec: str, key: str, answer: Answer) -> None:
    assert postmap_query(tmp_path, spec, key) == answer
    assert ours(spec, key) == answer


KEYS = (
    *("a", "aa", "aab", "Ab", "d", "b", "9", "a{", "{", "a|b", "(a)", "$a", "a^b", "a b", "a-b"),
    *("x.y", "foo-bar", "Foo_Bar", "User+x@Example.COM", "a\\b", "a/b", "aXb", "[a]"),
)
# What both libraries read, each in its way.
COMMON = (
    *("/a/ 1", "!/a/ 1", "/A/i 1", "/^a$/ 1", "/^(.)(.*)$/ $2-${1}$(1)$$", "/a.b/ 1", "/a\\.b/ 1"),
    *("/[[:alpha:]]+[[:digit:]]*$/ 1", "/[^[:alnum:]]/ 1", "/[]a]/ 1", "/[a-]/ 1", "/a{2}/ 1"),
    *("/^a{1,2}$/ 1", "|a/b| 1", "/a\\/b/ 1", "/\\w\\W\\w/ 1", "/\\s/ 1", "/a\\b/ 1", "/(a)\\1/ 1"),
    *("/a*?$/ 1", "/^a*?b/ 1", "/\\[a\\]/ 1", "/\\$/ 1", "/a|^$/ 1", "/()b/ 1", "/\\{/ 1"),
    "if /a/\n/b/ 1\nif !/x/\n/^a$/ 2\nendif\nendif\n/./ 3",
    "if !/a/\n/./ 1\nENDIF\n/b$/ 2",
)
POSIX = (
    *(
        "/^a+?$/ 1",
        "/^a++b/ 1",
        "/^a**b/ 1",
        "/^(a|b)?+$/ 1",
        "/a{,2}b/ 1",
        "/[\\]/ 1",
        "/[a\\]b]/ 1",
    ),
    *("/\\<b\\>/ 1", "/\\`a/ 1", "/b\\'/ 1"),
)
PCRE = (
    *("/\\d/ 1", "/^\\D$/ 1", "/\\Aa/ 1", "/^a+?$/ 1", "/^a++b/ 1", "/^a++ab/ 1", "/(?:a)b/ 1"),
    *("/a(?=b)/ 1", "/a(?!b)/ 1", "/(?<=a)b/ 1", "/(?i)A/i 1", "/a b/x 1", "/B/A 1", "/[a\\]]/ 1"),
    *("/\\x61b/ 1", "/(?>a*)b/ 1", "/a{/ 1", "/{/ 1", "/(?P<n>a)b/ $1"),
)
CIDR = (
    "192.0.2.0/24 1\n!192.0.0.0/8 2\n2001:db8::/32 3",
    "if 192.0.2.0/24\n192.0.2.7 1\n!192.0.2.8 2\nendif\n0.0.0.0/0 3",
    "if !192.0.2.0/24\n0.0.0.0/0 1\nendif\n::/0 2",
    "[2001:db8::1] 1\n[2001:db8::]/32 2\n!::/0 3",
)
ADDRESSES = (
    *("192.0.2.7", "192.0.2.8", "192.0.3.1", "10.0.0.1", "2001:db8::1", "2001:db8::2", "::1"),
    *("mail.example", "192.0.2"),
)
TEXT = 'A 1\nb\t2 3 \n\tcontinued\n"c d" 4\n# c 5\n\nUser@Example.COM x@y\na 9\n'


@pytest.mark.parametrize(
    ("kind", "text", "keys"),
    [
        *[("regexp", text, KEYS) for text in (*COMMON, *POSIX)],
        *[pytest.param("pcre", t, KEYS, marks=pytest.mark.peer("postfix-pcre.so")) for t in COMMON],
        *[pytest.param("pcre", t, KEYS, marks=pytest.mark.peer("postfix-pcre.so")) for t in PCRE],
        *[("cidr", text, ADDRESSES) for text in CIDR],
        ("texthash", TEXT, ("a", "A", "b", '"c d"', "c d", "c", "user@example.com", "x", "#")),
    ],
)
def test_s084_tables_in_text_files(
    tmp_path: Path, kind: str, text: str, keys: tuple[str, ...]
) -> None:
    table = tmp_path / "table"
    table.write_text(text + "\n")
    age(table)
    theirs, complaints = postmap_queries(tmp_path, f"{kind}:{table}", keys)
    assert not [line for line in complaints if "duplicate entry" not in line]
    assert {key: ours(f"{kind}:{table}", key) for key in keys} == theirs


@pytest.mark.peer("postfix-sqlite.so")
@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ("query = select v from t where k = '%s'", ("a", "A", "it's", "b")),
        ("query = select v from t where k = '%s'\nresult_format = <%s>", ("a", "b")),
        (
            "query = select v from t where k = '%u' or k = '%d'\ndomain = example.com",
            ("a", "a@example.com", "b@example.com", "a@other.example"),
        ),
        ("query = select v from t\nexpansion_limit = 1", ("a",)),
        ("query = select v, n from t where k = '%s'", ("a",)),
        ("query = select v from missing", ("a",)),
    ],
)
def test_sqlite(tmp_path: Path, settings: str, keys: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(tmp_path / "data")) as database:
        database.execute("create table t (k, v, n integer)")
        rows = [("a", "1", 1), ("a", "2", 2), ("it's", "3", 3), ("example.com", "4", 4)]
        database.executemany("insert into t values (?, ?, ?)", rows)
        database.commit()
    table = tmp_path / "table.cf"
    table.write_text(f"dbpath = {tmp_path}/data\n{settings}\n")
    age(table)
    for key in keys:
        assert ours(f"sqlite:{table}", key) == postmap_query(tmp_path, f"sqlite:{table}", key), key


@contextmanager
def serving(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server on a port of loopback that answers what comes in one piece."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while request := self.request.recv(10_000):
                self.request.sendall(answer(request))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"OK a text", "a text"),
        (b"NOTFOUND ", None),
        (b"NOTFOUND", None),
        (b"NOTFOUND x", None),
        (b"TEMP later", TROUBLE),
        (b"MAYBE", TROUBLE),
        (b"OK " + b"x" * 99_997, "x" * 99_997),
        (b"OK " + b"x" * 99_998, TROUBLE),
    ],
)
def test_socketmap(tmp_path: Path, reply: bytes, answer: Answer) -> None:
    requests: list[bytes] = []

    def serve(request: bytes) -> bytes:
        requests.append(request)
        return b"%d:%b," % (len(reply), reply)

    with serving(serve) as port:
        spec = f"socketmap:inet:127.0.0.1:{port}:map"
        assert postmap_query(tmp_path, spec, "a b@c") == answer
        assert ours(spec, "a b@c") == answer
    assert set(requests) == {b"9:map a b@c,"}


# Without replies that are trouble: postmap asks ten times then, with a second between. It was seen
# to fail for "500" without a space, "400 later", "300 x", "200 a%2" and "hello".
@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"200 a text\n", "a text"),
        (b"200 a%20%25b\n", "a %b"),
        (b"500 not%20found\n", None),
    ],
)
def test_tcp(tmp_path: Path, reply: bytes, answer: Answer) -> None:
    requests: list[bytes] = []

    def serve(request: bytes) -> bytes:
        requests.append(request)
        return reply

    with serving(serve) as port:
        spec = f"tcp:127.0.0.1:{port}"
        assert postmap_query(tmp_path, spec, "a b%@\u00fc") == answer
        assert ours(spec, "a b%@\u00fc") == answer
    assert set(requests) == {b"get a%20b%25@%C3%BC\n"}


@pytest.mark.parametrize(
    ("keys", "status"), [(b"a\nzz\nb\n", 0), (b"zz\n", 1), (b"  a\nB", 0), (b"", 1)]
)
def test_keys_from_standard_input(tmp_path: Path, keys: bytes, status: int) -> None:
    postmap = find_program("postmap")
    assert postmap is not None
    (tmp_path / "main.cf").write_text("")
    ask = ["-c", "from worker.cli import main; main()", "table", "query"]
    commands: list[list[str | Path]] = [
        [postmap, "-c", tmp_path, "-q", "-", "inline:{a=1,b=2}"],
        [sys.executable, *ask, "-c", tmp_path, "inline:{a=1,b=2}", "-"],
    ]
    top = Path(__file__).parents[2]
    answers = [
        subprocess.run(command, input=keys, capture_output=True, check=False, cwd=top)
        for command in commands
    ]
    assert answers[0].stdout == answers[1].stdout
    assert [done.returncode for done in answers] == [status, status]
