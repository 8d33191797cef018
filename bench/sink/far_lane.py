"""The lane for sinks that are far away, and do nothing else that takes time: epoll and one queue.

What distance is, `delay_line.py` says. All connections here are equally far, so what leaves first
arrives first: one queue serves them all, and a reply costs no task, no timer and no switch.

epoll's timer has a resolution of a millisecond and is late by half of one on average. So a reply
may arrive up to half a millisecond early, and does so as often as it is late.

Memory: for each connection LIMIT octets, and the replies to one read.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from bench.sink.delay_line import LIMIT
from bench.sink.plain_lane import Connection, PlainLane
from bench.sink.sink import Sink

EARLY: Final = 0.0005  # seconds


class FarLane(PlainLane):
    """As PlainLane, but what it sends arrives `rtt` seconds later. Not for TLS."""

    def __init__(
        self, listeners: Sequence[tuple[socket.socket, Sink]], stop: Sequence[int], rtt: float
    ) -> None:
        super().__init__(listeners, stop)
        self._rtt = rtt
        # When it arrives (seconds of the monotonic clock), where, and what; the latest is last.
        self._way = deque[tuple[float, Connection, bytes]]()

    def _serve(self) -> None:
        poll, way = self._epoll.poll, self._way
        while True:
            wait = max(0.0, way[0][0] - EARLY - time.monotonic()) if way else None
            if not self._take(poll(wait)):
                return
            now = time.monotonic() + EARLY
            while way and way[0][0] <= now:
                _, connection, octets = way.popleft()
                self._arrive(connection, octets)

    def _send(self, connection: Connection) -> None:
        """Put on its way what is due."""
        octets, last = connection.session.take(), connection.session.closing
        if octets or last:
            self._leave(connection, octets, last=last)

    def _over(self, connection: Connection) -> None:
        """The client says no more, and may still listen."""
        if connection.ending:
            self._drop(connection)  # it does not, or there would be no second event
        else:
            self._leave(connection, b"", last=True)

    def _leave(self, connection: Connection, octets: bytes, *, last: bool) -> None:
        self._way.append((time.monotonic() + self._rtt, connection, octets))
        connection.due += 1
        connection.under_way += len(octets)
        connection.ending = last
        if last or connection.under_way >= LIMIT:
            self._epoll.modify(connection.sock, 0)

    def _arrive(self, connection: Connection, octets: bytes) -> None:
        if connection.sock.fileno() < 0:
            return  # the client has gone meanwhile
        full = connection.under_way >= LIMIT
        connection.due -= 1
        connection.under_way -= len(octets)
        if connection.unsent:
            connection.unsent = memoryview(bytes(connection.unsent) + octets)
        elif self._offer(connection, octets) and (full or connection.ending):
            self._sent(connection)

    def _sent(self, connection: Connection) -> None:
        """The client has taken all that had arrived."""
        connection.step = self._receive
        if not connection.ending:
            room = connection.under_way < LIMIT
            self._epoll.modify(connection.sock, select.EPOLLIN if room else 0)
        elif connection.due:
            self._epoll.modify(connection.sock, 0)
        else:
            self._drop(connection)
