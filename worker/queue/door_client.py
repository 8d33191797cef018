"""The clients at one door: each one's stream and time limit, and who goes when there is no place.

A place is worth something to whoever waits for one, and nothing to a client that does not use it.
So nobody is ended while there is room; when there is none and somebody waits, the client goes that
has been idle longest, and if none is idle, the one that has been at one request for longest. Each
has some time first (IDLE_GRACE, BUSY_GRACE). Where all of them have requests that are short enough,
again and again, one goes when its present or next request was answered: of the user who has most
places, the one that came first. So whatever one user does with his connections, nobody else waits
for ever.
"""

import socket
import struct
from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Final

import trio

from worker.network.socket_stream import QuickStream

# Seconds between two requests for which a client keeps a place that others want. Who waits for a
# place waits as long before a client has to go that uses its own.
IDLE_GRACE: Final = 1.0
BUSY_GRACE: Final = 60.0  # seconds of one request for which it does
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred


class DoorClient(QuickStream):
    """One client. Owns its socket; every wait for it has the same limit.

    Run what is said with it inside `scope`, which ends when a limit has passed, or when somebody
    else gets its place. One scope for all, with a deadline that moves: a scope for each frame costs
    more than the frame.
    """

    def __init__(self, sock: socket.socket, limit: float) -> None:
        """`limit`: seconds for one wait, either way."""
        super().__init__(sock)
        self.uid = peer_uid(sock)
        self._limit = limit
        self.must_go = False  # at the end of a request
        self._idle = True
        self._since = trio.current_time()
        self.scope = trio.CancelScope(deadline=self._since + limit)

    def begins(self) -> None:
        """A request has arrived."""
        self._idle = False
        self._since = trio.current_time()

    def take_time(self) -> None:
        """What we do until we wait for it again has no limit."""
        self.scope.deadline = inf

    def ends(self) -> None:
        """It was answered: the client is idle from now on."""
        self._idle = True
        self._since = trio.current_time()
        if self.must_go:
            self.scope.cancel()

    @property
    def place_ends(self) -> float:
        """When it loses its place to somebody who waits (trio's clock)."""
        return self._since + (IDLE_GRACE if self._idle else BUSY_GRACE)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As QuickStream, and always a checkpoint: one that never pauses must let others go on."""
        self._wait_from_now()
        await trio.lowlevel.wait_readable(self.socket)
        return await super().receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As QuickStream, within the limit."""
        self._wait_from_now()
        await super().send_all(data)

    def _wait_from_now(self) -> None:
        # Moving a deadline costs as much as sending an answer; so it is moved when it is a tenth
        # of the limit old, and waits are that much shorter at worst.
        now = trio.current_time()
        if not now + 0.9 * self._limit <= self.scope.deadline < inf:
            self.scope.deadline = now + self._limit


class Places:
    """Who is at a door that has room for some."""

    def __init__(self, limit: int) -> None:
        """`limit`: clients at the same time."""
        self._limit = limit
        self._clients: dict[DoorClient, None] = {}  # in the order in which they came
        self._left = trio.Event()

    def take(self, client: DoorClient) -> None:
        """A client has come: after wait_for_one()."""
        self._clients[client] = None

    def leave(self, client: DoorClient) -> None:
        """A client has gone."""
        del self._clients[client]
        self._left.set()

    async def wait_for_one(self) -> None:
        """Somebody waits: return when there is a place, and make one if need be."""
        patience = trio.current_time() + IDLE_GRACE  # until when all may use their places
        chosen: DoorClient | None = None  # the one that goes if nobody else does
        while len(self._clients) >= self._limit:
            self._left = trio.Event()
            staying = [client for client in self._clients if not client.scope.cancel_called]
            first = min(staying, key=lambda client: client.place_ends, default=None)
            with trio.move_on_at(min(patience, inf if first is None else first.place_ends)):
                await self._left.wait()
                continue
            # It may have been answered meanwhile, and has a new second then.
            if first is not None and first.place_ends <= trio.current_time():
                first.scope.cancel()
                await self._left.wait()  # one that goes is enough
            elif patience <= trio.current_time():
                patience = inf
                chosen = _first_of_the_greediest(staying)
                if chosen is not None:
                    chosen.must_go = True
        if chosen is not None:
            chosen.must_go = False


def _first_of_the_greediest(clients: Sequence[DoorClient]) -> DoorClient | None:
    """Of the user with most of these clients, the first one."""
    places = Counter(client.uid for client in clients)
    return max(clients, key=lambda client: places[client.uid], default=None)


def peer_uid(sock: socket.socket) -> int:
    """Who is at the other end, as the kernel says."""
    octets = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(octets)
    return int(uid)
