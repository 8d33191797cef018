"""TLS connections that other processes use: the process that made one keeps it, and lends an end.

A TLS connection cannot change hands: its state lives in this process, and its keys stay here. So
when it goes to the connection cache, `Holder.lend()` makes a pair of sockets and gives one of them
away. To the cache and to whoever finds it there, that end is a connection in the clear like any
other; it may be given back and found again. As soon as anybody says something on it, two tasks pump
octets between the other socket of the pair and the TLS connection; they stay until it ends, and
nobody ever pumps into a pump. Until then the connection only rests, one epoll object watches all
that do, and `reclaim()` gives it back to the process that lent it, if that is who finds it.

Who holds the end may send and read mail, just as with a connection in the clear, and for the same
users. What was said before stays unreadable to them.

| what happens                     | what comes of it                                              |
|----------------------------------|---------------------------------------------------------------|
| the user closes its end, or dies | close_notify, and the connection is closed                    |
| the server closes, or fails      | what it said is passed on, then the end closes; the user      |
|                                  | treats that as it treats any connection that was lost         |
| one side does not read           | the other one is read no further than one buffer              |
| this process dies                | its ends close; so does the server's connection               |

Start at `Holder.lend`.
"""

import select
import socket
import struct
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from os import getpid
from typing import Final

import trio

from worker.network.socket_stream import EagerStream, QuickStream
from worker.status.events import Emit, Noted, UnexpectedError
from worker.tls.stream import TlsStream

BUFFER_SIZE: Final = 65_536  # octets under way in one direction of one connection
GOODBYE_LIMIT: Final = 1.0  # seconds for QUIT and close_notify, which nobody waits for an answer to
TURNS: Final = 16  # buffers that one pump passes on before all others have their turn
QUIT: Final = b"QUIT\r\n"  # RFC 5321 section 4.1.1.10
SO_COOKIE: Final = 57  # Linux: a number that no other socket ever has, whoever holds it


class LendError(Exception):
    """A connection cannot be lent, for the reason in the text. It is still the caller's."""


class End(Enum):
    """Why nobody can use a lent connection any more."""

    USER = "the user closed its end"
    SERVER = "the server closed the connection"
    BROKEN = "the connection failed"
    RETIRED = "nobody had used it when we retired"


class _Lent:
    """A connection that is lent, and the state of its pump."""

    def __init__(
        self, number: int, cookie: int, near: socket.socket, stream: EagerStream, peer: str
    ) -> None:
        self.name = f"{getpid()}.{number}"  # in the log
        self.cookie = cookie  # of the end that travels
        self.near = near  # our end
        self.stream = stream
        self.peer = peer
        self.used = False  # the user has said something
        self.end: End | None = None  # None: it can be used
        self.pumping: list[trio.CancelScope] = []  # of the directions that run

    def stop(self, why: End) -> None:
        """End the pump where it waits. The first reason stands."""
        self.end = self.end or why
        for scope in self.pumping:
            scope.cancel()


