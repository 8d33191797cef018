"""The connection cache as deliveries see it: four calls that never fail, and its client.

`CacheClient` talks to a cache daemon, ours or a real scache(8). Cache trouble never fails or defers
mail: a call says "not found" or "not saved" instead, and when the daemon does not answer the cache
is left alone for a while (`_Outage`). Start reading at `CacheClient._call`.
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from protocol.cache_wire import FindDestination, FindEndpoint, SaveDestination, SaveEndpoint
from protocol.errors import LocalProtocolError, RemoteProtocolError
from worker.cache.channel import CacheChannel, ChannelLost
from worker.status.events import Emit, Noted, Warned

CHANNELS: Final = 32  # connections to the daemon at most; a call that finds them all busy says no
IDLE_CHANNELS: Final = 8  # of them, kept open between calls
IDLE_LIMIT: Final = 5.0  # seconds after which an idle one is not used again: ipc_idle
FIRST_PAUSE: Final = 1.0  # seconds without the cache after trouble; doubled with every failed probe
LONGEST_PAUSE: Final = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A connection from the cache."""

    sock: socket.socket  # non-blocking, close-on-exec; the caller owns and closes it
    endpoint: str  # property of the endpoint
    destination: str  # property of the destination; "" after find_endpoint()


class Saving(Enum):
    """What became of a connection that was to be saved. True in a condition: it is kept."""

    KEPT = "kept"  # it is somebody else's from now on
    REFUSED = "refused"  # it is still the caller's alone, who may say QUIT on it
    UNKNOWN = "unknown"  # it was passed, and no answer came: it may be somebody else's

    def __bool__(self) -> bool:
        """Whether it is kept."""
        return self is Saving.KEPT


class SessionCache(Protocol):
    """Where idle connections are kept for whoever delivers next. No call raises but Cancelled."""

    async def find_destination(self, label: str) -> Found | None:
        """A connection that serves a destination; it has left the cache."""

    async def find_endpoint(self, label: str) -> Found | None:
        """A connection to an endpoint; it has left the cache."""

    async def save_endpoint(
        self,
        ttl: int,
        label: str,
        property: str,  # noqa: A002  # the protocol's word
        fd: int,
    ) -> Saving:
        """Keep a connection, with its property, for `ttl` seconds at most.

        The caller still owns `fd` and closes it; only after REFUSED it may say another word on the
        connection.
        """

    async def save_destination(
        self,
        ttl: int,
        label: str,
        property: str,  # noqa: A002  # the protocol's word
        endpoint: str,
    ) -> bool:
        """Bind a destination, with its property, to an endpoint for `ttl` seconds; True: done."""

    def close(self) -> None:
        """Use the cache no more: calls under way and later ones say no."""


