"""What became of one recipient. A refused recipient is a result, not an exception."""

from dataclasses import replace
from enum import Enum

from protocol.request import Recipient
from protocol.transcript import Transcript
from protocol.value import value


class Action(Enum):
    """How one attempt ended for one recipient; the values are Postfix's log words."""

    SENT = "sent"
    DEFERRED = "deferred"
    BOUNCED = "bounced"


@value()
class Delays:
    """Seconds before the active set, in it, setting up the connection, transmitting (S152)."""

    before_active: float = 0.0
    active: float = 0.0
    setup: float = 0.0
    transmission: float = 0.0

    @property
    def total(self) -> float:
        """Seconds from arrival to the end of the attempt (`delay=`)."""
        return self.before_active + self.active + self.setup + self.transmission


@value(kw_only=True)
class RecipientOutcome:
    """One recipient's end of one attempt; exactly one per recipient of a request."""

    recipient: Recipient
    action: Action
    dsn: str  # enhanced status code, RFC 3463, e.g. "2.0.0"; its class agrees with `action`
    reason: str  # one line of text, as in the log's parentheses; no control characters
    reply: str = ""  # the server's own words, one line, code first; empty: the reason is ours
    mta: str = ""  # name of the server that said `reply`; empty when it was us
    relay: str = ""  # "host[address]:port"; empty: no session existed ("none" in the log)
    conn_use: int = 1  # which use of its connection this was
    delays: Delays = Delays()
    dsn_announced: bool = False  # the server takes over DSN duties (RFC 3461)
    # The TLS level asked for ("encrypt"), ":none" behind it if it was in the clear all the same;
    # empty: there was no session, or it is not to be logged (smtp_log_tls_feature_status).
    tls: str = ""
    in_doubt: bool = False  # lost after the final dot: it may have been delivered all the same

    def with_delays(self, delays: Delays) -> "RecipientOutcome":
        """The same outcome, with its times."""
        return replace(self, delays=delays)


@value(kw_only=True)
class SiteFailure:
    """The destination as a whole failed: what drives concurrency feedback and back-off."""

    dsn: str
    reason: str


@value(kw_only=True)
class DeliveryResult:
    """Everything one request came to. `outcomes` has one entry per recipient, in their order."""

    outcomes: tuple[RecipientOutcome, ...]
    site_failure: SiteFailure | None = None
    session_kept: bool = False  # the slot still holds a usable session: feed it the next request
    stopped: bool = False  # cut short by our own shutdown: deferrals here count as not tried
    transcripts: tuple[Transcript, ...] = ()  # of sessions that the postmaster is to be told of
