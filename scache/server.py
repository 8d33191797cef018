"""The cache daemon's main path: clients come, save and find connections; held peers leave.

`Server.serve` accepts clients, whose conversations (`_talk`, `_answer`) `clients.py` goes on with.
Two tasks look after what is held: one hears of peers that closed or spoke and forgets their
connections at once, one ends those whose time to live is up with a QUIT that nobody waits for.

A connection that was found leaves the store before a word about it is sent, so nobody else can get
it; if the client does not take it, it is closed. The store decides (`store.py`), the sockets are in
`sockets.py`, what travels to clients is in `channel.py`.
"""

import errno
import logging
import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

from protocol.cache_wire import (
    ANNOUNCEMENT_WIRE,
    DUMMY_WIRE,
    BadRequest,
    FindDestination,
    FindEndpoint,
    Reply,
    ReportRequest,
    Request,
    SaveDestination,
    SaveEndpoint,
    Status,
    decode_request,
    encode_report,
    miss,
)
from scache.channel import Channel, Steps
from scache.clients import Clients
from scache.counts import Counts
from scache.report import make_report
from scache.sockets import HeldSockets, UnfitDescriptor
from scache.store import Held, Store, StoreLimits

log = logging.getLogger("scache")

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RELIEF: Final = 0.1  # seconds to wait for one of those to pass

_SAVED: Final = Reply(Status.OK).encode()
_REFUSED: Final = Reply(Status.MALFORMED).encode()
_FAILED: Final = Reply(Status.FAILED).encode()
_NO_ENDPOINT: Final = miss(1).encode()
_NO_DESTINATION: Final = miss(2).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How clients are served. Field comments name the parameter and its default."""

    trusted: frozenset[int]  # user ids that may be clients: our own, root, --trust
    limits: StoreLimits
    protocol_timeout: float = 5.0  # seconds: connection_cache_protocol_timeout
    clients: int = 1000  # at the same time; more wait to be accepted


class Server:
    """One cache. `serve()` it once, then `shut()` it."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._store = Store(settings.limits)
        self._sockets = HeldSockets()
        self._sleep = trio.CancelScope()  # of the task that expires; its deadline is moved
        self._clients = Clients(settings.clients, settings.protocol_timeout)
        self._refused: set[int] = set()  # user ids we have complained about

    # --- the main path --------------------------------------------------------------------------

    async def serve(self, listener: socket.socket) -> None:
        """Serve clients of `listener`, which is non-blocking, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._clients.run)
            nursery.start_soon(self._watch)
            nursery.start_soon(self._expire)
            while True:
                await self._clients.wait_room()  # the others wait in the kernel, at no cost to us
                self._clients.add(await self._accept(listener), self._talk)

    def _talk(self, channel: Channel) -> Steps[None]:
        """One client until it ends. Raises ProtocolError, OSError."""
        yield from channel.send(ANNOUNCEMENT_WIRE)
        while (attributes := (yield from channel.next_request())) is not None:
            try:
                request = decode_request(attributes)
            except BadRequest as exc:
                log.warning("bad request: %s", exc)
                yield from channel.send(miss(exc.properties, Status.MALFORMED).encode())
            else:
                yield from self._answer(channel, request)

    def _answer(self, channel: Channel, request: Request) -> Steps[None]:
        match request:
            case FindDestination():
                self._forget_spoken()
                found = self._store.find_destination(request.label, trio.current_time())
                if found is None:
                    yield from channel.send(_NO_DESTINATION)
                else:
                    yield from self._hand_out(channel, found[0], (found[1], found[0].property))
            case FindEndpoint():
                self._forget_spoken()
                held = self._store.find_endpoint(request.label, trio.current_time())
                if held is None:
                    yield from channel.send(_NO_ENDPOINT)
                else:
                    yield from self._hand_out(channel, held, (held.property,))
            case SaveDestination(ttl, label, text, endpoint):
                now = trio.current_time()
                self._expire_by(self._store.save_destination(ttl, label, text, endpoint, now))
                yield from channel.send(_SAVED)
            case SaveEndpoint():
                yield from channel.send(DUMMY_WIRE)
                fd = yield from channel.receive_descriptor()
                yield from channel.send(self._take_in(request, fd))
            case ReportRequest():
                yield from channel.send(encode_report(self._report()))

    def _hand_out(self, channel: Channel, held: Held, properties: tuple[str, ...]) -> Steps[None]:
        """Give a connection, which has left the store, to the client; our copy is closed."""
        with self._sockets.release(held.handle) as sock:
            yield from channel.send(Reply(Status.OK, properties).encode())
            yield from channel.expect_dummy()
            yield from channel.send_descriptor(sock.fileno())
        yield from channel.expect_dummy()

    def _take_in(self, request: SaveEndpoint, fd: int | None) -> bytes:
        """Hold the connection that came with the request; returns the answer."""
        if fd is None:
            log.warning("connection not saved: not one descriptor, or no room for another")
            return _FAILED
        try:
            handle = self._sockets.adopt(fd)
        except UnfitDescriptor as exc:
            log.warning("connection not saved: %s", exc)
            return _REFUSED
        held, evicted = self._store.save_endpoint(
            handle, request.ttl, request.label, request.property, trio.current_time()
        )
        for other in evicted:
            self._sockets.quit(other.handle)
        self._expire_by(held.expires)
        return _SAVED

    # --- what is held ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._sockets.wait_spoken()
            self._forget_spoken()

    def _forget_spoken(self) -> None:
        """Close connections whose peers have closed or spoken: nobody can use them any more."""
        for handle in self._sockets.spoken():
            self._store.drop(handle)
            self._sockets.close(handle)

    async def _expire(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._store.next_expiry) as self._sleep:
                await trio.sleep_forever()
            for held in self._store.expire(trio.current_time()):
                self._sockets.quit(held.handle)

    def _expire_by(self, moment: float) -> None:
        """See to it that the expiring task does not sleep longer."""
        if moment < self._sleep.deadline:
            self._sleep.deadline = moment

    def take_counts(self) -> Counts:
        """The counts so far; the next interval begins."""
        counts, self._store.counts = self._store.counts, Counts()
        return counts

    def shut(self) -> None:
        """End all clients, say QUIT to everything held, and close it."""
        self._clients.shut()
        for held in self._store.clear():
            self._sockets.quit(held.handle)
        self._sockets.shut()

    def _report(self) -> str:
        return make_report(self._store, trio.current_time(), clients=len(self._clients))

    # --- clients --------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> socket.socket:
        """The next client that may be one."""
        complained = False
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
            except ConnectionAbortedError:
                await trio.lowlevel.checkpoint()
            except OSError as exc:
                if exc.errno not in _EXHAUSTED:
                    raise
                if not complained:
                    log.warning("cannot accept a client: %s", exc.strerror)
                complained = True
                await trio.sleep(_RELIEF)
            else:
                if self._is_trusted(sock):
                    sock.setblocking(False)  # noqa: FBT003  # its parameter has no name
                    return sock
                sock.close()
                await trio.lowlevel.checkpoint()  # a loop of connects must not take all our time

    def _is_trusted(self, sock: socket.socket) -> bool:
        """Whether the kernel says that the client is one of us; before any octet is exchanged."""
        octets = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, uid, _gid = _CREDENTIALS.unpack(octets)
        if uid in self._settings.trusted:
            return True
        if uid not in self._refused:  # once: a loop of connects must not fill the log
            self._refused.add(uid)
            log.warning("client refused: user id %d is not trusted", uid)
        return False
