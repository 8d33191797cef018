"""A cache server in the test's own process, clients to talk to it, connections to save.

Sockets are real, time is virtual: UNIX sockets of one process deliver at once, so whatever can
happen has happened when every task waits.
"""

import os
import socket
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from protocol.attributes import AttributeList
from protocol.cache_wire import (
    ANNOUNCEMENT,
    DUMMY,
    DUMMY_WIRE,
    FindDestination,
    FindEndpoint,
    ListReader,
    Reply,
    SaveEndpoint,
    decode_reply,
)
from protocol.reply import NEED_DATA
from scache.server import Server, ServerSettings
from scache.store import StoreLimits
from tests.descriptors import open_descriptors

OURSELVES = frozenset({os.geteuid()})


class Talker:
    """One client, in full control of what it says."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self._lists = ListReader()

    async def say(self, octets: bytes) -> None:
        await self.sock.send(octets)

    async def hear(self) -> AttributeList | None:
        """The next list; None: the server has hung up."""
        while (event := self._lists.next_event()) is NEED_DATA:
            data = await self.sock.recv(65_536)
            if not data:
                return None
            self._lists.receive_data(data)
        return event

    async def hear_end(self) -> bool:
        """Whether there is nothing more but the end."""
        try:
            return await self.hear() is None
        except ConnectionResetError:
            return True

    async def pass_descriptors(self, *fds: int, octets: bytes = b"\0") -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
        await self.sock.sendmsg([octets], rights if fds else [])

    async def take_descriptor(self) -> socket.socket:
        _, ancillary, _, _ = await self.sock.recvmsg(1, 1024, socket.MSG_CMSG_CLOEXEC)
        found = array("i")
        for _, _, rights in ancillary:
            found.frombytes(rights)
        assert len(found) == 1
        return socket.socket(fileno=found[0])

    async def save(self, label: str, connection: socket.socket, ttl: int = 60) -> str:
        """Save a connection under "for <label>"; returns the status."""
        await self.say(SaveEndpoint(ttl, label, f"for {label}").encode())
        assert await self.hear() == DUMMY
        await self.pass_descriptors(connection.fileno())
        ((name, status),) = await self.hear() or ()
        assert (name, isinstance(status, str)) == ("status", True)
        return str(status)

    async def find(
        self, request: FindEndpoint | FindDestination
    ) -> tuple[Reply, socket.socket | None]:
        """The answer, with the connection if it is a hit."""
        await self.say(request.encode())
        properties = 1 if isinstance(request, FindEndpoint) else 2
        reply = decode_reply(await self.hear() or (), properties)
        if reply.status:
            return reply, None
        await self.say(DUMMY_WIRE)
        connection = await self.take_descriptor()
        await self.say(DUMMY_WIRE)
        return reply, connection


class World:
    """A running server, and everything that a test opens: closed at the end."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.path = path
        self._opened: list[socket.socket | trio.socket.SocketType] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A connection to save and its peer, both non-blocking."""
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)  # noqa: FBT003  # it has no name
        self._opened += ends
        return ends

    async def connect(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._opened.append(sock)
        await sock.connect(str(self.path))
        return sock

    async def client(self) -> Talker:
        """A client that has heard the announcement."""
        talker = Talker(await self.connect())
        assert await talker.hear() == ANNOUNCEMENT
        return talker

    async def saved(self, label: str, ttl: int = 60) -> socket.socket:
        """Save a new connection, whose peer is returned; the test keeps no copy of it."""
        connection, peer = self.pair()
        client = await self.client()
        assert await client.save(label, connection, ttl) == "0"
        connection.close()
        client.sock.close()
        return peer

    @property
    def held(self) -> int:
        """How many connections the server holds."""
        return len(self.server._sockets._sockets)

    def close(self) -> None:
        for sock in self._opened:
            sock.close()


Listener = Callable[[], socket.socket]


def plain_listener() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


async def play(
    scenario: Callable[[World], Awaitable[None]],
    directory: Path,
    *,
    make_listener: Listener = plain_listener,
    afterwards: Callable[[World], None] = lambda _: None,
    limits: StoreLimits | None = None,
    **settings: Any,
) -> None:
    """Run a scenario with a server; afterwards as many descriptors are open as before.

    `afterwards` looks at the world when the server has ended.
    """
    before = open_descriptors()
    limits = limits or StoreLimits()
    server = Server(ServerSettings(**{"trusted": OURSELVES, "limits": limits, **settings}))
    path = directory / f"socket{len(before)}"
    path.unlink(missing_ok=True)
    with make_listener() as listener:
        listener.bind(str(path))
        listener.listen(100)
        listener.setblocking(False)  # noqa: FBT003  # it has no name
        world = World(server, path)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve, listener)
                await scenario(world)
                nursery.cancel_scope.cancel()
        finally:
            server.shut()
            afterwards(world)
            world.close()
    assert open_descriptors() <= before


async def settle() -> None:
    """Return when everything that can happen now has happened."""
    for _ in range(3):
        await wait_all_tasks_blocked()
