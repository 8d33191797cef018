"""Sessions by way of the connection cache: which requests may, and how a session travels.

Answers for the second of three levels of reuse: the slot's own session (`slot.py`), one from the
cache, a new one. `ReusePolicy` says which of them a request may use (S138, S143, S144);
`CachedSessions` turns a clean session into a descriptor with its properties and back.

A session serves only who would have got the same one by himself: the labels hold all that decides
who is talked to and as whom.
"""

import ipaddress
import socket
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from protocol.cache_entry import DestinationProperty, SessionProperty, label
from protocol.destination import DestinationError, parse_destination, split_nexthops
from protocol.dialogue import Dialogue, State
from protocol.errors import RemoteProtocolError
from protocol.request import DeliveryRequest, Protocol, RequestFlags
from worker.cache.client import Found, Saving, SessionCache
from worker.config.config import Config
from worker.config.match_list import StringList
from worker.config.tables import TableError
from worker.delivery.security import Security
from worker.delivery.session import Session, SessionKey
from worker.delivery.transaction import CleanSession
from worker.network.address import Endpoint
from worker.network.socket_stream import EagerStream, QuickStream
from worker.status.events import Emit, Warned
from worker.tls.holder import LendError
from worker.tls.policy import TlsFacts
from worker.tls.stream import TlsStream


@dataclass(frozen=True, slots=True)
class Wishes:
    """What reuse one request may make."""

    keep: bool = False  # the session may stay in the slot for the next request
    load: bool = False  # it may come from the cache
    save: bool = False  # it may go there


