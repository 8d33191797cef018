"""TLS as a stream: what any stream must do, what a steady run needs, and where TLS is special.

Both ends are in the test. Where nothing else is said they talk over memory streams; over sockets
nothing waits for time.
"""

import socket
from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import (
    assert_no_checkpoints,
    check_two_way_stream,
    lockstep_stream_pair,
    memory_stream_pair,
    trio_test,
    wait_all_tasks_blocked,
)

from tests.integration.pki import Pki
from tests.worker.memory_line import memory_stream_pair as windowed_pair
from tests.worker.tls_pair import MAY, Server, connect, server_context
from worker.network.socket_stream import QuickStream
from worker.tls.policy import Level, TlsPolicy, Version
from worker.tls.stream import PIECE

TLS12 = TlsPolicy(level=Level.MAY, versions=frozenset({Version.TLSV1_2}))
EITHER = pytest.mark.parametrize("policy", [MAY, TLS12], ids=["1.3", "1.2"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with a good certificate."""
    return Server(server_context(Pki(tmp_path_factory.mktemp("pki")).leaf("good")))


def socket_pair() -> tuple[QuickStream, QuickStream]:
    """Both ends of a TCP connection on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return QuickStream(near), QuickStream(far)


# --- as any stream -----------------------------------------------------------------------------


class Polite(trio.abc.Stream):
    """A stream that yields where trio's rules ask for it; ours do not when they need not wait."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.stream.send_all(data)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await trio.lowlevel.checkpoint()
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


class Yielding(QuickStream):
    """A socket whose every send is a checkpoint, so that two sends can meet."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        await super().send_all(data)


async def _trio_sockets() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    near, far = trio.socket.socketpair()
    return trio.SocketStream(near), trio.SocketStream(far)


async def _quick_sockets() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    near, far = socket_pair()
    return Yielding(near.socket), Yielding(far.socket)


async def _memory() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return memory_stream_pair()


async def _lockstep() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return lockstep_stream_pair()


@pytest.mark.parametrize("make", [_memory, _trio_sockets, _quick_sockets])
@EITHER
def test_it_is_a_stream(make: Callable[..., object], policy: TlsPolicy, server: Server) -> None:
    async def pair(transports: Callable[..., object]) -> tuple[Polite, Polite]:
        near, far = await transports()  # type: ignore[misc]
        client, end = await connect(near, far, server, policy)
        return Polite(client), Polite(end)

    # Of TLS 1.3 a server would wait for somebody to take its tickets.
    clogged = partial(pair, _lockstep) if make is _memory and policy is TLS12 else None
    trio.run(check_two_way_stream, partial(pair, make), clogged)


# --- what is sent arrives, once and in order ---------------------------------------------------


@EITHER
@trio_test
async def test_much_both_ways_at_once_through_a_small_window(
    policy: TlsPolicy, server: Server
) -> None:
    octets = bytes(range(251)) * 12_000  # 3 MB
    near, far = windowed_pair(5_000)
    client, end = await connect(near, far, server, policy)
    received = bytearray()

    async def echo() -> None:
        while data := await end.receive_some(1_000):
            await end.send_all(data)

    async def receive() -> None:
        while len(received) < len(octets):
            received.extend(await client.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(receive)
        await client.send_all(memoryview(octets))
        while len(received) < len(octets):
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert received == octets


@trio_test
async def test_cancelled_receives_lose_nothing(server: Server) -> None:
    near, far = windowed_pair(1_000)
    client, end = await connect(near, far, server)
    octets = bytes(range(256)) * 40
    received = bytearray()
    cancelled = 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.send_all, octets)
        while len(received) < len(octets):
            with trio.CancelScope() as scope:
                if cancelled < 199:
                    scope.cancel()
                received.extend(await client.receive_some(64))
            cancelled += scope.cancelled_caught
            await wait_all_tasks_blocked()
    assert cancelled == 199
    assert received == octets


@EITHER
@trio_test
async def test_a_send_that_was_cancelled_is_the_last(policy: TlsPolicy, server: Server) -> None:
    near, far = windowed_pair(1_000)
    client, _ = await connect(near, far, server, policy)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(20_000))
            await wait_all_tasks_blocked()
            scope.cancel()
    far._incoming.data.clear()  # half a record; there is room again
    for call in (client.send_all(b"more"), client.receive_some()):
        with pytest.raises(trio.BrokenResourceError):
            await call
    assert client.send_nowait(b"more") == 0
    assert not client.is_quiet()
    assert await client.wait_and_receive(100) == b""
    await client.aclose()
    assert not far._incoming.data, "not even a close_notify"


@trio_test
async def test_a_send_that_was_cancelled_before_its_turn_is_the_last_too(server: Server) -> None:
    """What a receiver sends first is in its way."""
    near, far = windowed_pair(3_000)
    client, end = await connect(near, far, server)
    assert client.send_nowait(bytes(10_000)) == 10_000
    received = bytearray()

    async def receive() -> None:
        assert await client.receive_some() == b""

    async def read() -> None:
        while len(received) < 10_000:
            received.extend(await end.receive_some())
        await wait_all_tasks_blocked()
        await end.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_all(b"never")
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"more")
        nursery.start_soon(read)
    assert bytes(received) == bytes(10_000)
    await client.aclose()