class CacheClient:
    """A `SessionCache` in a daemon. Any number of tasks may use it at once."""

    def __init__(self, path: Path, *, timeout: float, emit: Emit) -> None:
        """`path`: the daemon's socket. `timeout`: seconds for one call, its connect included."""
        self._path = path
        self._timeout = timeout
        self._outage = _Outage(path, emit)
        self._emit = emit
        self._idle: deque[tuple[CacheChannel, float]] = deque()  # and since when; oldest first
        self._channels = 0  # idle and busy ones
        self._calls: set[trio.CancelScope] = set()
        self._closed = False

    async def find_destination(self, label: str) -> Found | None:
        """See `SessionCache`."""
        found = await self._call(lambda channel: channel.find(FindDestination(label)))
        return None if found is None else Found(found[0], found[1][1], found[1][0])

    async def find_endpoint(self, label: str) -> Found | None:
        """See `SessionCache`."""
        found = await self._call(lambda channel: channel.find(FindEndpoint(label)))
        return None if found is None else Found(found[0], found[1][0], "")

    async def save_endpoint(
        self,
        ttl: int,
        label: str,
        property: str,  # noqa: A002  # the protocol's word
        fd: int,
    ) -> Saving:
        """See `SessionCache`. The connection is in blocking mode then, as smtp(8) wants it."""
        request = SaveEndpoint(ttl, label, property)
        used: list[CacheChannel] = []

        async def exchange(channel: CacheChannel) -> bool:
            used.append(channel)
            return await channel.save_endpoint(request, fd)

        try:
            os.set_blocking(fd, True)  # its parameters have no names
        except OSError as exc:
            self._emit(Warned(f"connection cache: descriptor {fd}: {exc.strerror}"))
            return Saving.REFUSED
        kept = await self._call(exchange)
        if kept:
            return Saving.KEPT
        if kept is None and any(channel.passed for channel in used):
            return Saving.UNKNOWN
        os.set_blocking(fd, False)
        return Saving.REFUSED

    async def save_destination(
        self,
        ttl: int,
        label: str,
        property: str,  # noqa: A002  # the protocol's word
        endpoint: str,
    ) -> bool:
        """See `SessionCache`."""
        request = SaveDestination(ttl, label, property, endpoint)
        return bool(await self._call(lambda channel: channel.save_destination(request)))

    def close(self) -> None:
        """See `SessionCache`."""
        self._closed = True
        self._drop_everything()

    # --- one call -------------------------------------------------------------------------------

    async def _call(self, exchange: Callable[[CacheChannel], Awaitable[T]]) -> T | None:
        """The outcome of an exchange; None: the cache is of no help now."""
        permission = self._outage.ask()
        if self._closed or permission is Permission.NO:
            return None
        # No `await` stands between an exchange and the return of what it found: it would be lost.
        result: T | None = None
        trouble: Exception | None = None
        with trio.CancelScope(deadline=trio.current_time() + self._timeout) as scope:
            self._calls.add(scope)
            try:
                result = await self._attempt(exchange)
            except LocalProtocolError as exc:  # a label of ours; the daemon has not seen it
                self._emit(Warned(f"connection cache: {exc}"))
            except (OSError, ChannelLost, RemoteProtocolError) as exc:
                trouble = exc
            finally:
                self._calls.discard(scope)
                self._outage.give_back(permission)
        if scope.cancelled_caught and trio.current_time() >= scope.deadline:
            trouble = TimeoutError(errno.ETIMEDOUT, f"no answer within {self._timeout:g} seconds")
        if trouble is not None and not self._closed:
            self._outage.begin(trouble, permission)
            self._drop_everything()  # calls under way wait for the same daemon
        return result

    async def _attempt(self, exchange: Callable[[CacheChannel], Awaitable[T]]) -> T | None:
        """The exchange on an idle channel or a new one; once more if the daemon had gone."""
        try:
            channel = self._take_idle() or await self._connect()
            return None if channel is None else await self._exchange(channel, exchange)
        except ChannelLost as exc:
            if exc.answered:  # it may have been done: once more might be twice
                return None
        channel = await self._connect()
        return None if channel is None else await self._exchange(channel, exchange)

    async def _exchange(
        self, channel: CacheChannel, exchange: Callable[[CacheChannel], Awaitable[T]]
    ) -> T:
        """The exchange, and then the channel is idle; or, after an exception, closed."""
        try:
            result = await exchange(channel)
        except BaseException:
            self._close(channel)
            raise
        self._outage.end()
        if len(self._idle) < IDLE_CHANNELS and not self._closed:
            self._idle.append((channel, trio.current_time()))
        else:
            self._close(channel)
        return result

    async def _connect(self) -> CacheChannel | None:
        """A new channel; None: there are enough. Raises OSError, ChannelLost, ProtocolError."""
        if self._channels >= CHANNELS:
            return None
        self._channels += 1
        try:
            return await CacheChannel.connect(self._path)
        except BaseException:
            self._channels -= 1
            raise

    def _take_idle(self) -> CacheChannel | None:
        """The channel that was used last. Old ones are closed: they could hold up a restart."""
        oldest = trio.current_time() - IDLE_LIMIT
        while self._idle and self._idle[0][1] < oldest:
            self._close(self._idle.popleft()[0])
        return self._idle.pop()[0] if self._idle else None

    def _close(self, channel: CacheChannel) -> None:
        channel.close()
        self._channels -= 1

    def _drop_everything(self) -> None:
        """End the calls under way, close idle channels."""
        for scope in self._calls:
            scope.cancel()
        while self._idle:
            self._close(self._idle.popleft()[0])


class Permission(Enum):
    """Whether a call may ask the daemon."""

    YES = "yes"
    PROBE = "probe"  # the one call that finds out whether an outage is over
    NO = "no"


class _Outage:
    """Whether the cache is usable, and when to look again. Tells about it, once each way."""

    def __init__(self, path: Path, emit: Emit) -> None:
        self._path = path
        self._emit = emit
        self._until: float | None = None  # when the next probe is due; None: the cache is usable
        self._pause = FIRST_PAUSE
        self._probing = False
        self._reached = False  # whether the daemon has ever answered
        self._warned = False

    def ask(self) -> Permission:
        """Whether to try. During an outage, one call at a time when its moment has come."""
        if self._until is None:
            return Permission.YES
        if self._probing or trio.current_time() < self._until:
            return Permission.NO
        self._probing = True
        return Permission.PROBE

    def give_back(self, permission: Permission) -> None:
        """A call is over, however."""
        if permission is Permission.PROBE:
            self._probing = False

    def begin(self, trouble: Exception, permission: Permission) -> None:
        """A call with this permission has met trouble."""
        if self._until is not None:
            if permission is not Permission.PROBE:
                return  # one of many calls that met the same
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._until = trio.current_time() + self._pause
        # A host that has no cache daemon is no trouble, until it had one.
        absent = isinstance(trouble, FileNotFoundError | ConnectionRefusedError)
        if self._warned or (absent and not self._reached):
            return
        self._warned = True
        reason = (trouble.strerror if isinstance(trouble, OSError) else None) or str(trouble)
        self._emit(Warned(f"connection cache {self._path}: {reason}; doing without it for a while"))

    def end(self) -> None:
        """The daemon has answered."""
        self._reached = True
        if self._until is None:
            return
        self._until, self._pause = None, FIRST_PAUSE
        if self._warned:
            self._warned = False
            self._emit(Noted(f"connection cache {self._path} is back"))
