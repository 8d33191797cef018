"""Tables that servers answer for: socketmap and tcp.

The servers are scripts at the other end of a socket pair, on a virtual clock: each connection plays
the next script, and nothing here waits for real time.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock, trio_test

from worker.config.table import TableConfigError, TableError
from worker.config.table_served import CONNECTIONS, ServedTable
from worker.config.table_socketmap import REPLY_LIMIT, Socketmap
from worker.config.table_tcp import LINE_LIMIT, Tcp
from worker.config.tables import open_table

Script = Callable[[trio.SocketStream], Awaitable[None]]


class Server:
    """Plays a script for each connection; the last one again for later ones."""

    def __init__(self, nursery: trio.Nursery, *scripts: Script) -> None:
        self._nursery = nursery
        self._scripts = list(scripts)
        self.connections = 0

    async def connect(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        ours, theirs = (trio.SocketStream(sock) for sock in trio.socket.socketpair())
        self.connections += 1
        script = self._scripts[0] if len(self._scripts) == 1 else self._scripts.pop(0)
        self._nursery.start_soon(self._play, script, theirs)
        return ours

    async def _play(self, script: Script, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):  # the client has closed it
                await script(stream)


def answers(*replies: bytes, expected: bytes = b"") -> Script:
    """Answer requests with these replies, in order, then close."""

    async def play(stream: trio.SocketStream) -> None:
        for reply in replies:
            request = await stream.receive_some(REPLY_LIMIT)
            if expected:
                assert request == expected
            await stream.send_all(reply)
        await stream.receive_some(1)

    return play


async def silence(stream: trio.SocketStream) -> None:
    while await stream.receive_some(1_000):
        pass


async def closing(stream: trio.SocketStream) -> None:
    await stream.receive_some(1_000)


@asynccontextmanager
async def socketmap(*scripts: Script) -> AsyncIterator[tuple[ServedTable, Server]]:
    async with trio.open_nursery() as nursery:
        server = Server(nursery, *scripts)
        yield Socketmap("socketmap:inet:here:1:map", server, "map"), server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp(*scripts: Script) -> AsyncIterator[ServedTable]:
    async with trio.open_nursery() as nursery:
        yield Tcp("tcp:here:1", Server(nursery, *scripts))
        nursery.cancel_scope.cancel()


def netstring(text: bytes) -> bytes:
    return b"%d:%b," % (len(text), text)


# --- socketmap -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"OK a text", "a text"),
        (b"OK ", ""),
        (b"OK", ""),
        ("OK gr\u00fcn".encode(), "gr\u00fcn"),
        (b"NOTFOUND ", None),
        (b"NOTFOUND", None),
        (b"OK " + b"x" * (REPLY_LIMIT - 3), "x" * (REPLY_LIMIT - 3)),
    ],
)
@trio_test
async def test_socketmap_replies_are_read(reply: bytes, text: str | None) -> None:
    script = answers(netstring(reply), expected=b"9:map a@b.c,")
    async with socketmap(script) as (table, _):
        assert await table.lookup("a@b.c") == text


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (netstring(b"TEMP later"), "the server says: later"),
        (netstring(b"TIMEOUT "), "the server has no answer"),
        (netstring(b"PERM no"), "the server says: no"),
        (netstring(b"MAYBE x"), 'the status "MAYBE"'),
        (netstring(b""), 'the status ""'),
        (netstring(b"OK \xff"), "not UTF-8"),
        (b"x", "not a netstring"),
        (b"12345678", "not a netstring"),
        (b":,", "not a netstring"),
        (b"4:OK x.", "without a comma"),
        (b"100001:", "100001 octets, over 100000"),
        (b"4:OK x,4:", "more than one reply"),
    ],
)
@trio_test
async def test_socketmap_trouble_fails_and_closes(octets: bytes, why: str) -> None:
    async with socketmap(
        answers(octets, netstring(b"OK out of step")), answers(netstring(b"OK x"))
    ) as (table, server):
        with pytest.raises(TableError) as caught:
            await table.lookup("key")
        assert str(caught.value).startswith("socketmap:inet:here:1:map: ")
        assert why in str(caught.value)
        assert await table.lookup("key") == "x"
        assert server.connections == 2


# --- tcp -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "wire"),
    [
        ("a@b.c", b"get a@b.c\n"),
        ("a b%\n", b"get a%20b%25%0A\n"),
        ("\u00fc", b"get %C3%BC\n"),
        ("", b"get \n"),
    ],
)
@trio_test
async def test_tcp_keys_are_encoded(key: str, wire: bytes) -> None:
    async with tcp(answers(b"500 not found\n", expected=wire)) as table:
        assert await table.lookup(key) is None


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"200 smtp:[a]%20%25%C3%BC\n", "smtp:[a] %\u00fc"),
        (b"200 a b\n", "a b"),
        (b"200 \n", ""),
        (b"200 " + b"x" * (LINE_LIMIT - 5) + b"\n", "x" * (LINE_LIMIT - 5)),
    ],
)
@trio_test
async def test_tcp_texts_are_decoded(reply: bytes, text: str) -> None:
    async with tcp(answers(reply)) as table:
        assert await table.lookup("key") == text


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"400 try%20again\n", "the server says: try again"),
        (b"200 a%2\n", "% without two hexadecimal digits"),
        (b"200 a%zz\n", "% without two hexadecimal digits"),
        (b"200 %FF\n", "not UTF-8"),
        (b"250 x\n", "the status 250"),
        (b"hello\n", 'no "200 text"'),
        (b"500\n", 'no "200 text"'),
        (b"x" * LINE_LIMIT, "over 4096 octets"),
        (b"200 x\n200 y\n", "more than one reply"),
    ],
)
@trio_test
async def test_tcp_trouble_fails(octets: bytes, why: str) -> None:
    async with tcp(answers(octets)) as table:
        with pytest.raises(TableError) as caught:
            await table.lookup("key")
        assert why in str(caught.value)


# --- connections ---------------------------------------------------------------------------------


@trio_test
async def test_a_connection_serves_one_lookup_after_another() -> None:
    async with socketmap(answers(netstring(b"OK 1"), netstring(b"OK 2"))) as (table, server):
        assert [await table.lookup("a"), await table.lookup("b")] == ["1", "2"]
        assert server.connections == 1


@trio_test
async def test_an_old_connection_is_not_used_again(autojump_clock: MockClock) -> None:
    async with socketmap(
        answers(netstring(b"OK 1"), netstring(b"OK stale")), answers(netstring(b"OK 2"))
    ) as (table, server):
        await table.lookup("a")
        await trio.sleep(10)
        assert await table.lookup("b") == "2"
        assert server.connections == 2


@trio_test
async def test_connections_that_a_busy_time_has_left_are_closed(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def slow(stream: trio.SocketStream) -> None:
        while await stream.receive_some(1_000):
            await trio.sleep(1)
            await stream.send_all(netstring(b"OK 1"))
        ended.append(trio.current_time())

    async with socketmap(slow) as (table, server):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(table.lookup, "a")
        for _ in range(2):
            await trio.sleep(5)
            await table.lookup("a")
        assert server.connections == 3
        assert ended == [12.0, 12.0]


@trio_test
async def test_a_kept_connection_that_its_server_closes_costs_nothing() -> None:
    async def once(stream: trio.SocketStream) -> None:
        await stream.receive_some(1_000)
        await stream.send_all(netstring(b"OK 1"))
        await stream.receive_some(1_000)  # the second request is read, and not answered

    async with socketmap(once, answers(netstring(b"OK 2"))) as (table, server):
        await table.lookup("a")
        assert await table.lookup("b") == "2"
        assert server.connections == 2


@trio_test
async def test_a_kept_connection_that_has_spoken_unasked_is_not_used() -> None:
    kept, spoken = trio.Event(), trio.Event()

    async def talkative(stream: trio.SocketStream) -> None:
        await stream.receive_some(1_000)
        await stream.send_all(netstring(b"OK 1"))
        await kept.wait()
        await stream.send_all(netstring(b"OK somebody else's"))
        spoken.set()
        await stream.receive_some(1)

    async with socketmap(talkative, answers(netstring(b"OK 2"))) as (table, _):
        await table.lookup("a")
        kept.set()
        await spoken.wait()
        assert await table.lookup("b") == "2"


@trio_test
async def test_a_server_that_closes_at_once_is_trouble() -> None:
    async with socketmap(closing) as (table, server):
        with pytest.raises(TableError, match="closed the connection without a reply"):
            await table.lookup("a")
        assert server.connections == 1


@trio_test
async def test_a_silent_server_fails_after_its_limit_and_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    async with socketmap(silence, answers(netstring(b"OK 1"))) as (table, server):
        with pytest.raises(TableError, match="no reply within 100 seconds"):
            await table.lookup("a")
        assert trio.current_time() == 100.0
        with pytest.raises(TableError, match="lately"):
            await table.lookup("b")
        assert server.connections == 1
        await trio.sleep(60)
        assert await table.lookup("b") == "1"


@trio_test
async def test_a_late_reply_never_answers_another_key(autojump_clock: MockClock) -> None:
    async def late(stream: trio.SocketStream) -> None:
        await stream.receive_some(1_000)
        await trio.sleep(5)
        await stream.send_all(netstring(b"OK late"))

    async with socketmap(late, answers(netstring(b"OK 2"))) as (table, _):
        with trio.move_on_after(1):
            await table.lookup("a")
        assert await table.lookup("b") == "2"


@trio_test
async def test_no_more_connections_are_open_than_the_limit(autojump_clock: MockClock) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        while await stream.receive_some(1_000):
            await trio.sleep(1)
            await stream.send_all(netstring(b"OK 1"))

    async with socketmap(slow) as (table, server):
        async with trio.open_nursery() as nursery:
            for _ in range(3 * CONNECTIONS):
                nursery.start_soon(table.lookup, "a")
        assert server.connections == CONNECTIONS
        assert trio.current_time() == 3.0


@trio_test
async def test_nobody_who_listens_is_trouble() -> None:
    with socket.socket() as sock:  # bound, so that nobody else gets the port; not listening
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        for spec in (f"tcp:127.0.0.1:{port}", f"socketmap:inet:127.0.0.1:{port}:m"):
            table = open_table(spec, environ={}, clock=lambda: 0.0)
            with pytest.raises(TableError, match=r"cannot connect: Connection refused$"):
                await table.lookup("a")
    table = open_table("socketmap:unix:/nowhere:m", environ={}, clock=lambda: 0.0)
    with pytest.raises(TableError, match="cannot connect: No such file"):
        await table.lookup("a")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("tcp:foo", "names no server; expected host:port"),
        ("tcp::25", "names no server"),
        ("tcp:foo:0", 'there is no port "0"'),
        ("tcp:foo:99999999999", "there is no port"),
        ("tcp:foo:nosuchservice", 'there is no port "nosuchservice"'),
        (f"tcp:{'x' * 70}:1", "is not a host name"),
        ("socketmap:foo", "names no server and map"),
        ("socketmap:inet:foo:1", "names no server; expected host:port"),
        ("socketmap:inet:foo:1:", "names no server and map"),
        ("socketmap:unix:socket:m", "depends on the working directory"),
        (f"socketmap:unix:/{'x' * 107}:m", "too long for a socket"),
    ],
)
def test_a_server_that_cannot_be_is_refused_when_the_table_is_opened(spec: str, why: str) -> None:
    with pytest.raises(TableConfigError) as caught:
        open_table(spec, environ={}, clock=lambda: 0.0)
    assert why in str(caught.value)


@pytest.mark.parametrize("spec", ["tcp:[::1]:25", "tcp:localhost:smtp", "socketmap:inet:[::1]:1:m"])
def test_servers_are_asked_for_whole_addresses_only(spec: str) -> None:
    assert open_table(spec, environ={}, clock=lambda: 0.0).whole_keys_only