@trio_test
async def test_a_broken_octet_breaks_the_connection(server: Server) -> None:
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server)
    assert client.is_quiet()  # that takes the tickets
    await end.send_all(b"250 yes\r\n")
    near._incoming.data[-1] ^= 1
    with pytest.raises(trio.BrokenResourceError, match="decryption failed or bad record mac"):
        await client.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"RSET\r\n")


@trio_test
async def test_a_peer_may_ask_for_a_new_handshake_and_gets_none(server: Server) -> None:
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server, TLS12)
    [*_, connection] = server.connections
    connection.renegotiate()
    connection.do_handshake()  # makes its HelloRequest
    end.send_nowait(b"")
    assert near._incoming.data
    assert client.is_quiet()
    assert not near._incoming.data
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.receive_some)
            await wait_all_tasks_blocked()
            assert far._incoming.data, "who waits says no first"
            scope.cancel()
    await client.send_all(b"QUIT\r\n")
    # Ours goes on; what the peer makes of the refusal is its own affair (OpenSSL gives up).
    with pytest.raises(trio.BrokenResourceError, match="no renegotiation"):
        await end.receive_some()


# --- the end -----------------------------------------------------------------------------------


@EITHER
@trio_test
async def test_an_end_without_notice_is_no_end(policy: TlsPolicy, server: Server) -> None:
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server, policy)
    await end.send_all(b"250-almost\r\n")
    await far.aclose()
    assert not client.is_quiet()
    assert await client.receive_some() == b"250-almost\r\n"
    with pytest.raises(trio.BrokenResourceError, match="without a close_notify"):
        await client.receive_some()


@EITHER
@trio_test
async def test_a_steady_run_sees_any_end_as_an_end(policy: TlsPolicy, server: Server) -> None:
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server, policy)
    await end.send_all(b"421 bye\r\n")
    await far.aclose()
    assert await client.wait_and_receive(100) == b"421 bye\r\n"
    assert await client.wait_and_receive(100) == b""
    assert await client.wait_and_receive(100) == b""


@EITHER
@trio_test
async def test_a_notice_is_the_end_every_time_it_is_asked_for(
    policy: TlsPolicy, server: Server
) -> None:
    client, end = await connect(*windowed_pair(100_000), server, policy)
    await end.aclose()
    assert not client.is_quiet()
    for _ in range(2):
        assert await client.receive_some() == b""
        assert await client.wait_and_receive(10) == b""
        assert not client.is_quiet()
    await client.aclose()


