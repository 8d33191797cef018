"""Events -> log lines in Postfix's format, and their twin in JSON. No I/O, no clock.

Answers for the text of every line (S151): shapes that pflogsumm and other readers of Postfix logs
know. Start reading at `render`. What a peer said is escaped here and bounded: one event can neither
make a second line nor a long one. Where lines go is in `sinks.py`, when in `writer.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Final, TypeVar

from protocol.address import quote
from protocol.outcome import Action, RecipientOutcome
from protocol.value import value
from worker.status.delays import DEFAULT_RESOLUTION, format_delay
from worker.status.events import (
    ConcurrencyChanged,
    ConnectFailed,
    ContentChecked,
    DeliveryInDoubt,
    DestinationSuspended,
    DialogueShown,
    EhloKeywordsDiscarded,
    EndpointFailed,
    Event,
    LinesBroken,
    MessageActive,
    MessageExpired,
    MessageRemoved,
    MessageSubmitted,
    Noted,
    NoticeQueued,
    PassedOn,
    PixWorkaroundsEnabled,
    RecipientProbed,
    RecipientSettled,
    StartTlsOffered,
    TlsEstablished,
    TlsHandshakeFailed,
    TlsNotVerified,
    TlsStep,
    UnexpectedError,
    Warned,
)

LINE_LIMIT: Final = 2000  # octets of text; syslog daemons cut longer records anyhow
TRACEBACK_LINES: Final = 60  # of an UnexpectedError; the innermost ones are kept
JSON_TEXT_LIMIT: Final = 20_000  # characters of one text value
CHECKED_LIMIT: Final = 60  # characters of a header or line that a check has hit
CUT: Final = "..."

# C0 and C1 controls, DEL, the Unicode line ends and direction marks (they make a terminal or a
# log reader show another line than the one that is there), and surrogates (not encodable).
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PLAIN_ADDRESS: Final = re.compile(r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9.-]+")


class Severity(Enum):
    """How bad. The value is the word that begins the text, as in Postfix; info has none."""

    INFO = ""
    WARNING = "warning"
    ERROR = "error"


@value()
class LogLine:
    """One line without time, host and process: those belong to the sink.

    `program` is the Postfix program that would have said this ("smtp", "qmgr", ...). `text` is at
    most LINE_LIMIT octets of UTF-8, holds no control character, and begins with the severity's
    word if there is one.
    """

    program: str
    severity: Severity
    text: str


JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


def escape(text: str) -> str:
    """The text on one line, safe for a terminal: what could do harm becomes "?"."""
    if text.isprintable() and text.isascii():  # nearly always; ten times as fast
        return text
    return _UNSAFE.sub("?", text)


def render(event: Event, resolution: int = DEFAULT_RESOLUTION) -> list[LogLine]:
    """The log lines of an event, none for events of interest to JSON and metrics alone.

    `resolution` is delay_logging_resolution_limit.
    """
    if type(event) is RecipientSettled:  # the most frequent one
        return [LogLine(event.protocol, Severity.INFO, delivery_text(event, resolution))]
    if isinstance(event, RecipientProbed):
        return [LogLine(event.protocol, Severity.INFO, delivery_text(event, resolution))]
    renderer = _RENDERERS.get(type(event))
    return [] if renderer is None else renderer(event)


def delivery_text(
    event: RecipientSettled | RecipientProbed, resolution: int = DEFAULT_RESOLUTION
) -> str:
    """The text of the delivery line: to=, relay=, delays=, dsn=, status= (reason)."""
    outcome = event.outcome
    recipient = outcome.recipient
    delays = outcome.delays
    original = recipient.original
    if original and original.lower() != recipient.address.lower():
        orig_to = f" orig_to=<{_address(original)}>,"
    else:
        orig_to = ""
    conn_use = f" conn_use={outcome.conn_use}," if outcome.conn_use > 1 else ""
    tls = f" tls={outcome.tls}," if outcome.tls else ""
    head = (
        f"{event.queue_id}: to=<{_address(recipient.address)}>,{orig_to}"
        f" relay={outcome.relay or 'none'},{conn_use}"
        f" delay={format_delay(delays.total, resolution)},"
        f" delays={format_delay(delays.before_active, resolution)}"
        f"/{format_delay(delays.active, resolution)}"
        f"/{format_delay(delays.setup, resolution)}"
        f"/{format_delay(delays.transmission, resolution)},"
        f"{tls} dsn={outcome.dsn}, status={_status(event)} ("
    )
    return bounded(escape(head), escape(outcome.reason), ")")


def _status(event: RecipientSettled | RecipientProbed) -> str:
    outcome = event.outcome
    return outcome.action.value if isinstance(event, RecipientSettled) else probe_status(outcome)


def probe_status(outcome: RecipientOutcome) -> str:
    """What a probe has found out: "deliverable" or "undeliverable"."""
    return "deliverable" if outcome.action is Action.SENT else "undeliverable"


def bounded(head: str, text: str, tail: str = "") -> str:
    """`head + text + tail` in LINE_LIMIT octets; `text` is what gets cut."""
    line = head + text + tail
    if len(line) * 4 <= LINE_LIMIT or len(line.encode("utf-8", "replace")) <= LINE_LIMIT:
        return line
    room = LINE_LIMIT - len((head + CUT + tail).encode("utf-8", "replace"))
    if room < 0:  # a head longer than a line: an address or relay of absurd length
        return (
            line.encode("utf-8", "replace")[: LINE_LIMIT - len(CUT)].decode(errors="ignore") + CUT
        )
    return head + text.encode("utf-8", "replace")[:room].decode(errors="ignore") + CUT + tail


def to_json(event: Event) -> dict[str, JsonValue]:
    """The event as a JSON object; "event" is its name, e.g. "recipient_settled".

    A recipient's outcome is flat and in the words of `postrio deliver --json`. Texts are as they
    were (JSON escapes them), cut at JSON_TEXT_LIMIT characters.
    """
    found: dict[str, JsonValue] = {"event": _event_name(type(event).__name__)}
    for item in fields(event):
        value = getattr(event, item.name)
        if isinstance(value, RecipientOutcome):
            found |= outcome_to_json(value)
        else:
            found[item.name] = _json(value)
    if isinstance(event, RecipientProbed):
        found["status"] = probe_status(event.outcome)
    return found


def outcome_to_json(outcome: RecipientOutcome) -> dict[str, JsonValue]:
    """One recipient's outcome. "relay" and "tls" are null without a session; delays in seconds."""
    delays = outcome.delays
    parts = (delays.before_active, delays.active, delays.setup, delays.transmission)
    return {
        "recipient": _json(outcome.recipient.address),
        "status": outcome.action.value,
        "dsn": outcome.dsn,
        "relay": _json(outcome.relay) if outcome.relay else None,
        "reply": _json(outcome.reply or outcome.reason),
        "reason": _json(outcome.reason),
        "delays": [round(max(part, 0.0), 6) for part in parts],
        "conn_use": outcome.conn_use,
        "tls": _json(outcome.tls) if outcome.tls else None,
        "in_doubt": outcome.in_doubt,
    }


