"""The cache server's manners, over real sockets on a virtual clock.

Nothing sleeps: time passes only when every task waits. `play` counts descriptors before and after
each scenario, so that each of these tests is a test for leaks, too.
"""

import errno
import json
import logging
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, trio_test

from protocol.cache_wire import (
    ANNOUNCEMENT_WIRE,
    DUMMY_WIRE,
    MAX_MESSAGE,
    FindDestination,
    FindEndpoint,
    ReportRequest,
    SaveDestination,
    SaveEndpoint,
    Status,
    decode_report,
)
from scache.sockets import FAREWELL, HeldSockets
from scache.store import Store, StoreLimits
from tests.descriptors import open_descriptors
from tests.scache.world import OURSELVES, Talker, World, play, settle

QUIT = FAREWELL


def heard(peer: socket.socket) -> bytes | None:
    """What the peer of a connection has got; None: the connection is still open and silent."""
    try:
        return peer.recv(100)
    except BlockingIOError:
        return None
    except ConnectionResetError:  # closed with something unread
        return b""


def fill(connection: socket.socket) -> None:
    """Send until there is no room."""
    try:
        while True:
            connection.send(b"x" * 4096)
    except BlockingIOError:
        pass


async def flood(sock: trio.socket.SocketType) -> None:
    """Ask and ask, and never read an answer."""
    stream = trio.SocketStream(sock)
    while True:
        await stream.send_all(FindDestination("a").encode() * 100)


# --- what a client sees --------------------------------------------------------------------------


@trio_test
async def test_s140_a_conversation_as_smtp_and_scache_have_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        connection, peer = world.pair()
        sock = await world.connect()
        exchanges = [
            (b"", ANNOUNCEMENT_WIRE),
            (
                b"request\0save_dest\0ttl\x002\0label\0d\n\0property\0p\n\0label\0e\n\0\0",
                b"status\x000\0\0",
            ),
            (b"request\0save_endp\0ttl\x002\0label\0e\n\0property\0q\n\0\0", b"dummy\0\0\0"),
        ]
        for said, answer in exchanges:
            if said:
                await sock.send(said)
            assert await sock.recv(1000) == answer
        talker = Talker(sock)
        await talker.pass_descriptors(connection.fileno())
        assert await sock.recv(1000) == b"status\x000\0\0"
        await sock.send(b"request\0find_dest\0label\0d\n\0\0")
        assert await sock.recv(1000) == b"status\x000\0property\0p\n\0property\0q\n\0\0"
        await sock.send(DUMMY_WIRE)
        with await talker.take_descriptor() as found:
            found.send(b"RSET\r\n")
        assert heard(peer) == b"RSET\r\n"
        await sock.send(DUMMY_WIRE)
        await sock.send(b"request\0find_endp\0label\0e\n\0\0")
        assert await sock.recv(1000) == b"status\x002\0property\0\0\0"
        await sock.send(b"request\0find_dest\0label\0d\n\0\0")
        assert await sock.recv(1000) == b"status\x002\0property\0\0property\0\0\0"

    await play(scenario, tmp_path)


