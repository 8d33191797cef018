"""Whose envelope may travel with the final dot of the message before it.

Answers for the decision alone; what an envelope is, is in `envelope.py`, what is concluded from the
replies in `transaction.py`.
"""

from protocol.request import DeliveryRequest
from worker.delivery.envelope import Envelope
from worker.delivery.plain_peers import PlainPeers
from worker.delivery.session import Session, SessionKey
from worker.errors import MessageRefused


def next_envelope(
    session: Session,
    key: SessionKey,
    upcoming: DeliveryRequest | None,
    plain: PlainPeers,
    now: float,
) -> Envelope | None:
    """The envelope of the slot's `upcoming` request, if it may follow on `session` at once.

    `key`: of the session. `now`: trio's clock, in seconds. None: it may not, or something must be
    decided first, such as about a recipient who cannot be offered to this server.
    """
    announced, settings = session.capabilities, key.settings
    if (
        upcoming is None
        or not announced.pipelining
        or settings.send_xforward
        or upcoming.probe  # most have no DATA, without which nothing can be proved
        or settings.content.generic is not None  # its lookups may have to wait
        or not key.serves(upcoming)
        or (key.smtputf8 and not announced.smtputf8)
        or 0 < announced.size_limit < upcoming.size
        or not session.wanted_at(now)
        or plain.holds(session.endpoint, now)
    ):
        return None
    try:
        envelope = Envelope(
            upcoming,
            upcoming.each_recipient,
            announced,
            quote=settings.quote_envelope,
            size=0 if settings.content.converts_for(upcoming, announced) else None,
        )
    except MessageRefused:
        return None
    return None if envelope.unsendable else envelope