class Holder:
    """Lends connections while run() runs, which owns their pumps."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._nursery: trio.Nursery | None = None  # None: not running
        self._lending = trio.CancelScope()  # cancelled: we lend no more
        self._lent: dict[int, _Lent] = {}  # by the cookie of the end that travels
        self._resting = _Resting()
        self._count = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump until retire() was called and the last connection has come back. Once.

        Cancelled, it closes all of them. Belongs into a nursery that outlives every delivery: the
        end of one must not end what it has lent.
        """
        try:
            with self._resting:
                async with trio.open_nursery() as self._nursery:
                    task_status.started()
                    with self._lending:
                        while True:
                            for lent in await self._resting.disturbed():
                                self._pump(lent)
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):  # to close by force takes no time
                for lent in self._lent.values():
                    lent.near.close()
                    await trio.aclose_forcefully(lent.stream)
                self._lent.clear()

    @property
    def lent(self) -> int:
        """Connections that are lent now."""
        return len(self._lent)

    @property
    def idle(self) -> int:
        """Those of them that nobody has said anything on."""
        return sum(not lent.used for lent in self._lent.values())

    def lend(self, stream: EagerStream, peer: str) -> socket.socket:
        """The end of `stream` that other processes can use; the caller closes it, or its copies.

        `stream` is the holder's from now on. The caller has seen that the server owes no reply and
        that the stream is quiet. `peer`: `host[address]`, for the log. Raises LendError.
        """
        if self._nursery is None or self._lending.cancel_called:
            raise LendError("this process takes no more connections to hold")
        self._count += 1
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:
            raise LendError(f"cannot make a pair of sockets: {exc.strerror}") from exc
        near.setblocking(False)  # noqa: FBT003  # its parameter has no name
        cookie = _cookie(far) or -self._count  # without one it cannot be reclaimed
        lent = _Lent(self._count, cookie, near, stream, peer)
        self._lent[cookie] = lent
        if not self._resting.add(lent):
            self._pump(lent)
        return far

    def reclaim(self, end: socket.socket) -> EagerStream | None:
        """The stream that was lent as `end`; it is the caller's, and `end` is closed.

        None: `end` is not ours, or somebody has said something on it, and the caller goes on with
        it as anybody else would.
        """
        lent = self._lent.get(_cookie(end))
        if lent is None or not self._resting.remove(lent):
            return None
        if _readable(lent.near) or _readable(end):  # in this moment
            self._pump(lent)
            return None
        del self._lent[lent.cookie]
        lent.near.close()
        end.close()
        return lent.stream

    def retire(self) -> None:
        """Lend nothing more; say QUIT where nobody else does; run() ends when all are closed.

        Connections that were used stay: the deadline of run()'s caller bounds them. One that was
        given back is not told from one in use; its time in the cache is short, and ends it.
        """
        self._lending.cancel()
        for lent in list(self._lent.values()):
            if not self._resting.remove(lent):
                continue
            if _readable(lent.near):
                self._pump(lent)  # somebody speaks in this moment
            else:
                assert self._nursery is not None  # who rests was lent by us while we ran
                lent.end = End.RETIRED
                self._nursery.start_soon(self._finish, lent)

    async def _finish(self, lent: _Lent) -> None:
        """Close it at both ends, politely where that is still possible."""
        del self._lent[lent.cookie]
        # The user first: he shall not take the time of our goodbye for the server's.
        lent.near.close()
        stream = lent.stream
        try:
            with trio.move_on_after(GOODBYE_LIMIT):
                if lent.end is End.RETIRED:
                    await stream.send_all(QUIT)
                await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    # --- the pump -------------------------------------------------------------------------------

    def _pump(self, lent: _Lent) -> None:
        """Pass octets on in both directions until either of them ends."""
        assert self._nursery is not None
        lent.pumping = [trio.CancelScope(), trio.CancelScope()]
        for scope, way in zip(lent.pumping, (self._commands, self._replies), strict=True):
            self._nursery.start_soon(self._one_way, lent, scope, way)

    async def _one_way(
        self, lent: _Lent, scope: trio.CancelScope, way: Callable[[_Lent], Awaitable[None]]
    ) -> None:
        """One direction of it; the second one to end clears up."""
        try:
            with scope:
                await way(lent)
        except Exception as exc:  # noqa: BLE001  # a bug costs this connection, not all of them
            text = "".join(traceback.format_exception(exc))
            self._emit(UnexpectedError(f"lending a connection to {lent.peer}", text))
            lent.stop(End.BROKEN)
        finally:
            lent.pumping.remove(scope)
            if not lent.pumping:
                await self._finish(lent)

    async def _commands(self, lent: _Lent) -> None:
        """From the user to the server."""
        near, stream = lent.near, lent.stream
        turns = 0
        while True:
            await trio.lowlevel.wait_readable(near)
            size = BUFFER_SIZE
            while size == BUFFER_SIZE:  # less was all there is: the rest is a reply away
                try:
                    data = near.recv(BUFFER_SIZE)
                except BlockingIOError:
                    break
                except OSError:  # it was closed, and what we had sent there not read
                    data = b""
                size = len(data)
                if not size:
                    lent.stop(End.USER)
                    return
                lent.used = True
                try:
                    await stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                    self._failed(lent, exc)
                    return
                turns = await _yield_sometimes(turns)

    async def _replies(self, lent: _Lent) -> None:
        """From the server to the user."""
        near, stream = lent.near, lent.stream
        turns = 0
        while True:
            try:
                data = await stream.receive_some(BUFFER_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._failed(lent, exc)
                return
            if not data:
                lent.stop(End.SERVER)
                return
            try:
                await _send(near, data)
            except OSError:
                lent.stop(End.USER)
                return
            turns = await _yield_sometimes(turns)

    def _failed(self, lent: _Lent, error: Exception) -> None:
        self._emit(Noted(f"lent connection {lent.name} to {lent.peer}: {error}"))
        lent.stop(End.BROKEN)


class _Resting:
    """Connections on which nobody has said anything, and which of them somebody does."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._lent: dict[int, _Lent] = {}  # by both descriptors of each

    def __enter__(self) -> None:
        self._epoll = select.epoll()

    def __exit__(self, *_: object) -> None:
        assert self._epoll is not None
        self._epoll.close()
        self._lent.clear()

    def add(self, lent: _Lent) -> bool:
        """Watch it; False: there is no socket to watch, or the kernel watches no more of them."""
        server = _socket_of(lent.stream)
        if self._epoll is None or server is None:
            return False
        try:
            self._epoll.register(lent.near, select.EPOLLIN)
            self._epoll.register(server, select.EPOLLIN)
        except OSError:  # of all a user's processes there may be max_user_watches (epoll(7))
            with suppress(OSError):
                self._epoll.unregister(lent.near)
            return False
        self._lent[lent.near.fileno()] = self._lent[server.fileno()] = lent
        return True

    def remove(self, lent: _Lent) -> bool:
        """Watch it no more; False: it was not watched."""
        server = _socket_of(lent.stream)
        if self._epoll is None or server is None or lent.near.fileno() not in self._lent:
            return False
        for sock in (lent.near, server):
            self._epoll.unregister(sock)
            del self._lent[sock.fileno()]
        return True

    async def disturbed(self) -> list[_Lent]:
        """Wait until there are some that have to be read, or have ended; they are removed."""
        assert self._epoll is not None
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        found = {self._lent[fd] for fd, _ in self._epoll.poll(0)}
        for lent in found:
            self.remove(lent)
        return list(found)


def _socket_of(stream: trio.abc.Stream) -> socket.socket | None:
    """The socket that the peer's octets come from, if there is one."""
    if isinstance(stream, TlsStream):
        stream = stream.transport
    return stream.socket if isinstance(stream, QuickStream) else None


async def _send(sock: socket.socket, data: bytes | bytearray) -> None:
    """Send all of it, waiting only where the reader is slow. Raises OSError."""
    unsent: bytes | bytearray | memoryview = data
    while True:
        try:
            sent = sock.send(unsent)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
        else:
            if sent == len(unsent):
                return
            unsent = memoryview(unsent)[sent:]


async def _yield_sometimes(turns: int) -> int:
    """Let others run once in TURNS buffers, as nothing else does while all are ready."""
    if turns + 1 < TURNS:
        return turns + 1
    await trio.lowlevel.checkpoint()
    return 0


def _readable(sock: socket.socket) -> bool:
    """Something is there to be received, be it an end."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _cookie(sock: socket.socket) -> int:
    """The number of the socket, the same in every process that holds it; 0: it tells none."""
    try:
        found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    except OSError:
        return 0
    return found