_LOAD: Final = int(RequestFlags.CACHE_LOAD)
_SAVE: Final = int(RequestFlags.CACHE_SAVE)
NO_REUSE: Final = Wishes()
ALWAYS: Final = Wishes(keep=True, load=True, save=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusePolicy:
    """One protocol's settings. Comments: parameter and default."""

    on_demand: bool = True  # smtp_connection_cache_on_demand (yes)
    destinations: StringList | None = None  # smtp_connection_cache_destinations (); None: empty
    time_limit: float = 2.0  # smtp_connection_cache_time_limit (2s): of an idle one, in seconds

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> "ReusePolicy":
        """Read the smtp_ or lmtp_ parameters."""

        def name(parameter: str) -> str:
            return config.mirror(parameter, protocol)

        kept = name("smtp_connection_cache_destinations")
        return cls(
            on_demand=config.boolean(name("smtp_connection_cache_on_demand")),
            destinations=config.matches(kept) if config.text(kept) else None,
            time_limit=config.seconds(name("smtp_connection_cache_time_limit")),
        )

    async def wishes(self, request: DeliveryRequest, emit: Emit) -> Wishes:
        """What reuse `request` may make. Never raises: caching must not cost mail."""
        if self.destinations is not None:
            try:
                if await self.destinations.matches(_bare(request)):
                    return ALWAYS
            except (TableError, DestinationError) as exc:
                emit(Warned(f"smtp_connection_cache_destinations: {exc}", request.queue_id))
        if not self.on_demand:
            return NO_REUSE
        flags = int(request.flags)
        return Wishes(keep=True, load=bool(flags & _LOAD), save=bool(flags & _SAVE))


def _bare(request: DeliveryRequest) -> str:
    """The nexthop without brackets and port, of a list the first. Raises DestinationError."""
    first = request.nexthop
    if not first.startswith("unix:"):
        first = split_nexthops(first)[0]
    return parse_destination(first, request.protocol).name


# What must hold for a session with an endpoint that the cache has named.
Wanted = Callable[[Endpoint], Awaitable[Security | None]]


class Lender(typing.Protocol):
    """Keeps a TLS connection, and has a pipe to it for whoever uses it next."""

    def lend(self, stream: TlsStream, peer: str) -> socket.socket:
        """The end of the pipe; `stream` is the lender's from now on. Raises LendError."""

    def reclaim(self, end: socket.socket) -> EagerStream | None:
        """What was lent as `end`, the caller's again; None: it is not ours, or busy."""


class CachedSessions:
    """Saves sessions in the cache and finds them there. Any number of tasks may use it.

    `clock`: seconds of a clock that all processes of this host share and nobody sets
    (`time.monotonic`); the age of a session goes by it.
    """

    def __init__(
        self,
        cache: SessionCache,
        clock: Callable[[], float],
        lender: Lender | None = None,
    ) -> None:
        """`lender`: keeps TLS connections for others; None: they stay in their slots."""
        self._cache = cache
        self._clock = clock
        self._lender = lender

    def close(self) -> None:
        """Nothing is found or saved from now on; sessions end with QUIT instead."""
        self._cache.close()

    async def save(
        self, key: SessionKey, clean: CleanSession, limit: float, *, for_destination: bool
    ) -> None:
        """Give a clean session to whoever comes next, or say QUIT. It is the caller's no more.

        Where the cache does not say whether it has it, it is closed without a word.

        `limit`: seconds it may be idle. `for_destination`: it was the first good one of its
        request, and so is what the next request for the nexthop would look for.
        """
        session = clean.session
        try:
            ttl = max(1, int(limit))
            saving = await self._saved(key, session, ttl, for_destination=for_destination)
            if saving is Saving.REFUSED:
                await session.quit()
        finally:
            await session.aclose()  # our copy only: the connection is the cache's now

    async def _saved(
        self, key: SessionKey, session: Session, ttl: int, *, for_destination: bool
    ) -> Saving:
        if session.delays_dot:
            return Saving.REFUSED
        if isinstance(session.stream, TlsStream):
            if self._lender is None or not session.security.policy.shared:
                return Saving.REFUSED
            # The connection stays here; what travels is the end of a pipe to it (S149).
            try:
                end = self._lender.lend(session.stream, session.endpoint.relay)
            except LendError:
                return Saving.REFUSED
            session.stream = QuickStream(end)
        if not isinstance(session.stream, QuickStream):
            return Saving.REFUSED  # there is no descriptor that another process could use
        endpoint = session.endpoint
        place = endpoint_label(key, endpoint, session.security)
        if for_destination:
            whole = DestinationProperty(
                host=endpoint.host,
                address=endpoint.address,
                port=endpoint.port,
                preference=endpoint.preference,
            )
            await self._cache.save_destination(ttl, destination_label(key), whole.encode(), place)
        age = trio.current_time() - session.born
        known = SessionProperty(
            uses=session.uses,
            born=self._clock() - age,
            security=session.security.key,
            tls=session.tls.encode() if session.tls is not None else "",
            capabilities=session.capabilities,
        )
        fd = session.stream.socket.fileno()
        return await self._cache.save_endpoint(ttl, place, known.encode(), fd)

    async def find_destination(self, key: SessionKey, wanted: Wanted) -> Session | None:
        """A session that serves `key`, the caller's to close; None: there is none.

        `wanted` tells what must hold for the endpoint that it is with; None: nothing serves.
        """
        found = await self._cache.find_destination(destination_label(key))
        if found is None:
            return None
        try:
            endpoint = _endpoint(DestinationProperty.decode(found.destination))
        except (RemoteProtocolError, ValueError):
            found.sock.close()
            return None
        session = Session(
            endpoint, QuickStream(found.sock), key.settings, Dialogue(State.INTRODUCED)
        )
        try:
            security = await wanted(endpoint)
        except BaseException:
            await session.aclose()
            raise
        return await self._usable(session, found, security)

    async def find_endpoint(
        self, key: SessionKey, endpoint: Endpoint, security: Security
    ) -> Session | None:
        """A session with `endpoint` that serves `key`, the caller's to close; None: none."""
        found = await self._cache.find_endpoint(endpoint_label(key, endpoint, security))
        if found is None:
            return None
        session = Session(
            endpoint, QuickStream(found.sock), key.settings, Dialogue(State.INTRODUCED)
        )
        return await self._usable(session, found, security)

    async def _usable(
        self, session: Session, found: Found, security: Security | None
    ) -> Session | None:
        """The session with what its property says of it; an unusable one ends here."""
        try:
            known = SessionProperty.decode(found.endpoint)
            session.tls = TlsFacts.decode(known.tls) if known.tls else None
        except (RemoteProtocolError, ValueError):
            await session.aclose()
            return None
        if self._lender is not None and session.tls is not None:
            # One that this process has lent: without the pipe it costs a third.
            session.stream = self._lender.reclaim(found.sock) or session.stream
        if security is not None:
            session.security = security
        session.uses = known.uses
        session.capabilities = known.capabilities
        session.born = trio.current_time() - (self._clock() - known.born)
        # Is the peer still there? RSET asks, in the same flight as MAIL.
        session.needs_reset = True
        serves = security is not None and known.security == security.key
        if serves and session.reusable and session.is_silent():
            return session
        try:
            await session.quit()
        finally:
            await session.aclose()
        return None


def destination_label(key: SessionKey) -> str:
    """Under which sessions to the nexthop of `key` are kept."""
    nexthop = key.nexthop if key.nexthop.startswith("unix:") else key.nexthop.lower()
    settings = key.settings
    return label(
        *("destination", key.transport, settings.protocol.value, nexthop, key.sender),
        *(int(key.smtputf8), settings.fingerprint),
    )


def endpoint_label(key: SessionKey, endpoint: Endpoint, security: Security) -> str:
    """Under which sessions of `key` with one endpoint are kept, whatever the nexthop was.

    Whom we meant, where TLS has to prove it, and as whom we log in, are part of `security`.
    """
    settings = key.settings
    return label(
        *("endpoint", key.transport, settings.protocol.value, endpoint.address, endpoint.port),
        key.sender,
        *(int(key.smtputf8), settings.fingerprint, security.key),
    )


def _endpoint(whole: DestinationProperty) -> Endpoint:
    """The endpoint of a cached session. Raises ValueError for an address that is none."""
    if not whole.port:
        family = socket.AF_UNIX
    elif ipaddress.ip_address(whole.address).version == 4:
        family = socket.AF_INET
    else:
        family = socket.AF_INET6
    return Endpoint(
        host=whole.host,
        address=whole.address,
        port=whole.port,
        family=family,
        preference=whole.preference,
    )
