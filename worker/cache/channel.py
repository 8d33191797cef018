"""One connection to the cache daemon, and the exchanges of scache(8)'s protocol on it.

Whoever calls bounds the time, and closes the channel after any exception, cancellation included: an
answer that comes late would answer the next request.
"""

import os
import socket
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from protocol.attributes import AttributeList
from protocol.cache_wire import (
    ANNOUNCEMENT,
    DESCRIPTOR_OCTET,
    DUMMY,
    DUMMY_WIRE,
    FindDestination,
    FindEndpoint,
    ListReader,
    Reply,
    SaveDestination,
    SaveEndpoint,
    Status,
    decode_reply,
)
from protocol.errors import RemoteProtocolError
from protocol.reply import NEED_DATA
from worker.queue.listening import socket_address

_RECEIVE_SIZE: Final = 16_384
_ONE_DESCRIPTOR: Final = socket.CMSG_LEN(array("i").itemsize)  # the kernel closes what exceeds it
_CROWDED: Final = 0.01  # seconds to wait for room in the daemon's backlog


class ChannelLost(Exception):
    """The daemon closed the connection. `answered`: in the middle of an exchange."""

    def __init__(self, text: str, *, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class CacheChannel:
    """A connected and announced client; owns its socket. One exchange at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lists = ListReader()
        self._answered = False  # whether the exchange under way has got an answer
        self.passed = False  # whether a descriptor was sent in the exchange under way, or the last

    @classmethod
    async def connect(cls, path: Path) -> "CacheChannel":
        """A new connection. Raises OSError, ChannelLost, RemoteProtocolError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with socket_address(path) as address:
                # Not trio's connect(): of a UNIX socket, "would block" means that the backlog is
                # full, and there is nothing that could be waited for.
                while True:
                    try:
                        sock.connect(address)
                        break
                    except BlockingIOError:
                        await trio.sleep(_CROWDED)
            channel = cls(sock)
            await channel._expect_announcement()
        except BaseException:
            sock.close()
            raise
        return channel

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    # --- exchanges ------------------------------------------------------------------------------

    async def save_endpoint(self, request: SaveEndpoint, fd: int) -> bool:
        """Save a connection; the daemon has its own copy of `fd` then. False: refused.

        Raises ChannelLost, RemoteProtocolError.
        """
        attributes = await self._ask(request.encode())
        if attributes != DUMMY:
            _refusal(attributes)
            return False
        self.passed = True
        await self._send_descriptor(fd)
        return decode_reply(await self._next_list(), 0).status is Status.OK

    async def save_destination(self, request: SaveDestination) -> bool:
        """Save a binding. False: refused. Raises ChannelLost, RemoteProtocolError."""
        return decode_reply(await self._ask(request.encode()), 0).status is Status.OK

    async def find(
        self, request: FindEndpoint | FindDestination
    ) -> tuple[socket.socket, tuple[str, ...]] | None:
        """A connection, which the caller closes, and its properties; None: there is none.

        None, too, for a descriptor that is no connected stream socket. Raises ChannelLost,
        RemoteProtocolError.
        """
        properties = 1 if isinstance(request, FindEndpoint) else 2
        reply: Reply = decode_reply(await self._ask(request.encode()), properties)
        if reply.status is not Status.OK:
            return None
        await self._send(DUMMY_WIRE)
        sock = await self._receive_socket()
        # From here to the caller nothing may wait: a cancellation would lose the connection.
        self._acknowledge()
        return None if sock is None else (sock, reply.properties)

    async def _expect_announcement(self) -> None:
        if await self._next_list() != ANNOUNCEMENT:
            raise RemoteProtocolError("it does not announce a connection cache")

    # --- parts ----------------------------------------------------------------------------------

    async def _ask(self, request: bytes) -> AttributeList:
        self._answered = self.passed = False
        await self._send(request)
        return await self._next_list()

    async def _send(self, octets: bytes) -> None:
        unsent = memoryview(octets)
        while unsent:
            try:
                unsent = unsent[self._sock.send(unsent) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as exc:
                raise self._lost() from exc

    async def _send_descriptor(self, fd: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        while True:
            try:
                self._sock.sendmsg([DESCRIPTOR_OCTET], rights)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as exc:
                raise self._lost() from exc
            else:
                return

    async def _next_list(self) -> AttributeList:
        """The one list that is on its way."""
        while (event := self._lists.next_event()) is NEED_DATA:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(_RECEIVE_SIZE)
            except BlockingIOError:  # woken for nothing
                continue
            except OSError as exc:
                raise self._lost() from exc
            if not data:
                raise self._lost()
            self._lists.receive_data(data)
        if self._lists.unread:
            raise RemoteProtocolError("it said more than it was asked")
        self._answered = True
        return event

    async def _receive_socket(self) -> socket.socket | None:
        """The connection that the daemon passes; None: what came is none, and closed."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    1, _ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:  # woken for nothing
                continue
            except OSError as exc:
                raise self._lost() from exc
        found = array("i")
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(rights[: len(rights) - len(rights) % found.itemsize])
        if len(found) == 1 and not flags & socket.MSG_CTRUNC:
            return _connected(found[0])
        for fd in found:
            os.close(fd)
        if not data:
            raise self._lost()
        return None

    def _acknowledge(self) -> None:
        """Say that the descriptor has come; the buffer is empty, so there is room for eight octets.

        If there is not, or the daemon is gone, the next exchange on this channel finds out.
        """
        try:
            self._sock.send(DUMMY_WIRE)
        except OSError:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def _lost(self) -> ChannelLost:
        return ChannelLost("it closed the connection", answered=self._answered)


def _connected(fd: int) -> socket.socket | None:
    """The non-blocking socket behind `fd`, or None, and closed, if it is no connected stream."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    try:
        sock.getpeername()
        sock.setblocking(False)  # noqa: FBT003  # its parameter has no name
    except OSError:
        sock.close()
        return None
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        return None
    return sock


def _refusal(attributes: AttributeList) -> None:
    """Check that a list in place of the dummy is a refusal. Raises RemoteProtocolError."""
    if decode_reply(attributes, 0).status is Status.OK:
        raise RemoteProtocolError("it saved a connection that it has not got")
