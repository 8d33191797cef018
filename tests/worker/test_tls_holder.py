"""Connections that are lent: the pump, giving back, and retiring. Real socket pairs.

What is lent here is a stream over a pair of sockets: the holder does not know what encrypts it. The
other end of that pair is the server, the end that is lent is the user's.
"""

import errno
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from tests.descriptors import open_descriptors
from worker.network.socket_stream import EagerStream, QuickStream
from worker.status.events import Event, Noted, UnexpectedError
from worker.tls.holder import GOODBYE_LIMIT, TURNS, Holder, LendError, _send

PEER = "mx.example[192.0.2.1]"


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    """Every descriptor of a connection is closed by somebody."""
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


class Made(QuickStream):
    """A connection that this process made. Says how it ended, and fails on request."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.polite = False  # aclose() had its time: close_notify would have been sent
        self.failure: Exception | None = None  # of the next receive_some() that has to wait
        self.stuck = False  # aclose() waits for the server

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.failure is not None:
            await trio.lowlevel.wait_readable(self.socket)
            raise self.failure
        return await super().receive_some(max_bytes)

    async def aclose(self) -> None:
        try:
            if self.socket.fileno() >= 0:
                if self.stuck:
                    await trio.sleep_forever()
                await trio.lowlevel.checkpoint()
                self.polite = True
        finally:
            await super().aclose()


class Wrapped(EagerStream):
    """A stream over another one that is no socket as far as anybody can see."""

    def __init__(self, inner: EagerStream) -> None:
        self._inner = inner

    def send_nowait(self, data: bytes) -> int:
        return self._inner.send_nowait(data)

    async def wait_and_receive(self, max_bytes: int) -> bytes:
        return await self._inner.wait_and_receive(max_bytes)

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        return self._inner.receive_nowait(max_bytes)

    def is_quiet(self) -> bool:
        return self._inner.is_quiet()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Scene:
    """A holder, one connection of it, and the server at the other end."""

    def __init__(self, holder: Holder, events: list[Event]) -> None:
        self.holder = holder
        self.events = events
        near, far = socket.socketpair()
        self.made = Made(near)
        self.server = QuickStream(far)

    def lend(self) -> QuickStream:
        """The end that a user has."""
        return QuickStream(self.holder.lend(self.made, PEER))

    @property
    def closed(self) -> bool:
        return self.made.socket.fileno() < 0


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """What is left running at the end is cancelled."""
    events: list[Event] = []
    holder = Holder(events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: holder.run(task_status=task_status))
        found = Scene(holder, events)
        yield found
        nursery.cancel_scope.cancel()
    found.server.socket.close()
    assert found.closed
    assert not any(isinstance(event, UnexpectedError) for event in events)


# --- the pump -------------------------------------------------------------------------------------


@trio_test
async def test_octets_go_both_ways() -> None:
    async with scene() as it:
        user = it.lend()
        for _ in range(3):
            await user.send_all(b"RSET\r\n")
            assert await it.server.receive_some() == b"RSET\r\n"
            await it.server.send_all(b"250 ok\r\n")
            assert await user.receive_some() == b"250 ok\r\n"
        await user.aclose()


@trio_test
async def test_a_lent_end_is_an_end_that_no_program_inherits() -> None:
    async with scene() as it:
        end = it.holder.lend(it.made, PEER)
        assert not end.get_inheritable()
        assert end.family == socket.AF_UNIX
        assert end.type == socket.SOCK_STREAM
        end.close()


@trio_test
async def test_when_the_user_closes_the_connection_ends_politely_with_all_that_was_said() -> None:
    async with scene() as it:
        user = it.lend()
        await user.send_all(b"QUIT\r\n")
        await user.aclose()
        assert await it.server.receive_some() == b"QUIT\r\n"
        assert await it.server.receive_some() == b""
        assert it.made.polite
        assert it.holder.lent == 0
        assert it.events == []


@trio_test
async def test_a_user_that_dies_with_a_reply_unread_is_gone_all_the_same() -> None:
    async with scene() as it:
        user = it.lend()
        await it.server.send_all(b"250 ok\r\n")
        await wait_all_tasks_blocked()
        user.socket.close()  # ours sees ECONNRESET
        assert await it.server.receive_some() == b""
        assert it.made.polite


@trio_test
async def test_what_the_server_said_before_it_closed_reaches_the_user() -> None:
    async with scene() as it:
        user = it.lend()
        await it.server.send_all(b"421 4.3.2 shutting down\r\n")
        await it.server.aclose()
        await wait_all_tasks_blocked()
        assert await user.receive_some() == b"421 4.3.2 shutting down\r\n"
        assert await user.receive_some() == b""
        await wait_all_tasks_blocked()
        assert it.closed
        assert it.events == []
        await user.aclose()


@trio_test
async def test_a_failure_of_the_connection_is_told_once_with_its_peer() -> None:
    async with scene() as it:
        it.made.failure = trio.BrokenResourceError("bad record mac")
        user = it.lend()
        await it.server.send_all(b"?")
        assert await user.receive_some() == b""
        (told,) = it.events
        assert isinstance(told, Noted)
        assert PEER in told.text
        assert told.text.endswith(": bad record mac")
        await user.aclose()


@trio_test
async def test_a_server_that_drops_the_connection_is_gone_for_the_user_too() -> None:
    async with scene() as it:
        user = it.lend()
        await user.send_all(bytes(2_000))
        await wait_all_tasks_blocked()
        it.server.socket.close()  # with octets unread: the connection is reset
        assert await user.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await user.send_all(b"MAIL FROM:<>\r\n")
        await user.aclose()


@trio_test
async def test_a_bug_in_the_stream_costs_its_connection_only() -> None:
    events: list[Event] = []
    holder = Holder(events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: holder.run(task_status=task_status))
        bad, good = Scene(holder, events), Scene(holder, events)
        bad.made.failure = RuntimeError("a bug")
        first, second = bad.lend(), good.lend()
        await bad.server.send_all(b"?")
        assert await first.receive_some() == b""
        await wait_all_tasks_blocked()
        assert bad.closed
        assert [type(event) for event in events] == [UnexpectedError]
        await good.server.send_all(b"250 ok\r\n")
        assert await second.receive_some() == b"250 ok\r\n"
        nursery.cancel_scope.cancel()
    for stream in (first, second, bad.server, good.server):
        stream.socket.close()


@pytest.mark.parametrize("down", [False, True])
@trio_test
async def test_a_slow_reader_holds_the_other_side_up_and_loses_nothing(down: bool) -> None:
    async with scene() as it:
        user = it.lend()
        writer, reader = (it.server, user) if down else (user, it.server)
        octets = bytes(range(256)) * 40_000  # ten times what all buffers of the kernel hold
        sent = 0

        async def write() -> None:
            nonlocal sent
            while sent < len(octets):
                await writer.send_all(octets[sent : sent + 65_536])
                sent += 65_536

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            assert sent < len(octets) / 2
            received = bytearray()
            while len(received) < len(octets):
                received += await reader.receive_some()
        assert received == octets
        await user.aclose()


@trio_test
async def test_a_buffer_that_goes_out_in_parts_goes_out_whole() -> None:
    octets = bytes(range(256)) * 256
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)  # noqa: FBT003  # its parameter has no name
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        reader, received = QuickStream(far), bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send, near, octets)
            while len(received) < len(octets):
                received += await reader.receive_some(1_000)
        assert received == octets


@trio_test
async def test_a_pump_at_full_speed_lets_others_run() -> None:
    async with scene() as it:
        at_a_stretch = longest = 0

        async def chatter(max_bytes: int | None = None) -> bytes:
            nonlocal at_a_stretch, longest
            at_a_stretch += 1
            longest = max(longest, at_a_stretch)
            return b"."

        it.made.receive_some = chatter  # type: ignore[method-assign]
        user = it.lend()
        await it.server.send_all(b".")  # to begin with
        for _ in range(100):
            await trio.lowlevel.checkpoint()
            at_a_stretch = 0
        assert TURNS <= longest <= 2 * TURNS  # once before us in our turn, once behind us
        await user.aclose()


# --- giving back ----------------------------------------------------------------------------------


@trio_test
async def test_who_lent_an_end_gets_the_connection_back_without_a_word() -> None:
    async with scene() as it:
        for _ in range(3):
            end = it.holder.lend(it.made, PEER)
            await wait_all_tasks_blocked()
            cached, found = end.dup(), end.dup()  # as it travels to the cache, and back
            end.close()
            assert it.holder.reclaim(found) is it.made
            assert found.fileno() < 0
            assert it.holder.lent == 0
            cached.close()
            await wait_all_tasks_blocked()
            await it.made.send_all(b"NOOP\r\n")
            assert await it.server.receive_some() == b"NOOP\r\n"
        await it.made.aclose()


@trio_test
async def test_a_connection_can_be_reclaimed_in_the_moment_it_was_lent() -> None:
    async with scene() as it:
        end = it.holder.lend(it.made, PEER)
        assert it.holder.reclaim(end) is it.made
        await it.made.aclose()


@trio_test
async def test_a_connection_that_was_used_stays_where_it_is_and_works() -> None:
    async with scene() as it:
        user = it.lend()
        await user.send_all(b"RSET\r\n")
        assert await it.server.receive_some() == b"RSET\r\n"
        await it.server.send_all(b"250 ok\r\n")
        assert await user.receive_some() == b"250 ok\r\n"
        assert it.holder.reclaim(user.socket) is None
        await user.send_all(b"RSET\r\n")
        assert await it.server.receive_some() == b"RSET\r\n"
        await user.aclose()


@trio_test
async def test_a_stream_that_has_no_socket_is_lent_all_the_same() -> None:
    events: list[Event] = []
    holder = Holder(events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: holder.run(task_status=task_status))
        it = Scene(holder, events)
        end = holder.lend(Wrapped(it.made), PEER)
        assert holder.reclaim(end) is None
        user = QuickStream(end)
        await user.send_all(b"RSET\r\n")
        assert await it.server.receive_some() == b"RSET\r\n"
        await it.server.send_all(b"250 ok\r\n")
        assert await user.receive_some() == b"250 ok\r\n"
        await user.aclose()
        await wait_all_tasks_blocked()
        assert it.closed
        await it.server.aclose()
        nursery.cancel_scope.cancel()


@trio_test
async def test_what_another_process_lent_is_not_ours() -> None:
    async with scene() as it:
        user = it.lend()
        near, far = socket.socketpair()
        with near, far:
            assert it.holder.reclaim(far) is None
            assert far.fileno() >= 0
        other = Holder(it.events.append)
        assert other.reclaim(user.socket) is None
        assert not it.closed
        await user.aclose()


@pytest.mark.parametrize("waited", [False, True])
@pytest.mark.parametrize("where", ["from the server", "from the user", "the user closed"])
@trio_test
async def test_what_is_under_way_is_not_reclaimed(where: str, waited: bool) -> None:
    async with scene() as it:
        user = it.lend()
        end = user.socket.dup()
        await wait_all_tasks_blocked()
        if where == "from the server":
            await it.server.send_all(b"421 bye\r\n")
            await wait_all_tasks_blocked()
        elif where == "from the user":
            await user.send_all(b"RSET\r\n")
        else:
            end.shutdown(socket.SHUT_RDWR)
        if waited:
            await wait_all_tasks_blocked()
        assert it.holder.reclaim(end) is None
        assert end.fileno() >= 0
        end.close()
        if where == "from the user":
            assert await it.server.receive_some() == b"RSET\r\n"
        if where == "from the server":
            assert await user.receive_some() == b"421 bye\r\n"
        await user.aclose()


@trio_test
async def test_what_the_server_said_a_moment_ago_is_there_for_who_reclaims() -> None:
    async with scene() as it:
        end = it.holder.lend(it.made, PEER)
        await wait_all_tasks_blocked()
        await it.server.send_all(b"421 bye\r\n")
        assert it.holder.reclaim(end) is it.made
        assert not it.made.is_quiet()
        assert await it.made.receive_some() == b"421 bye\r\n"
        await it.made.aclose()


# --- the end --------------------------------------------------------------------------------------


@trio_test
async def test_one_who_retires_says_quit_to_whom_nobody_talks_and_waits_for_the_others() -> None:
    events: list[Event] = []
    holder = Holder(events.append)
    idle, busy = Scene(holder, events), Scene(holder, events)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: holder.run(task_status=task_status))
        parked, user = idle.lend(), busy.lend()
        await user.send_all(b"RSET\r\n")
        assert await busy.server.receive_some() == b"RSET\r\n"
        assert (holder.lent, holder.idle) == (2, 1)
        holder.retire()
        assert await idle.server.receive_some() == b"QUIT\r\n"
        assert await idle.server.receive_some() == b""
        assert idle.made.polite
        assert await parked.receive_some() == b""
        # The one in use goes on.
        await busy.server.send_all(b"250 ok\r\n")
        assert await user.receive_some() == b"250 ok\r\n"
        assert (holder.lent, holder.idle) == (1, 0)
        await user.aclose()
        # And then run() returns by itself.
    assert busy.closed
    for scene in (idle, busy):
        scene.server.socket.close()
    parked.socket.close()
    assert events == []


@trio_test
async def test_a_user_who_speaks_in_the_moment_we_retire_is_served() -> None:
    async with scene() as it:
        user = it.lend()
        await wait_all_tasks_blocked()
        await user.send_all(b"RSET\r\n")
        it.holder.retire()
        assert await it.server.receive_some() == b"RSET\r\n"
        await user.aclose()


@trio_test
async def test_nothing_is_lent_by_one_who_retires_or_does_not_run() -> None:
    async with scene() as it:
        with pytest.raises(LendError):
            Holder(it.events.append).lend(it.made, PEER)
        it.holder.retire()
        with pytest.raises(LendError):
            it.holder.lend(it.made, PEER)
        assert not it.closed  # it is still the caller's
        await it.made.aclose()


@pytest.mark.parametrize("room", [0, 1])
@trio_test
async def test_where_the_kernel_watches_no_more_it_is_lent_all_the_same(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    make = select.epoll

    class Full:
        """An epoll object with room for so many descriptors."""

        def __init__(self) -> None:
            self._epoll = make()
            self._room = room

        def register(self, sock: socket.socket, events: int) -> None:
            if not self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._room -= 1
            self._epoll.register(sock, events)

        def __getattr__(self, name: str) -> object:
            return getattr(self._epoll, name)

    monkeypatch.setattr("worker.tls.holder.select.epoll", Full)
    async with scene() as here:
        monkeypatch.undo()
        end = here.lend()
        await end.send_all(b"NOOP\r\n")
        assert await here.server.receive_some() == b"NOOP\r\n"
        await here.server.send_all(b"250 ok\r\n")
        assert await end.receive_some() == b"250 ok\r\n"
        await end.aclose()


@trio_test
async def test_no_descriptor_left_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> tuple[socket.socket, socket.socket]:
        raise OSError(24, "Too many open files")

    async with scene() as it:
        monkeypatch.setattr(socket, "socketpair", none_left)
        with pytest.raises(LendError, match="Too many open files"):
            it.holder.lend(it.made, PEER)
        await it.made.aclose()


@trio_test
async def test_a_server_that_takes_no_goodbye_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    async with scene() as it:
        it.made.stuck = True
        user = it.lend()
        await user.aclose()
        await trio.sleep(GOODBYE_LIMIT * 0.9)
        assert not it.closed
        await trio.sleep(GOODBYE_LIMIT * 0.2)
        assert it.closed


@trio_test
async def test_a_holder_that_is_cancelled_closes_all_it_has_at_once() -> None:
    events: list[Event] = []
    holder = Holder(events.append)
    scenes = [Scene(holder, events) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: holder.run(task_status=task_status))
        users = []
        for it in scenes:
            it.made.stuck = True
            users.append(it.lend())
        for it, user in zip(scenes[:2], users, strict=False):  # two are in use, two rest
            await user.send_all(b"RSET\r\n")
            assert await it.server.receive_some() == b"RSET\r\n"
        nursery.cancel_scope.cancel()
    assert holder.lent == 0
    for it, user in zip(scenes, users, strict=True):
        assert it.closed
        assert not it.made.polite
        assert await user.receive_some() == b""
        assert await it.server.receive_some() == b""
        await user.aclose()
        await it.server.aclose()
