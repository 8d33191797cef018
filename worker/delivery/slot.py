"""What a slot keeps from one request to the next: at most one clean session, and its off switch.

A slot is one concurrent delivery to one destination. Reuse in it costs nothing: no search, no
descriptor passed, and between requests that follow each other at once no probe (a dead session is
noticed before any message was sent).
"""

from dataclasses import dataclass
from typing import Final

import trio

from worker.delivery.session import Session, SessionKey
from worker.delivery.transaction import CleanSession

# A session that was idle for longer (seconds) may hang in silence, because some box between us
# forgot it: RSET goes first then, within its short limit (smtp_rset_timeout, S054). Requests that
# follow each other at once do without.
PROBE_AFTER: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Parked:
    key: SessionKey
    session: Session


class DeliverySlot:
    """Holds a parked session, and can stop the delivery under way before it is committed.

    One delivery at a time. aclose() ends the parked session politely.
    """

    def __init__(self) -> None:
        self._parked: _Parked | None = None
        self._scope: trio.CancelScope | None = None
        self._committed = False  # between the first octet of content and the last reply
        self.stopping = False

    @property
    def holds_session(self) -> bool:
        """A session waits for the next request."""
        return self._parked is not None

    def park(self, key: SessionKey, clean: CleanSession) -> None:
        """Keep a session whose every reply was read; nothing else can be parked, and only one."""
        assert self._parked is None
        clean.session.idle_since = trio.current_time()
        self._parked = _Parked(key, clean.session)

    async def take(self, key: SessionKey) -> Session | None:
        """The parked session if it serves `key` and its peer is silent; the caller owns it.

        An unsuitable one is ended here.
        """
        parked, self._parked = self._parked, None
        if parked is None:
            return None
        session = parked.session
        if parked.key == key and session.reusable and session.is_silent():
            if trio.current_time() - session.idle_since > PROBE_AFTER:
                session.needs_reset = True
            return session
        try:
            await session.quit()
        finally:
            await session.aclose()
        return None

    async def aclose(self) -> None:
        """QUIT what is parked; the slot may be used on."""
        parked, self._parked = self._parked, None
        if parked is not None:
            await parked.session.quit()

    # --- stopping: SIGTERM lets sessions past DATA finish and ends the others -----------------

    def stop(self) -> None:
        """End the delivery under way unless its content is being sent; then, right after it."""
        self.stopping = True
        if self._scope is not None and not self._committed:
            self._scope.cancel()

    def begin(self, limit: float) -> trio.CancelScope:
        """The scope of a new delivery, which may take `limit` seconds (daemon_timeout)."""
        self._committed = False
        self._scope = trio.CancelScope(deadline=trio.current_time() + limit)
        if self.stopping:
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