@trio_test
async def test_the_last_dummy_may_come_with_the_next_request(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await world.saved("a")
        client = await world.client()
        await client.say(FindEndpoint("a").encode())
        await client.hear()
        await client.say(DUMMY_WIRE)
        (await client.take_descriptor()).close()
        other = FindDestination("b").encode()
        await client.say(DUMMY_WIRE + FindEndpoint("a").encode() + other[:5])
        assert await client.hear() == (("status", "2"), ("property", ""))
        await client.say(other[5:])
        assert await client.hear() == (("status", "2"), ("property", ""), ("property", ""))

    await play(scenario, tmp_path)


@trio_test
async def test_a_client_whose_requests_come_with_the_last_dummy_is_not_taken_for_stalled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        for _ in range(10):
            await world.saved("a")
        client = await world.client()
        await client.say(FindEndpoint("a").encode())
        for _ in range(9):
            await client.hear()
            await trio.sleep(1)
            await client.say(DUMMY_WIRE)
            (await client.take_descriptor()).close()
            await client.say(DUMMY_WIRE + FindEndpoint("a").encode())
        assert await client.hear() == (("status", "0"), ("property", "for a"))

    await play(scenario, tmp_path, protocol_timeout=5.0, limits=StoreLimits(ttl=60))


@trio_test
async def test_every_octet_may_come_alone(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await world.saved("a")
        client = await world.client()
        for octet in FindEndpoint("a").encode():
            await client.say(bytes([octet]))
            await settle()
        assert await client.hear() == (("status", "0"), ("property", "for a"))
        for octet in DUMMY_WIRE:
            await client.say(bytes([octet]))
            await settle()
        (await client.take_descriptor()).close()

    await play(scenario, tmp_path)


@trio_test
async def test_s140_a_bad_request_is_answered_in_its_form_and_the_client_stays(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        client = await world.client()
        await client.say(b"request\0find_dest\0\0")
        assert await client.hear() == (("status", "1"), ("property", ""), ("property", ""))
        await client.say(b"request\0save_endp\0ttl\x000\0label\0a\0property\0\0\0")
        assert await client.hear() == (("status", "1"),)
        await client.say(b"request\0make_tea\0\0")
        assert await client.hear() == (("status", "1"),)
        await client.say(FindEndpoint("a").encode())
        assert await client.hear() == (("status", "2"), ("property", ""))

    await play(scenario, tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([b"a" * (MAX_MESSAGE + 1)], id="a list without an end"),
        pytest.param([SaveEndpoint(1, "a", "").encode() + b"more"], id="more than a request"),
        pytest.param([SaveEndpoint(1, "a", "").encode(), b"more"], id="no descriptor"),
        pytest.param([FindEndpoint("held").encode(), b"dumb"], id="no dummy"),
        pytest.param([b"{\0label\0a\0}\0\0"], id="a group"),
    ],
)
@trio_test
async def test_a_client_out_of_step_is_dropped(
    said: list[bytes], tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        await world.saved("held")
        client = await world.client()
        for octets in said:
            await trio.SocketStream(client.sock).send_all(octets)
            await settle()
        while not await client.hear_end():
            pass
        assert trio.current_time() == 0.0
        assert await (await world.client()).find(FindEndpoint("none"))

    await play(scenario, tmp_path)


@trio_test
async def test_the_report_says_what_is_held_and_counted(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        await world.saved("a" * 500)
        client = await world.client()
        await client.say(SaveDestination(60, "d", "", "a").encode())
        await client.hear()
        await client.say(ReportRequest().encode())
        report = json.loads(decode_report(await client.hear() or ()))
        assert (report["pid"], report["clients"], report["connections"]) == (os.getpid(), 1, 1)
        assert report["counts"]["saved"] == 1
        assert report["endpoints"] == [{"label": "a" * 200, "connections": 1, "expires": 2.0}]
        assert report["destinations"] == [{"label": "d", "endpoint": "a", "expires": 2.0}]

    await play(scenario, tmp_path)


# --- what is held --------------------------------------------------------------------------------


@trio_test
async def test_s141_an_expired_connection_gets_a_quit_and_is_closed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        peer = await world.saved("a", ttl=60)
        await trio.sleep(1.9)
        assert heard(peer) is None
        await trio.sleep(0.1)
        await settle()
        assert (heard(peer), heard(peer)) == (QUIT, b"")
        assert world.held == 0

    await play(scenario, tmp_path, limits=StoreLimits(ttl=2))


@trio_test
async def test_each_connection_expires_at_its_own_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        late = await world.saved("a", ttl=9)
        await trio.sleep(1)
        early = await world.saved("b", ttl=3)
        await trio.sleep(3)
        await settle()
        assert (heard(early), heard(late)) == (QUIT, None)
        await trio.sleep(5)
        await settle()
        assert heard(late) == QUIT

    await play(scenario, tmp_path, limits=StoreLimits(ttl=60))


@trio_test
async def test_nobody_waits_for_a_peer_that_takes_no_quit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        connection, _peer = world.pair()
        fill(connection)
        client = await world.client()
        await client.save("a", connection)
        await trio.sleep(2.0)
        await settle()
        assert world.held == 0

    await play(scenario, tmp_path)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda peer: peer.close(), id="closes"),
        pytest.param(lambda peer: peer.shutdown(socket.SHUT_WR), id="half-closes"),
        pytest.param(lambda peer: peer.send(b"421 bye\r\n"), id="speaks"),
    ],
)
@trio_test
async def test_a_peer_that_closes_or_speaks_leaves_at_once_and_gets_no_quit(
    act: Callable[[socket.socket], object], tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        peer = await world.saved("a")
        await world.saved("b")
        act(peer)
        await settle()
        assert world.held == 1
        if peer.fileno() >= 0:
            assert heard(peer) == b""
        reply, _ = await (await world.client()).find(FindEndpoint("a"))
        assert reply.status is Status.FAILED
        assert world.server.take_counts().dropped == 1
        assert trio.current_time() == 0.0

    await play(scenario, tmp_path)


@pytest.mark.parametrize("request_", [FindDestination("d"), FindEndpoint("a")])
@trio_test
async def test_what_a_peer_said_a_moment_ago_counts_when_its_connection_is_looked_up(
    request_: FindDestination | FindEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        first, second = await world.saved("a"), await world.saved("a")
        first.close()
        client = await world.client()
        await client.say(SaveDestination(60, "d", "", "a").encode())
        await client.hear()
        _, found = await client.find(request_)
        assert found is not None
        with found:
            assert found.send(b"RSET\r\n") == 6
        assert heard(second) == b"RSET\r\n"
        assert world.server.take_counts().dropped == 1

    async def hear_nothing(_: HeldSockets) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(HeldSockets, "wait_spoken", hear_nothing)
    await play(scenario, tmp_path)


@trio_test
async def test_what_a_peer_says_to_the_next_owner_is_no_business_of_the_cache(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        peer = await world.saved("a")
        client = await world.client()
        _, found = await client.find(FindEndpoint("a"))
        assert found is not None
        with found:
            await world.saved("b")  # with the number that "a" had, perhaps
            peer.send(b"250 ok\r\n")
            await settle()
            assert world.held == 1
            assert world.server.take_counts().dropped == 0
            assert found.recv(100) == b"250 ok\r\n"

    await play(scenario, tmp_path)


@trio_test
async def test_a_connection_is_never_handed_out_twice(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peers = [await world.saved("a") for _ in range(50)]
        found: list[socket.socket] = []

        async def look() -> None:
            _, connection = await (await world.client()).find(FindEndpoint("a"))
            if connection is not None:
                found.append(connection)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(look)
        for connection in found:
            with connection:
                connection.send(b"mine")
        assert [heard(peer) for peer in peers] == [b"mine"] * 50

    await play(scenario, tmp_path)


@trio_test
async def test_the_oldest_connection_makes_room_with_a_quit(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peers = [await world.saved(label) for label in "abc"]
        assert [heard(peer) for peer in peers] == [QUIT, None, None]
        assert world.server.take_counts().evicted == 1

    await play(scenario, tmp_path, limits=StoreLimits(connections=2))


@trio_test
async def test_a_server_that_is_shut_says_quit_to_everything(tmp_path: Path) -> None:
    peers: list[socket.socket] = []

    async def scenario(world: World) -> None:
        peers.extend([await world.saved("a"), await world.saved("b")])

    def afterwards(_: World) -> None:
        assert [heard(peer) for peer in peers] == [QUIT, QUIT]

    await play(scenario, tmp_path, afterwards=afterwards)


# --- trouble -------------------------------------------------------------------------------------


@trio_test
async def test_clients_that_stall_are_dropped_and_nobody_else_waits(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        idle = await world.client()
        peers = [await world.saved("held") for _ in range(10)]
        stalled = [await world.client() for _ in range(40)]
        for client in stalled[:10]:
            await client.say(FindEndpoint("held").encode())  # and no dummy
        for client in stalled[10:20]:
            await client.say(b"request\0find_")
        for client in stalled[20:30]:
            await client.say(SaveEndpoint(1, "a", "").encode())  # and no descriptor
        for client in stalled[30:]:
            await world.saved("more")
            await client.say(FindEndpoint("more").encode())
            await client.hear()
            await client.say(DUMMY_WIRE)
            (await client.take_descriptor()).close()  # and no dummy
        await settle()
        for number in range(20):
            await world.saved(f"other {number}")
            _, found = await idle.find(FindEndpoint(f"other {number}"))
            assert found is not None
            found.close()
        assert trio.current_time() == 0.0
        await trio.sleep(4.9)
        assert len(world.server._clients) == 41
        await trio.sleep(0.7)
        assert len(world.server._clients) == 1
        for client in stalled[10:30]:
            while await client.hear() not in (None, ()):
                pass
        assert [heard(peer) for peer in peers] == [b""] * 10
        assert (await idle.find(FindEndpoint("held")))[0].status is Status.FAILED

    await play(scenario, tmp_path, protocol_timeout=5.0)


@trio_test
async def test_a_client_that_takes_no_answer_is_dropped(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def scenario(world: World) -> None:
        sock = await world.connect()
        with pytest.raises(trio.BrokenResourceError):
            await flood(sock)
        assert 5.0 <= trio.current_time() <= 5.5

    await play(scenario, tmp_path, protocol_timeout=5.0)


@pytest.mark.parametrize("count", [2, 3, 253])
@trio_test
async def test_surplus_descriptors_are_closed_at_once(count: int, tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        connection, _ = world.pair()
        client = await world.client()
        await client.say(SaveEndpoint(1, "a", "").encode())
        await client.hear()
        before = open_descriptors()
        await client.pass_descriptors(*[connection.fileno()] * count)
        assert await client.hear() == (("status", "2"),)
        assert open_descriptors() <= before
        assert await client.save("b", connection) == "0"

    await play(scenario, tmp_path)


@trio_test
async def test_descriptors_that_come_uncalled_for_are_closed_at_once(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        connection, _ = world.pair()
        client = await world.client()
        before = open_descriptors()
        for request in (FindEndpoint("a").encode(), FindEndpoint("b").encode()):
            await client.pass_descriptors(connection.fileno(), octets=request)
            assert await client.hear() == (("status", "2"), ("property", ""))
        assert open_descriptors() <= before

    await play(scenario, tmp_path)


def listening_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def packets() -> socket.socket:
    sock, peer = socket.socketpair(type=socket.SOCK_SEQPACKET)
    peer.close()
    return sock


def null_device() -> socket.socket:
    """No socket, but it has a descriptor and can be closed like one."""
    return Path(os.devnull).open()  # type: ignore[return-value]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(null_device, id="a file"),
        pytest.param(listening_socket, id="a listening socket"),
        pytest.param(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), id="datagrams"),
        pytest.param(packets, id="packets"),
        pytest.param(lambda: socket.socket(socket.AF_INET), id="not connected"),
    ],
)
@trio_test
async def test_only_connected_stream_sockets_are_kept(
    make: Callable[[], socket.socket], tmp_path: Path
) -> None:
    async def scenario(world: World) -> None:
        client = await world.client()
        with make() as unfit:
            before = open_descriptors()
            assert await client.save("a", unfit) == "1"
            assert open_descriptors() <= before
        assert world.held == 0
        assert await client.save("a", world.pair()[0]) == "0"

    await play(scenario, tmp_path)


@trio_test
async def test_tcp_connections_are_kept(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        client = await world.client()
        with listening_socket() as listener:
            with socket.create_connection(listener.getsockname()) as connection:
                assert await client.save("a", connection) == "0"
            peer, _ = listener.accept()
        _, found = await client.find(FindEndpoint("a"))
        assert found is not None
        with peer, found:
            found.send(b"RSET")
            assert peer.recv(10) == b"RSET"

    await play(scenario, tmp_path)


@pytest.mark.parametrize("step", range(9))
@trio_test
async def test_a_client_may_die_at_any_point(step: int, tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.saved("held")
        connection, _ = world.pair()
        client = await world.client()

        async def acts() -> None:
            steps = [
                lambda: client.say(b"request\0"),
                lambda: client.say(SaveEndpoint(1, "a", "").encode()[8:]),
                client.hear,
                lambda: client.pass_descriptors(connection.fileno()),
                client.hear,
                lambda: client.say(FindEndpoint("held").encode()),
                client.hear,
                lambda: client.say(DUMMY_WIRE),
                client.take_descriptor,
            ]
            for act in steps[: step + 1]:
                result = await act()
                if isinstance(result, socket.socket):
                    result.close()

        await acts()
        client.sock.close()
        await settle()
        assert len(world.server._clients) == 0
        # Its connection is with the cache until it has been handed out, and then with nobody.
        assert heard(peer) == (None if step < 5 else b"")

    await play(scenario, tmp_path)


@trio_test
async def test_more_clients_than_the_limit_wait_to_be_accepted(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        first, second = await world.client(), await world.client()
        third = Talker(await world.connect())
        await settle()
        assert not select.select([third.sock.fileno()], [], [], 0)[0]
        first.sock.close()
        assert await third.hear() is not None
        assert (await second.find(FindEndpoint("a")))[0].status is Status.FAILED

    await play(scenario, tmp_path, clients=2)


class CrampedListener(socket.socket):
    """A listener in a process that has no descriptor left, three times."""

    failures = 3

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@trio_test
async def test_without_room_for_a_client_the_server_pauses_and_says_so_once(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        await world.client()
        assert trio.current_time() == pytest.approx(0.3)
        complaints = [record.getMessage() for record in caplog.records]
        assert complaints == ["cannot accept a client: Too many open files"]

    await play(scenario, tmp_path, make_listener=lambda: CrampedListener(socket.AF_UNIX))


@trio_test
async def test_a_stranger_hears_nothing_and_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        for _ in range(2):
            stranger = Talker(await world.connect())
            assert await stranger.hear_end()
        assert [record.getMessage() for record in caplog.records] == [
            f"client refused: user id {os.geteuid()} is not trusted"
        ]

    await play(scenario, tmp_path, trusted=frozenset(uid + 1 for uid in OURSELVES))


class BusyListener(socket.socket):
    """There is always one more to accept, whom the server does not serve; `others` times."""

    others = 50

    def __init__(self, *, gone: bool) -> None:
        """`gone`: they have left before they are accepted; otherwise they are not trusted."""
        super().__init__(socket.AF_UNIX)
        self._gone = gone

    def accept(self) -> tuple[socket.socket, object]:
        if not self.others:
            return super().accept()
        self.others -= 1
        if self._gone:
            raise ConnectionAbortedError
        client, ours = socket.socketpair()
        client.close()
        return ours, ""


@pytest.mark.parametrize("gone", [False, True])
@trio_test
async def test_clients_that_are_not_served_take_nobodys_turn(tmp_path: Path, gone: bool) -> None:
    listeners: list[BusyListener] = []

    def make_listener() -> BusyListener:
        listeners.append(BusyListener(gone=gone))
        return listeners[0]

    async def scenario(_: World) -> None:
        turns = 0
        while listeners[0].others:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns > BusyListener.others / 2

    strangers = frozenset(uid + 1 for uid in OURSELVES)
    await play(scenario, tmp_path, make_listener=make_listener, trusted=strangers)


@trio_test
async def test_a_bug_costs_one_client_and_is_logged_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def scenario(world: World) -> None:
        client, other = await world.client(), await world.client()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "find_endpoint", broken)
            await client.say(FindEndpoint("a").encode())
            assert await client.hear_end()
        (record,) = caplog.records
        assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
        assert (await other.find(FindEndpoint("a")))[0].status is Status.FAILED

    await play(scenario, tmp_path)
