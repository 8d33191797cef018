"""What the store keeps, what the scheduler gets from it and gives back. Plain data.

Times are wall-clock seconds since the epoch (they must survive a restart). Row ids are positive
integers, never reused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from protocol.outcome import RecipientOutcome
from protocol.request import NOTHING_KNOWN, ClientFacts, Recipient, Ret, SendOptions
from protocol.value import value


class MessageState(Enum):
    """Postfix's queue names, as `postrio queue list` shows them."""

    INCOMING = "incoming"  # never tried yet
    ACTIVE = "active"  # claimed by the scheduler
    DEFERRED = "deferred"  # waiting for its next attempt
    HOLD = "hold"  # waits for an operator


@value(kw_only=True)
class Submission:
    """The envelope of a new message. At least one recipient. `Recipient.key` is ignored."""

    sender: str
    recipients: tuple[Recipient, ...]
    envelope_id: str = ""
    ret: Ret = Ret.UNSPECIFIED
    encoding: str = ""  # "7bit", "8bit"
    options: SendOptions = SendOptions.NONE
    client: ClientFacts = NOTHING_KNOWN
    held: bool = False
    probe: bool = False  # the addresses are tried, nothing is sent, the sender gets a report
    message_id: str = ""  # of the header, for the log


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecipient:
    """A recipient whose failure (or success, if asked for) is durable but not yet reported."""

    outcome: RecipientOutcome


@value(kw_only=True)
class QueuedMessage:
    """A message as claimed for delivery: everything but its content."""

    id: int
    queue_id: str
    sender: str
    arrival: float
    size: int  # octets as sent, CRLF line ends, before dot-stuffing
    encoding: str
    options: SendOptions
    envelope_id: str
    ret: Ret
    client: ClientFacts
    attempts: int  # finished attempts so far
    warned: bool  # the delay notice was sent
    notice: bool  # it is a notice of ours: a failure of it goes to the postmaster, or nowhere
    recipients: tuple[Recipient, ...]  # still to be tried; key: row id
    due: float = 0.0  # it was claimed because of that time
    hops: int = 0  # Received fields of its header
    probe: bool = False  # see Submission
    settled: tuple[RecipientOutcome, ...] = ()  # failed or to be confirmed, not yet reported


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeDraft:
    """A notice to be queued in the same commit that settles what it reports."""

    kind: str  # the phrase of the log line, see events.NoticeQueued
    sender: str  # always "" or the double-bounce address
    recipient: str
    content: bytes  # canonical: CRLF line ends
    encoding: str = "7bit"
    options: SendOptions = SendOptions.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of one run over one message, committed as a whole.

    Recipients in `deferred` stay with their last reason; every other recipient row of the message
    in `settled` goes. Without any row left the message and its content go too.
    """

    message_id: int
    reported: bool = False  # all settled-but-unreported rows go (their notice is in `notices`)
    notices: Sequence[NoticeDraft] = ()
    next_attempt: float | None = None  # None only if no recipient is left
    warned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientSummary:
    """One recipient as the queue commands show it."""

    address: str
    reason: str  # why it is still here; empty: not tried yet
    in_doubt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSummary:
    """One message as the queue commands show it (mailq)."""

    queue_id: str
    state: MessageState
    sender: str
    arrival: float
    size: int
    next_attempt: float | None
    recipients: tuple[RecipientSummary, ...]
    recipient_count: int = 0  # all that are left; `recipients` may be only the first of them
