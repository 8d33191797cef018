"""The lane for sinks that never wait: sockets, sessions, and epoll between them.

Answers for speed. An event is one recv, one call of the session and one send, with nothing of a
framework in between: a task switch would cost more than all three. What has to wait (latency,
distance, tarpits) goes through `trio_lane.py`, with the same sessions.

Memory: for each connection a session and the replies to one read. Whoever does not take its replies
is not read from.
"""

import errno
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from bench.sink.session import Session
from bench.sink.sink import Sink

READ_SIZE: Final = 65_536  # octets; more is no faster, and glibc maps larger blocks anew each time
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Of several processes that wait for connections to one socket, wake one and not all.
ACCEPT: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE


class Connection:
    """One client: its socket, its session, what it has not taken yet, and what an event means."""

    __slots__ = ("due", "ending", "session", "sink", "sock", "step", "under_way", "unsent")

    def __init__(self, sock: socket.socket, session: Session, sink: Sink, step: "Step") -> None:
        self.sock = sock
        self.session = session
        self.sink = sink
        self.step = step
        self.unsent = memoryview(b"")
        # In the far lane: how much is on its way to the client, replies and octets, and whether
        # that is all there will be.
        self.due = self.under_way = 0
        self.ending = False


Step = Callable[[Connection], None]


class PlainLane:
    """Serves `listeners`, sockets that do not block, until one of the descriptors `stop` is ready.

    The listening sockets stay the caller's; connections are closed in the end.
    """

    def __init__(
        self, listeners: Sequence[tuple[socket.socket, Sink]], stop: Sequence[int]
    ) -> None:
        self._listeners = {sock.fileno(): (sock, sink) for sock, sink in listeners}
        self._stop = stop
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._accepting = True

    def run(self) -> None:
        """Serve. Raises OSError: nothing can be accepted, or the record cannot be written."""
        with self._epoll:
            for fd in self._stop:
                self._epoll.register(fd, select.EPOLLIN)
            for fd in self._listeners:
                self._epoll.register(fd, ACCEPT)
            try:
                self._serve()
            finally:
                for connection in list(self._connections.values()):
                    self._drop(connection)

    def _serve(self) -> None:
        poll = self._epoll.poll
        while self._take(poll()):
            pass

    def _take(self, events: Sequence[tuple[int, int]]) -> bool:
        """See to what happened; False: it is time to stop."""
        connections = self._connections
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is not None:
                connection.step(connection)
            elif fd in self._stop:
                return False
            # An event of a connection that was closed a moment ago has no listener.
            elif fd in self._listeners:
                self._accept(fd)
        return True

    def _receive(self, connection: Connection) -> None:
        """One read, and the replies to it."""
        try:
            # Of TLS it is a whole record, so nothing stays behind that epoll does not know of.
            data = connection.sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:  # a client that vanished is no error
            data = b""
        if not data:
            self._over(connection)
            return
        connection.session.receive(data)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        """Send what is due; if the client does not take it all, wait for that and read no more."""
        session = connection.session
        wire = session.take()
        if (not wire or self._offer(connection, wire)) and session.closing:
            self._end(connection)

    def _offer(self, connection: Connection, wire: bytes) -> bool:
        """Send; False: the client does not take it all now, or has gone."""
        try:
            sent = connection.sock.send(wire)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            self._drop(connection)
            return False
        if sent < len(wire):
            connection.unsent = memoryview(wire)[sent:]
            connection.step = self._send_rest
            self._epoll.modify(connection.sock, select.EPOLLOUT)
            return False
        return True

    def _send_rest(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._drop(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            self._sent(connection)

    def _sent(self, connection: Connection) -> None:
        """The client has taken all."""
        connection.step = self._receive
        self._epoll.modify(connection.sock, select.EPOLLIN)
        if connection.session.closing:
            self._end(connection)

    def _over(self, connection: Connection) -> None:
        """The client says no more."""
        self._drop(connection)

    def _end(self, connection: Connection) -> None:
        """All is said: TLS begins, or the connection is closed."""
        if connection.session.upgrading:
            self._begin_tls(connection)
        else:
            self._drop(connection)

    def _begin_tls(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        context = connection.sink.context
        assert context is not None  # or the session would have none
        try:
            connection.sock = context.wrap_socket(
                connection.sock, server_side=True, do_handshake_on_connect=False
            )
        except OSError:  # the client has gone, and with it the socket
            self._forget(connection, fd)
            return
        connection.step = self._handshake
        self._handshake(connection)

    def _handshake(self, connection: Connection) -> None:
        """Go on with it, as far as it gets."""
        sock = connection.sock
        assert isinstance(sock, ssl.SSLSocket)
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            self._epoll.modify(sock, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._epoll.modify(sock, select.EPOLLOUT)
        except OSError:  # whatever is wrong: the alert that says so is on its way
            self._drop(connection)
        else:
            self._epoll.modify(sock, select.EPOLLIN)
            connection.step = self._receive
            connection.session.secure(sock.version() or "", resumed=bool(sock.session_reused))
            self._send(connection)

    def _accept(self, fd: int) -> None:
        """Take one connection: the next one is for whichever process comes first."""
        listener, sink = self._listeners[fd]
        try:
            sock, address = listener.accept()
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                self._pause(exc)
            return  # somebody else took it, or it is gone
        sock.setblocking(False)  # noqa: FBT003  # its parameter has no name
        client = address[0] if isinstance(address, tuple) else "unix"
        connection = Connection(sock, Session(sink, client), sink, self._receive)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN)
        if connection.session.upgrading:
            self._begin_tls(connection)
        else:
            self._send(connection)

    def _pause(self, exc: OSError) -> None:
        """Descriptors are used up: accept again when a connection is closed. Never spin."""
        if not self._connections:
            raise OSError(exc.errno, f"cannot accept any connection: {exc.strerror}") from exc
        if self._accepting:
            self._accepting = False
            for fd in self._listeners:
                self._epoll.unregister(fd)

    def _drop(self, connection: Connection) -> None:
        """Close it; epoll forgets it by itself."""
        sock = connection.sock
        fd = sock.fileno()
        if isinstance(sock, ssl.SSLSocket) and connection.step != self._handshake:
            with suppress(OSError, ValueError):
                sock.unwrap()  # says close_notify, and does not wait for the client's
        sock.close()
        self._forget(connection, fd)

    def _forget(self, connection: Connection, fd: int) -> None:
        """It is closed."""
        del self._connections[fd]
        connection.session.end()
        if not self._accepting:
            self._accepting = True
            for fd in self._listeners:
                self._epoll.register(fd, ACCEPT)
