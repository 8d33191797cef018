"""A client that loads a server as cheaply as Python can: whole flights, replies only counted.

For figures of servers only: it sends a message's content when the 354 has come, and with it the
envelope of the next message, so each message takes one round trip. Sockets block while sending.
"""

import select
import socket
from collections.abc import Iterator, Sequence
from typing import Final

LIMIT: Final = 30.0  # seconds without anything from the server
ENVELOPE: Final = (
    b"MAIL FROM:<load@source.example>\r\nRCPT TO:<user@d.example>\r\nDATA\r\n"  # three replies
)


class ServerError(Exception):
    """The server did not take everything: what happened."""


class _Flights:
    """One session: what to send whenever the replies to the flight before are all there."""

    def __init__(self, sock: socket.socket, flights: Iterator[tuple[bytes, int]]) -> None:
        self.sock = sock
        self._flights = flights
        self._awaited = 1  # lines; first the greeting

    def receive(self) -> bool:
        """Read what came, send the next flight if it is time to. False: the session is over."""
        data = self.sock.recv(65_536)
        if not data:
            return False
        self._awaited -= data.count(b"\n")
        if data[0] not in b"23" or b"\n4" in data or b"\n5" in data or self._awaited < 0:
            raise ServerError(f"the server said {data[:200]!r}")
        # After the reply to QUIT there is nothing to send, and the server closes.
        if not self._awaited and (flight := next(self._flights, None)) is not None:
            octets, self._awaited = flight
            self.sock.sendall(octets)
        return True


def send_messages(port: int, count: int, sessions: int, content: bytes) -> None:
    """`count` messages over so many sessions at once, to a port of 127.0.0.1.

    `content`: with CRLF at its end, dots stuffed. Raises ServerError, OSError.
    """
    counts = [count // sessions + (number < count % sessions) for number in range(sessions)]
    clients: dict[int, _Flights] = {}
    poll = select.epoll()
    try:
        for number in counts:
            sock = socket.create_connection(("127.0.0.1", port), LIMIT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients[sock.fileno()] = _Flights(sock, _flights(number, content))
            poll.register(sock, select.EPOLLIN)
        _exchange(poll, clients)
    finally:
        poll.close()
        for client in clients.values():
            client.sock.close()


def _exchange(poll: select.epoll, clients: dict[int, _Flights]) -> None:
    """Until every session has ended."""
    while clients:
        events: Sequence[tuple[int, int]] = poll.poll(LIMIT)
        if not events:
            raise ServerError(f"the server said nothing for {LIMIT:.0f} seconds")
        for fd, _ in events:
            if not clients[fd].receive():
                clients.pop(fd).sock.close()


def _flights(count: int, content: bytes) -> Iterator[tuple[bytes, int]]:
    """What one session sends, and how many lines answer it."""
    yield b"HELO bench.example\r\n", 1
    if count:
        yield ENVELOPE, 3
        both = content + b".\r\n" + ENVELOPE
        for _ in range(count - 1):
            yield both, 4
        yield content + b".\r\n", 1
    yield b"QUIT\r\n", 1
