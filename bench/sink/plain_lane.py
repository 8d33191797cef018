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
from collections.abc import Sequence
from typing import Final

from bench.sink.session import Session
from bench.sink.sink import Sink

READ_SIZE: Final = 65_536  # octets; more is no faster, and glibc maps larger blocks anew each time
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Of several processes that wait for connections to one socket, wake one and not all.
ACCEPT: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE


class _Connection:
    """One client: its socket, its session, and what it has not taken yet."""

    __slots__ = ("session", "sock", "unsent")

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.session = session
        self.unsent = memoryview(b"")


class PlainLane:
    """Serves `listeners`, sockets that do not block, until one of the descriptors `stop` is ready.

    The listening sockets stay the caller's; connections are closed in the end.
    """

    def __init__(
        self, listeners: Sequence[tuple[socket.socket, Sink]], stop: Sequence[int]
    ) -> None:
        self._listeners = {sock.fileno(): (sock, sink) for sock, sink in listeners}
        self._stop = stop
        self._connections: dict[int, _Connection] = {}
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
        connections = self._connections
        poll, stop = self._epoll.poll, frozenset(self._stop)
        while True:
            for fd, _ in poll():
                connection = connections.get(fd)
                if connection is None:
                    if fd in stop:
                        return
                    # An event of a connection that was closed a moment ago has no listener.
                    if fd in self._listeners:
                        self._accept(fd)
                elif connection.unsent:
                    self._send_rest(connection)
                else:
                    self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        """One read, and the replies to it."""
        try:
            data = connection.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # a client that vanished is no error
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.session.receive(data)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        """Send what is due; if the client does not take it all, wait for that and read no more."""
        session = connection.session
        if wire := session.take():
            try:
                sent = connection.sock.send(wire)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(connection)
                return
            if sent < len(wire):
                connection.unsent = memoryview(wire)[sent:]
                self._epoll.modify(connection.sock, select.EPOLLOUT)
                return
        if session.closing:
            self._drop(connection)

    def _send_rest(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if connection.unsent:
            return
        if connection.session.closing:
            self._drop(connection)
        else:
            self._epoll.modify(connection.sock, select.EPOLLIN)

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
        connection = _Connection(sock, Session(sink, client))
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLIN)
        self._send(connection)

    def _pause(self, exc: OSError) -> None:
        """Descriptors are used up: accept again when a connection is closed. Never spin."""
        if not self._connections:
            raise OSError(exc.errno, f"cannot accept any connection: {exc.strerror}") from exc
        if self._accepting:
            self._accepting = False
            for fd in self._listeners:
                self._epoll.unregister(fd)

    def _drop(self, connection: _Connection) -> None:
        """Close it; epoll forgets it by itself."""
        del self._connections[connection.sock.fileno()]
        connection.sock.close()
        connection.session.end()
        if not self._accepting:
            self._accepting = True
            for fd in self._listeners:
                self._epoll.register(fd, ACCEPT)
