"""What a slot keeps from one request to the next: at most one clean session, and its off switch.

A slot is one concurrent delivery to one destination. Reuse in it costs nothing: no search, no
descriptor passed, and between requests that follow each other at once no probe (a dead session is
noticed before any message was sent). What the slot has no use for goes to the cache, if it may.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from protocol.request import DeliveryRequest
from worker.delivery.session import Session, SessionKey
from worker.delivery.transaction import CleanSession, ParkableSession

# A session that was idle for longer (seconds) may hang in silence, because some box between us
# forgot it: RSET goes first then, within its short limit (smtp_rset_timeout, S054). Requests that
# follow each other at once do without.
PROBE_AFTER: Final = 1.0


# Gives a clean session to whoever comes next, and closes our copy.
Save = Callable[[CleanSession], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Parked:
    key: SessionKey
    parkable: ParkableSession
    save: Save | None

    @property
    def session(self) -> Session:
        """The session itself."""
        return self.parkable.session

    async def release(self) -> None:
        """Save it or end it politely; nothing of it is ours afterwards, also when cancelled."""
        session = self.session
        good = session.reusable and session.is_silent()
        try:
            if self.save is not None and good and isinstance(self.parkable, CleanSession):
                await self.save(self.parkable)
            else:
                await session.quit()
        finally:
            await session.aclose()


class DeliverySlot:
    """Holds a parked session, and can stop the delivery under way before it is committed.

    One delivery at a time. release() gives away or ends the parked session.
    """

    def __init__(self, upcoming: Callable[[], DeliveryRequest | None] = lambda: None) -> None:
        """`upcoming` tells the next request of this slot if it is there already. Never waits."""
        self.upcoming = upcoming
        self._parked: _Parked | None = None
        self._scope: trio.CancelScope | None = None
        self._committed = False  # between the first octet of content and the last reply
        self.stopping = False

    @property
    def holds_session(self) -> bool:
        """A session waits for the next request."""
        return self._parked is not None

    def at_hand(self, request: DeliveryRequest) -> tuple[SessionKey, Session] | None:
        """The parked session, if `request` can go on in it without a question; it stays parked."""
        parked = self._parked
        if parked is None:
            return None
        session = parked.session
        if session.ahead is not None:
            good = session.ahead.request is request and session.sound
        else:
            idle = trio.current_time() - session.idle_since
            good = idle <= PROBE_AFTER and not session.needs_reset
            good = good and session.reusable and session.is_silent()
        return (parked.key, session) if good else None

    def unpark(self) -> Save | None:
        """What is parked is the caller's from now on; what was to be done with it."""
        parked, self._parked = self._parked, None
        return parked.save if parked is not None else None

    def park(self, key: SessionKey, parkable: ParkableSession, save: Save | None) -> None:
        """Keep what transfer() has returned; nothing else can be parked, and only one.

        `save`: what to do with it if the slot has no more use for it; None: end it.
        """
        assert self._parked is None
        parkable.session.idle_since = trio.current_time()
        self._parked = _Parked(key, parkable, save)

    async def take(self, key: SessionKey, request: DeliveryRequest) -> Session | None:
        """The parked session if it serves `key` and its peer is silent; the caller owns it.

        One that is pledged serves its own request only. An unsuitable one is released here.
        """
        parked, self._parked = self._parked, None
        if parked is None:
            return None
        session = parked.session
        if session.ahead is not None:
            if parked.key == key and session.ahead.request is request and session.sound:
                return session
        elif parked.key == key and session.reusable and session.is_silent():
            if trio.current_time() - session.idle_since > PROBE_AFTER:
                session.needs_reset = True
            return session
        await parked.release()
        return None

    async def release(self) -> None:
        """Save or end what is parked; the slot may be used on."""
        parked, self._parked = self._parked, None
        if parked is not None:
            await parked.release()

    # --- stopping: SIGTERM lets sessions past DATA finish and ends the others -----------------

    def stop(self) -> None:
        """End the delivery under way unless its content is being sent; then, right after it."""
        self.stopping = True
        if self._scope is not None and not self._committed:
            self._scope.cancel()

    def begin(self, limit: float, *, committed: bool = False) -> trio.CancelScope:
        """The scope of a delivery, which may take `limit` seconds (daemon_timeout).

        `committed`: some of its content is sent already, see commit().
        """
        self._committed = committed
        self._scope = trio.CancelScope(deadline=trio.current_time() + limit)
        if self.stopping and not committed:
            self._scope.cancel()
        return self._scope

    def commit(self) -> None:
        """Content is about to be sent: to be cut off now would put the message in doubt."""
        self._committed = True

    def settle(self) -> None:
        """Every reply was read, or none will be."""
        self._committed = False
        if self.stopping and self._scope is not None:
            self._scope.cancel()
