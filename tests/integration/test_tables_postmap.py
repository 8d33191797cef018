"""Lookup tables beside real `postmap -q`: the same tables, the same keys.

Tables of servers are asked of a little server in a thread, by both.
"""

import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.integration.peers import find_program
from tests.integration.postmap import TROUBLE, Answer, postmap_query
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
