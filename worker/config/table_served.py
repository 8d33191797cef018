"""Tables that a server answers for: connections, the time limit, what is trouble.

What is said on a connection is in `table_socketmap.py` and `table_tcp.py`. A connection serves one
lookup at a time and is kept for the next one; there are CONNECTIONS of them for each table at
most, and who finds none free waits. One on which anything went wrong, or that was cancelled in the
middle, is closed: a late reply must not answer the next key. A kept connection may have been closed
by its server meanwhile, so a lookup that fails on one is tried again on a new one; lookups change
nothing, and the second try tells the truth.
"""

import math
import os
import socket
from abc import abstractmethod
from typing import Final, Protocol

import trio

from worker.config.table import Table, TableConfigError, TableError

CONNECTIONS: Final = 20  # to the server of one table, from one process
IDLE_LIMIT: Final = 10.0  # seconds, as in Postfix; the next lookup closes older ones
TIME_LIMIT: Final = 100.0  # seconds for one lookup, waiting for a connection included
# Seconds in which a server that did not reply is not asked: a message's recipients are looked up
# one after another, and must not wait TIME_LIMIT each.
REST: Final = 60.0
READ_SIZE: Final = 16_384  # octets


class Server(Protocol):
    """Where the server of a table listens."""

    async def connect(self) -> trio.SocketStream:
        """A connection, the caller's to close. Raises OSError."""


class BadReplyError(Exception):
    """What a server said is not of its protocol. The text says what is wrong."""


class RefusedError(Exception):
    """The server answered that it has no answer. The text is its reason."""


class ServedTable(Table):
    """A table behind a socket. It is asked with whole keys only, as in Postfix."""

    whole_keys_only = True

    def __init__(self, spec: str, server: Server) -> None:
        super().__init__(spec)
        self._server = server
        # Plain sockets, so that they can be closed where no event loop runs; latest last.
        self._idle: list[tuple[float, socket.socket]] = []
        self._rests_until = -math.inf  # trio's clock
        self._places = trio.CapacityLimiter(CONNECTIONS)

    def __del__(self) -> None:
        """A table that a reload replaced is forgotten; the server must not keep its clients."""
        for _, sock in getattr(self, "_idle", ()):
            sock.close()

    async def lookup(self, key: str) -> str | None:
        """See Table. Raises TableError after TIME_LIMIT at the latest."""
        if trio.current_time() < self._rests_until:
            raise TableError(f"{self.spec}: no reply within {TIME_LIMIT:.0f} seconds, lately")
        try:
            wire = self._request(key.encode("utf-8", "surrogateescape"))
            with trio.move_on_after(TIME_LIMIT):
                async with self._places:
                    return await self._ask(wire)
        except RefusedError as exc:
            why = f"the server says: {exc}" if str(exc) else "the server has no answer"
        except BadReplyError as exc:
            why = f"malformed reply: {exc}"
        except EOFError:
            why = "the server closed the connection without a reply"
        except UnicodeError:
            why = "a key or reply that is not UTF-8 text"
        except trio.BrokenResourceError as exc:
            why = f"lost connection: {exc.__cause__ or exc}"
        except OSError as exc:
            why = f"cannot connect: {_reason(exc)}"
        else:
            self._rests_until = trio.current_time() + REST
            why = f"no reply within {TIME_LIMIT:.0f} seconds"
        raise TableError(f"{self.spec}: {why}")

    @abstractmethod
    def _request(self, key: bytes) -> bytes:
        """The octets that ask for a key."""

    @abstractmethod
    def _end(self, received: bytearray) -> int | None:
        """The length of the reply that these octets begin with; None: more is needed.

        Raises BadReplyError, and never asks for more than the longest reply has.
        """

    @abstractmethod
    def _read(self, reply: bytes) -> str | None:
        """The text in a reply; None: not found. Raises RefusedError, BadReplyError."""

    async def _ask(self, wire: bytes) -> str | None:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._exchange(kept, wire)
            except (EOFError, trio.BrokenResourceError):
                pass  # it may have been closed while it was idle
        return await self._exchange(await self._server.connect(), wire)

    def _kept(self) -> trio.SocketStream | None:
        """A connection of an earlier lookup that nothing was heard from since."""
        # Of many that a busy time has left the latest are used again and again.
        while self._idle and trio.current_time() - self._idle[0][0] >= IDLE_LIMIT:
            self._idle.pop(0)[1].close()
        while self._idle:
            _, sock = self._idle.pop()
            if _is_silent(sock):
                return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            sock.close()
        return None

    async def _exchange(self, stream: trio.SocketStream, wire: bytes) -> str | None:
        """What the reply says. The connection is kept, or closed if anything was not well."""
        try:
            await stream.send_all(wire)
            text = self._read(await self._receive(stream))
        except BaseException:  # cancelled too: a late reply would answer the next key
            stream.socket.close()
            raise
        sock = socket.socket(fileno=stream.socket.detach())
        self._idle.append((trio.current_time(), sock))
        return text

    async def _receive(self, stream: trio.SocketStream) -> bytes:
        """One reply. Raises EOFError, BadReplyError."""
        received = bytearray()
        while (end := self._end(received)) is None:
            data = await stream.receive_some(READ_SIZE)
            if not data:
                raise EOFError
            received += data
        if len(received) > end:
            raise BadReplyError("more than one reply")
        return bytes(received)


class TcpServer:
    """`host:port`; `[address]:port` for IPv6. The port may be the name of a service."""

    def __init__(self, text: str) -> None:
        """Raises TableConfigError."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not colon or not host or not port:
            raise TableConfigError(f'"{text}" names no server', "host:port")
        try:
            host.encode("idna")
        except UnicodeError as exc:
            raise TableConfigError(f'"{host}" is not a host name: {exc}', "host:port") from exc
        self._host = host
        self._port = _port(port)

    async def connect(self) -> trio.SocketStream:
        """See Server."""
        return await trio.open_tcp_stream(self._host, self._port)


class UnixServer:
    """The path of a socket."""

    def __init__(self, path: str) -> None:
        """Raises TableConfigError."""
        if not path.startswith("/"):
            raise TableConfigError(
                f'"{path}" depends on the working directory',
                f"a path from the root, as $queue_directory/{path}",
            )
        if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > 107:  # sun_path's room
            raise TableConfigError(f'"{path}" is too long for a socket', "107 octets at most")
        self._path = path

    async def connect(self) -> trio.SocketStream:
        """See Server."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


def _port(text: str) -> int:
    if text.isascii() and text.isdigit():
        number = int(text[:6])
    else:
        try:
            number = socket.getservbyname(text, "tcp")
        except (OSError, UnicodeError, ValueError):
            number = 0
    if not 0 < number < 65_536:
        raise TableConfigError(f'there is no port "{text}"', "1 to 65535, or a TCP service's name")
    return number


def _reason(error: OSError) -> str:
    """Why there is no connection. When all attempts fail, trio's own text says only that."""
    group = error.__cause__
    attempts = group.exceptions if isinstance(group, ExceptionGroup) else ()
    # Not their strerror: trio has put the address into it, and the table's name says that already.
    reasons = [
        os.strerror(each.errno) for each in attempts if isinstance(each, OSError) and each.errno
    ]
    return ", ".join(dict.fromkeys(reasons)) or error.strerror or str(error)


def _is_silent(sock: socket.socket) -> bool:
    """Whether its server neither closed it nor said anything unasked."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