# --- one function for each kind of line --------------------------------------------------------


def _info(program: str, text: str) -> list[LogLine]:
    return [LogLine(program, Severity.INFO, bounded("", text))]


def _warning(program: str, text: str) -> list[LogLine]:
    return [LogLine(program, Severity.WARNING, bounded("warning: ", text))]


def _submitted(event: MessageSubmitted) -> list[LogLine]:
    lines = _info("pickup", f"{event.queue_id}: uid={event.uid} from=<{_address(event.sender)}>")
    message_id = escape(event.message_id) or "<>"
    if not message_id.startswith("<"):
        message_id = f"<{message_id}>"
    return lines + _info("cleanup", f"{event.queue_id}: message-id={message_id}")


def _active(event: MessageActive) -> list[LogLine]:
    return _info(
        "qmgr",
        f"{event.queue_id}: from=<{_address(event.sender)}>, size={event.size}, "
        f"nrcpt={event.recipients} (queue active)",
    )


def _removed(event: MessageRemoved) -> list[LogLine]:
    return _info("qmgr", f"{event.queue_id}: removed")


def _expired(event: MessageExpired) -> list[LogLine]:
    sender = _address(event.sender)
    return _info("qmgr", f"{event.queue_id}: from=<{sender}>, status=expired, returned to sender")