@trio_test
async def test_closing_says_so_if_it_can_at_once(server: Server) -> None:
    client, end = await connect(*windowed_pair(100_000), server)
    await client.aclose()
    assert await end.receive_some() == b""
    # Nobody reads: no reason to wait.
    near, far = windowed_pair(1_000)
    client, end = await connect(near, far, server)
    near._outgoing.data += bytes(1_000)
    await client.aclose()
    assert near.closed


@trio_test
async def test_closing_wakes_whoever_waits(server: Server) -> None:
    client, _ = await connect(*windowed_pair(1_000), server)
    woken: list[str] = []

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()
        woken.append("receiver")

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(bytes(50_000))
        woken.append("sender")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await client.aclose()
    assert sorted(woken) == ["receiver", "sender"]
    assert client.send_nowait(b"x") == 0
    assert client.receive_nowait(1) == b""
    assert not client.is_quiet()
    for call in (client.receive_some(), client.send_all(b"x"), client.wait_and_receive(1)):
        with pytest.raises(trio.ClosedResourceError):
            await call


# --- what a steady run needs -------------------------------------------------------------------


@EITHER
@trio_test
async def test_what_can_be_done_at_once_is_done_without_a_switch_of_tasks(
    policy: TlsPolicy, server: Server
) -> None:
    client, end = await connect(*socket_pair(), server, policy)
    with assert_no_checkpoints():
        assert client.send_nowait(b"MAIL FROM:<>\r\n") == 14
        await client.send_all(b"RCPT TO:<a@b>\r\n")
    assert await end.receive_some() == b"MAIL FROM:<>\r\n"
    await end.send_all(b"250 yes\r\n")
    with assert_no_checkpoints():
        assert await end.receive_some() == b"RCPT TO:<a@b>\r\n"
    assert not client.is_quiet()
    with assert_no_checkpoints():
        assert await client.receive_some(4) == b"250 "
        assert await client.receive_some() == b"yes\r\n"
    for stream in (client, end):
        await stream.aclose()


@EITHER
@trio_test
async def test_tickets_are_no_speech(policy: TlsPolicy, server: Server) -> None:
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server, policy)
    assert bool(near._incoming.data) == (policy is MAY), "only TLS 1.3 sends them this late"
    assert client.is_quiet()
    assert client.receive_nowait(100) is None
    assert not near._incoming.data
    await end.send_all(b"421 I close\r\n")
    assert not client.is_quiet()
    assert not client.is_quiet(), "looking takes nothing away"
    assert client.receive_nowait(3) == b"421"
    assert await client.receive_some() == b" I close\r\n"
    assert client.is_quiet()


@trio_test
async def test_a_record_that_has_come_in_part_is_no_speech_yet(server: Server) -> None:
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server)
    assert client.is_quiet()
    await end.send_all(b"250 yes\r\n")
    rest = bytes(near._incoming.data[10:])
    del near._incoming.data[10:]
    assert client.is_quiet()
    near._incoming.data += rest
    assert not client.is_quiet()
    assert await client.wait_and_receive(100) == b"250 yes\r\n"


@trio_test
async def test_records_cut_anywhere(server: Server) -> None:
    """A second record that has come in part only does not hide behind the first one, nor wait."""
    near, far = windowed_pair(100_000)
    client, end = await connect(near, far, server)
    assert client.is_quiet()
    texts = [b"250 1\r\n", b"250-2\r\n250 3\r\n"]
    for cut in range(1, 75):
        for text in texts:
            await end.send_all(text)
        octets = bytes(near._incoming.data)
        near._incoming.data[cut:] = b""
        heard = b""
        while (plain := client.receive_nowait(100)) is not None:
            heard += plain
        near._incoming.data += octets[cut:]
        while not client.is_quiet():
            heard += await client.receive_some()
        assert heard == b"".join(texts)
        assert client.receive_nowait(100) is None


