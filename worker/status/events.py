"""Every event that delivery, queue and network code emits: frozen data, no text for people.

One module (`log.py`) turns them into Postfix's log lines; others count or draw them. Add an event
here before you emit it. Peer text in an event is raw: renderers escape it. Secrets never enter.
"""

from collections.abc import Callable

from protocol.outcome import RecipientOutcome
from protocol.value import value
from worker.tls.policy import TlsFacts


@value()
class Event:
    """Base of all events."""


Emit = Callable[[Event], None]  # must not block and must not raise


# --- the life of a message (queue process) ---------------------------------------------------


@value()
class MessageSubmitted(Event):
    """Durable on disk. Logged as pickup(8) does: `<qid>: uid=N from=<sender>`."""

    queue_id: str
    uid: int  # -1: not known
    sender: str
    message_id: str  # of the header, logged as cleanup(8) does; empty: none


@value()
class MessageActive(Event):
    """`<qid>: from=<sender>, size=N, nrcpt=N (queue active)`, as qmgr(8)."""

    queue_id: str
    sender: str
    size: int
    recipients: int


@value()
class RecipientSettled(Event):
    """One attempt for one recipient is over, and durable: the delivery line."""

    queue_id: str
    protocol: str  # "smtp", "lmtp", or the program that settled it ("error", "discard")
    outcome: RecipientOutcome


@value()
class RecipientProbed(Event):
    """As RecipientSettled, of a probe: `status=deliverable` or `undeliverable`; nothing was sent.

    An outcome that says "sent" means that the address was accepted.
    """

    queue_id: str
    protocol: str
    outcome: RecipientOutcome


@value()
class MessageRemoved(Event):
    """`<qid>: removed`: no recipient is left."""

    queue_id: str


@value()
class MessageExpired(Event):
    """`<qid>: from=<sender>, status=expired, returned to sender`."""

    queue_id: str
    sender: str


@value()
class NoticeQueued(Event):
    """bounce(8): `<qid>: sender non-delivery notification: <notice qid>`; kind is that phrase."""

    queue_id: str
    kind: str  # "sender non-delivery notification", "sender delay notification", ...
    notice_id: str


@value()
class DeliveryInDoubt(Event):
    """Found at start-up: an attempt was under way when the process ended; it may go out twice."""

    queue_id: str
    recipient: str


@value()
class DestinationSuspended(Event):
    """A destination was declared dead after a site failure (failed cohort limit)."""

    transport: str
    nexthop: str
    reason: str
    until: float  # wall-clock seconds


@value()
class ConcurrencyChanged(Event):
    """How feedback has left a destination (destination_concurrency_feedback_debug)."""

    transport: str
    nexthop: str
    throttled: bool  # it was a failure
    limit: int  # 0: none
    window: int  # 0: dead
    success: float
    failure: float
    cohorts: float


# --- one delivery (worker process, `postrio deliver`) ----------------------------------------


@value()
class ConnectFailed(Event):
    """`connect to host[addr]:port: reason`, when there is another endpoint to try."""

    host: str
    address: str
    port: int
    reason: str
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class EndpointFailed(Event):
    """`<qid>: reason`: undecided recipients go on to the next endpoint."""

    queue_id: str
    reason: str
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class SessionOpened(Event):
    """Greeted and introduced; ready for mail."""

    relay: str


@value()
class SessionReused(Event):
    """The session of an earlier request took another one."""

    relay: str
    use: int


@value()
class DialogueShown(Event):
    """`> host[addr]:port: EHLO ...`, `< host[addr]:port: 250 ...` (debug_peer_list). No secrets."""

    relay: str
    mark: str  # ">": we said it, "<": the server did, "=": about what it said
    text: str
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class StartTlsOffered(Event):
    """`Host offered STARTTLS: [host]`, where we do not want it (smtp_tls_note_starttls_offer)."""

    host: str
    protocol: str = "smtp"


@value()
class TlsStep(Event):
    """`SSL_connect:step`: how far a handshake is (smtp_tls_loglevel 2)."""

    step: str
    protocol: str = "smtp"


@value()
class TlsEstablished(Event):
    """`Verified TLS connection established to host[addr]:port: ...` (smtp_tls_loglevel 1)."""

    relay: str
    facts: TlsFacts
    protocol: str = "smtp"


@value()
class TlsNotVerified(Event):
    """`certificate verification failed for host[addr]:port: why` (smtp_tls_loglevel 1)."""

    relay: str
    why: str
    protocol: str = "smtp"


@value()
class TlsHandshakeFailed(Event):
    """`SSL_connect error to host[addr]:port: why`."""

    relay: str
    why: str
    protocol: str = "smtp"


@value()
class EhloKeywordsDiscarded(Event):
    """`discarding EHLO keywords: ...` (smtp_discard_ehlo_keywords without silent-discard)."""

    queue_id: str
    keywords: tuple[str, ...]
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class PassedOn(Event):
    """`<qid>: passing <recipient> to transport=name` (best_mx_transport)."""

    queue_id: str
    recipient: str
    transport: str


@value()
class PixWorkaroundsEnabled(Event):
    """`<qid>: enabling PIX workarounds: ... for host[addr]:port`: the greeting looks masked."""

    queue_id: str
    workarounds: tuple[str, ...]
    relay: str
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class ContentChecked(Event):
    """`<qid>: action: header|body line: text`: a header or body check did that to the line."""

    queue_id: str
    action: str  # "warning", "info", "replace", "prepend", "strip"
    where: str  # "header" or "body"
    line: str  # what was checked; a header has LF between its lines
    text: str  # behind the action in the table; may be empty
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class LinesBroken(Event):
    """`<qid>: breaking line > N bytes ...`, once for each delivery: signatures may be broken."""

    queue_id: str
    limit: int  # octets
    protocol: str = "smtp"  # or "lmtp": the program that says it


@value()
class Warned(Event):
    """A local or remote mistake an operator should see: `warning: [<qid>: ]text`."""

    text: str
    queue_id: str = ""


@value()
class Noted(Event):
    """Information without consequence: start, stop, reload, statistics."""

    text: str
    queue_id: str = ""


@value()
class UnexpectedError(Event):
    """A bug of ours, contained: the work at hand was deferred. `traceback` has many lines."""

    what: str  # what we were doing
    traceback: str
    queue_id: str = ""