def _notice(event: NoticeQueued) -> list[LogLine]:
    return _info("bounce", f"{event.queue_id}: {escape(event.kind)}: {event.notice_id}")


def _in_doubt(event: DeliveryInDoubt) -> list[LogLine]:
    return _warning(
        "qmgr",
        f"{event.queue_id}: delivery to <{_address(event.recipient)}> was under way when the "
        "queue was closed -- message may be sent more than once",
    )


def _suspended(event: DestinationSuspended) -> list[LogLine]:
    until = datetime.fromtimestamp(event.until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _info(
        "qmgr",
        f"destination {escape(event.transport)}:{escape(event.nexthop)} suspended until {until}: "
        f"{escape(event.reason)}",
    )


def _concurrency(event: ConcurrencyChanged) -> list[LogLine]:
    who = "qmgr_queue_throttle" if event.throttled else "qmgr_queue_unthrottle"
    return _info(
        "qmgr",
        f"{who}: queue {escape(event.nexthop)}: limit {event.limit}"
        f" window {event.window} success {event.success:g} failure {event.failure:g}"
        f" fail_cohorts {event.cohorts:g}",
    )


def _connect_failed(event: ConnectFailed) -> list[LogLine]:
    port = f":{event.port}" if event.port else ""
    where = escape(f"{event.host}[{event.address}]{port}")
    return _info(event.protocol, f"connect to {where}: {escape(event.reason)}")


def _endpoint_failed(event: EndpointFailed) -> list[LogLine]:
    return _info(event.protocol, f"{event.queue_id}: {escape(event.reason)}")


def _keywords(event: EhloKeywordsDiscarded) -> list[LogLine]:
    words = escape(" ".join(event.keywords))
    return _info(event.protocol, f"{event.queue_id}: discarding EHLO keywords: {words}")


def _passed_on(event: PassedOn) -> list[LogLine]:
    where = f"<{_address(event.recipient)}> to transport={escape(event.transport)}"
    return _info("smtp", f"{event.queue_id}: passing {where}")


def _workarounds(event: PixWorkaroundsEnabled) -> list[LogLine]:
    words, where = " ".join(event.workarounds), escape(event.relay)
    text = f"{event.queue_id}: enabling PIX workarounds: {words} for {where}"
    return _info(event.protocol, text)


def _shown(event: DialogueShown) -> list[LogLine]:
    return _info(event.protocol, f"{event.mark} {escape(event.relay)}: {escape(event.text)}")


def _offered(event: StartTlsOffered) -> list[LogLine]:
    return _info(event.protocol, f"Host offered STARTTLS: [{escape(event.host)}]")


def _established(event: TlsEstablished) -> list[LogLine]:
    facts = event.facts
    return _info(
        event.protocol,
        f"{facts.trust.value} TLS connection established to {escape(event.relay)}: "
        f"{escape(facts.protocol)} with cipher {escape(facts.cipher)} "
        f"({facts.bits}/{facts.bits} bits){escape(facts.details)}",
    )


def _step(event: TlsStep) -> list[LogLine]:
    return _info(event.protocol, f"SSL_connect:{escape(event.step)}")


def _not_verified(event: TlsNotVerified) -> list[LogLine]:
    where = escape(event.relay)
    return _info(
        event.protocol, f"certificate verification failed for {where}: {escape(event.why)}"
    )


def _handshake_failed(event: TlsHandshakeFailed) -> list[LogLine]:
    return _info(event.protocol, f"SSL_connect error to {escape(event.relay)}: {escape(event.why)}")


def _checked(event: ContentChecked) -> list[LogLine]:
    line = escape(event.line[:CHECKED_LIMIT])
    text = f": {escape(event.text)}" if event.text else ""
    return _info(event.protocol, f"{event.queue_id}: {event.action}: {event.where} {line}{text}")


def _broken(event: LinesBroken) -> list[LogLine]:
    return _warning(
        event.protocol,
        f"{event.queue_id}: breaking line > {event.limit} bytes with <CR><LF>SPACE",
    )


def _about(queue_id: str) -> str:
    return f"{queue_id}: " if queue_id else ""


def _warned(event: Warned) -> list[LogLine]:
    return _warning("postrio", _about(event.queue_id) + escape(event.text))


def _noted(event: Noted) -> list[LogLine]:
    return _info("postrio", _about(event.queue_id) + escape(event.text))


def _unexpected(event: UnexpectedError) -> list[LogLine]:
    trace = [line for line in event.traceback.splitlines() if line.strip()]
    cause = f": {escape(trace[-1].strip())}" if trace else ""
    about = _about(event.queue_id)
    texts = [f"{about}unexpected error while {escape(event.what)}{cause}"]
    texts += (f"{about}  {escape(line)}" for line in trace[-TRACEBACK_LINES:])
    return [LogLine("postrio", Severity.ERROR, bounded("error: ", text)) for text in texts]


_SomeEvent = TypeVar("_SomeEvent", bound=Event)
_Renderer = Callable[[Event], list[LogLine]]


def _for(kind: type[_SomeEvent], renderer: Callable[[_SomeEvent], list[LogLine]]) -> _Renderer:
    """The renderer of one kind as a renderer of events: the table below calls it for that kind."""

    def checked(event: Event) -> list[LogLine]:
        assert isinstance(event, kind)
        return renderer(event)

    return checked


_RENDERERS: Final[Mapping[type[Event], _Renderer]] = {
    MessageSubmitted: _for(MessageSubmitted, _submitted),
    MessageActive: _for(MessageActive, _active),
    MessageRemoved: _for(MessageRemoved, _removed),
    MessageExpired: _for(MessageExpired, _expired),
    NoticeQueued: _for(NoticeQueued, _notice),
    DeliveryInDoubt: _for(DeliveryInDoubt, _in_doubt),
    DestinationSuspended: _for(DestinationSuspended, _suspended),
    ConcurrencyChanged: _for(ConcurrencyChanged, _concurrency),
    ConnectFailed: _for(ConnectFailed, _connect_failed),
    EndpointFailed: _for(EndpointFailed, _endpoint_failed),
    EhloKeywordsDiscarded: _for(EhloKeywordsDiscarded, _keywords),
    DialogueShown: _for(DialogueShown, _shown),
    PassedOn: _for(PassedOn, _passed_on),
    PixWorkaroundsEnabled: _for(PixWorkaroundsEnabled, _workarounds),
    ContentChecked: _for(ContentChecked, _checked),
    LinesBroken: _for(LinesBroken, _broken),
    Warned: _for(Warned, _warned),
    Noted: _for(Noted, _noted),
    StartTlsOffered: _for(StartTlsOffered, _offered),
    TlsEstablished: _for(TlsEstablished, _established),
    TlsStep: _for(TlsStep, _step),
    TlsNotVerified: _for(TlsNotVerified, _not_verified),
    TlsHandshakeFailed: _for(TlsHandshakeFailed, _handshake_failed),
    UnexpectedError: _for(UnexpectedError, _unexpected),
}


def _address(address: str) -> str:
    """External form (info_log_address_format = external), escaped. The null address is empty."""
    if _PLAIN_ADDRESS.fullmatch(address) or not address:
        return address
    return escape(quote(address))


@cache
def _event_name(class_name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_name).lower()


def _json(value: object) -> JsonValue:
    match value:
        case str():
            cut = value if len(value) <= JSON_TEXT_LIMIT else value[:JSON_TEXT_LIMIT] + CUT
            return cut.encode("utf-8", "replace").decode()  # a lone surrogate is no JSON text
        case Enum():
            return _json(value.value)
        case bool() | int() | float() | None:
            return value
        case tuple() | list():
            return [_json(item) for item in value]
    if is_dataclass(value):
        return {item.name: _json(getattr(value, item.name)) for item in fields(value)}
    raise TypeError(f"an event holds a {type(value).__name__}, which has no JSON form")