@trio_test
async def test_several_records_in_one_read_are_all_received(server: Server) -> None:
    client, end = await connect(*windowed_pair(100_000), server)
    assert client.is_quiet()
    for text in (b"250 1\r\n", b"250 2\r\n", b"354 3\r\n"):
        await end.send_all(text)
    assert await client.wait_and_receive(100) == b"250 1\r\n"
    assert await client.wait_and_receive(100) == b"250 2\r\n"
    assert await client.wait_and_receive(5) == b"354 3"
    assert not client.is_quiet()
    assert await client.wait_and_receive(100) == b"\r\n"
    assert client.is_quiet()


@EITHER
@trio_test
async def test_what_did_not_go_out_at_once_goes_first_later(
    policy: TlsPolicy, server: Server
) -> None:
    near, far = windowed_pair(4_000)
    client, end = await connect(near, far, server, policy)
    octets = bytes(range(256)) * 200  # 51 kB: more than three records
    sent = client.send_nowait(octets)
    assert sent == PIECE, "one record is kept, and no more is taken"
    assert client.send_nowait(octets[sent:]) == 0
    received = bytearray()

    async def read_all() -> None:
        while len(received) < len(octets):
            received.extend(await end.receive_some())
        await end.send_all(b"250 ok\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all)
        await client.send_all(octets[sent:])
        assert await client.receive_some() == b"250 ok\r\n"
    assert received == octets


@pytest.mark.parametrize("name", ["receive_some", "wait_and_receive"])
@trio_test
async def test_who_waits_for_an_answer_first_sends_what_was_kept(name: str, server: Server) -> None:
    near, far = windowed_pair(1_000)
    client, end = await connect(near, far, server)
    octets = bytes(5_000)
    assert client.send_nowait(octets) == len(octets)
    received = bytearray()

    async def answer() -> None:
        while len(received) < len(octets):
            received.extend(await end.receive_some())
        await end.send_all(b"250 ok\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert await getattr(client, name)(100) == b"250 ok\r\n"


@trio_test
async def test_nothing_at_once_over_a_stream_that_cannot(server: Server) -> None:
    client, end = await connect(*memory_stream_pair(), server)
    assert client.send_nowait(b"RSET\r\n") == 0
    assert client.is_quiet()
    await end.send_all(b"250 yes\r\n")
    assert await client.wait_and_receive(100) == b"250 yes\r\n"


@trio_test
async def test_a_peer_with_endless_records_and_no_word_starves_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = windowed_pair(100_000)
    client, _ = await connect(near, far, server)
    assert client.is_quiet()
    # Records without content; OpenSSL itself gives up after 32 of those, but not of all kinds.
    monkeypatch.setattr(client._intake, "feed", lambda _raw: 1)

    class Talker(QuickStream):
        """Has always something to say, at once."""

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return b"something"

        def receive_nowait(self, max_bytes: int) -> bytes | None:
            return b"something"

        def is_quiet(self) -> bool:
            return False

    a, b = socket_pair()
    client.transport = client._eager = Talker(a.socket)
    assert client.is_quiet(), "it gave up looking"
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.receive_some()
    assert scope.cancelled_caught
    for stream in (a, b):
        await stream.aclose()


# --- who may ------------------------------------------------------------------------------------


@trio_test
async def test_two_receivers_or_two_senders_are_a_mistake(server: Server) -> None:
    client, _ = await connect(*windowed_pair(1_000), server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        nursery.start_soon(client.send_all, bytes(5_000))
        await wait_all_tasks_blocked()
        for call in (
            client.receive_some(),
            client.wait_and_receive(10),
            client.send_all(b"x"),
            client.wait_send_all_might_not_block(),
        ):
            with pytest.raises(trio.BusyResourceError):
                await call
        assert client.send_nowait(b"x") == 0
        assert client.receive_nowait(10) is None
        nursery.cancel_scope.cancel()


@trio_test
async def test_the_session_is_told_once_after_the_first_word(server: Server) -> None:
    client, end = await connect(*windowed_pair(100_000), server)
    told: list[str] = []
    client.on_first_read = lambda: told.append("now")
    assert client.is_quiet()
    assert not told
    for _ in range(2):
        await end.send_all(b"250 yes\r\n")
        await client.receive_some()
    assert told == ["now"]
