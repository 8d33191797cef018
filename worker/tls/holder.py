"""TLS connections that other processes use: the process that made one keeps it, and lends an end.

A TLS connection cannot change hands: its state lives in this process, and its keys stay here. So
when it goes to the connection cache, `Holder.lend()` makes a pair of sockets, pumps octets between
one of them and the TLS connection, and gives the other one away. To the cache and to whoever finds
it there, that end is a connection in the clear like any other; it may be given back and found
again, and nobody ever pumps into a pump. When the process that lent a connection finds it itself,
`reclaim()` takes the pump out again.

Who holds the end may send and read mail, just as with a connection in the clear, and for the same
users. What was said before stays unreadable to them.

| what happens                     | what comes of it                                            |
|----------------------------------|----------------------------------------------------------------|
| the user closes its end, or dies | close_notify, and the connection is closed                  |
| the server closes, or fails      | what it said is passed on, then the end closes; the user    |
|                                  | treats that as it treats any connection that was lost       |
| one side does not read           | the other one is read no further than one buffer            |
| this process dies                | its ends close; so does the server's connection             |

Start at `_pump`.
"""

import select
import socket
import struct
import traceback
from enum import Enum
from os import getpid
from typing import Final

import trio

from worker.network.socket_stream import EagerStream
from worker.status.events import Emit, Noted, UnexpectedError

BUFFER_SIZE: Final = 65_536  # octets under way in one direction of one connection
GOODBYE_LIMIT: Final = 1.0  # seconds for QUIT and close_notify, which nobody waits for an answer to
TURNS: Final = 16  # buffers that one pump passes on before all others have their turn
QUIT: Final = b"QUIT\r\n"  # RFC 5321 section 4.1.1.10
SO_COOKIE: Final = 57  # Linux: a number that no other socket ever has, whoever holds it


class LendError(Exception):
    """A connection cannot be lent, for the reason in the text. It is still the caller's."""


class End(Enum):
    """Why a pump stopped."""

    USER = "the user closed its end"
    PEER = "the server closed the connection"
    BROKEN = "the connection failed"
    RETIRED = "nobody had used it when we retired"
    RECLAIMED = "we found it ourselves"


class _Lent:
    """A connection that is lent, and the state of its pump."""

    def __init__(self, number: int, stream: EagerStream, peer: str, near: socket.socket) -> None:
        self.name = f"{getpid()}.{number}"  # in the log
        self.stream = stream
        self.peer = peer
        self.near = near  # our end of the pair, non-blocking
        self.scope = trio.CancelScope()  # of the pump
        self.end: End | None = None  # None: it runs
        self.stopped = trio.Event()
        self.used = False  # the user has said something
        self.replies = 0  # buffers that came from the server
        self.sending = 0  # directions, of two, that hold octets which their reader has not taken

    @property
    def at_rest(self) -> bool:
        """Nothing is under way, in the pump or to it from the user; nobody has closed."""
        return self.end is None and not self.sending and not _readable(self.near)

    def stop(self, why: End) -> None:
        """End the pump where it waits. The first reason stands."""
        self.end = self.end or why
        self.scope.cancel()


class Holder:
    """Lends connections while run() runs, which owns their pumps."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._nursery: trio.Nursery | None = None  # None: not running
        self._retired = trio.Event()
        self._lent: dict[int, _Lent] = {}  # by the cookie of the end that travels
        self._count = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump until retire() was called and the last connection has come back. Once.

        Cancelled, it closes all of them. Belongs into a nursery that outlives every delivery: the
        end of one must not end what it has lent.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await self._retired.wait()
        finally:
            self._nursery = None

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
        if self._nursery is None or self._retired.is_set():
            raise LendError("this process takes no more connections to hold")
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as exc:
            raise LendError(f"cannot make a pair of sockets: {exc.strerror}") from exc
        near.setblocking(False)  # noqa: FBT003  # its parameter has no name
        self._count += 1
        lent = _Lent(self._count, stream, peer, near)
        cookie = _cookie(far) or -self._count  # without one it cannot be reclaimed
        self._lent[cookie] = lent
        self._nursery.start_soon(self._pump, cookie, lent)
        return far

    async def reclaim(self, end: socket.socket) -> EagerStream | None:
        """The stream that was lent as `end`, without its pump; it is the caller's, `end` is closed.

        None: `end` is not ours, or something is under way between the two, and the caller goes on
        with `end` as anybody else would. Not more than a task switch or two.
        """
        lent = self._lent.get(_cookie(end))
        # While our end of the pair is quiet the other end lives, so it is this one.
        if lent is None or not lent.at_rest or _readable(end):
            return None
        replies = lent.replies
        lent.stop(End.RECLAIMED)
        with trio.CancelScope(shield=True):  # it waits for nothing but its turn
            await lent.stopped.wait()
        if lent.end is not End.RECLAIMED:
            return None
        end.close()
        if lent.replies != replies:
            # The server spoke, or closed, in that very moment; what it said has gone with the pair.
            await trio.aclose_forcefully(lent.stream)
        return lent.stream

    def retire(self) -> None:
        """Lend nothing more; say QUIT to whom nobody talks; run() ends when all are closed.

        Connections in use stay: the deadline of run()'s caller bounds them.
        """
        self._retired.set()
        for lent in self._lent.values():
            # One that was used and given back is not told from one in use. Its time in the cache
            # is short, and ends it.
            if not lent.used and lent.at_rest:
                lent.stop(End.RETIRED)

    # --- the pump -------------------------------------------------------------------------------

    async def _pump(self, cookie: int, lent: _Lent) -> None:
        """Pass octets on in both directions until one side ends, then end the other one."""
        try:
            with lent.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._replies, lent)
                    await self._commands(lent)
        except Exception as exc:  # noqa: BLE001  # a bug costs this connection, not all of them
            lent.end = End.BROKEN
            text = "".join(traceback.format_exception(exc))
            self._emit(UnexpectedError(f"lending a connection to {lent.peer}", text))
        finally:
            del self._lent[cookie]
            lent.near.close()
            lent.stopped.set()
            if lent.end is not End.RECLAIMED:
                await _close(lent)

    async def _commands(self, lent: _Lent) -> None:
        """From the user to the server."""
        near, stream = lent.near, lent.stream
        turns = 0
        while True:
            await trio.lowlevel.wait_readable(near)
            while lent.end is None:
                try:
                    data = near.recv(BUFFER_SIZE)
                except BlockingIOError:
                    break
                except OSError:  # it was closed, and what we had sent there not read
                    data = b""
                if not data:
                    lent.stop(End.USER)
                    return
                lent.used = True
                lent.sending += 1
                try:
                    await stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                    self._failed(lent, exc)
                    return
                lent.sending -= 1
                turns = (turns + 1) % TURNS
                if not turns:
                    await trio.lowlevel.checkpoint()
                if len(data) < BUFFER_SIZE:
                    break  # that was all: the rest, if any, is a reply away

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
            lent.replies += 1
            if not data:
                lent.stop(End.PEER)
                return
            lent.sending += 1
            try:
                await _send(near, data)
            except OSError:
                lent.stop(End.USER)
                return
            lent.sending -= 1
            turns = (turns + 1) % TURNS
            if not turns:
                await trio.lowlevel.checkpoint()

    def _failed(self, lent: _Lent, error: Exception) -> None:
        if lent.end is None:
            self._emit(Noted(f"lent connection {lent.name} to {lent.peer}: {error}"))
        lent.stop(End.BROKEN)


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


async def _close(lent: _Lent) -> None:
    """End the connection with the server, politely where that is still possible."""
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
