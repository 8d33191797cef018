"""Notices to senders and the postmaster: multipart/report of RFC 3462 with RFC 3464 inside.

compose() is a pure function of what is to be reported. The report has three parts: a text for
people, one block of fields per recipient for programs, and the original message or its header.
For internationalised mail the parts are those of RFC 6533. The original can be anything at all,
so it is never parsed, only cut and cleaned of what must not be on the wire.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import format_datetime
from enum import Enum
from typing import Final

from protocol.address import needs_smtputf8, quote, to_ascii
from protocol.outcome import RecipientOutcome
from protocol.request import Ret, SendOptions
from protocol.xtext import encode_utf8_address
from worker.queue.mime import POLICY, Part, flatten
from worker.queue.notice_text import date, explanation, subject
from worker.queue.records import NoticeDraft, QueuedMessage
from worker.queue.settings import NoticeSettings

_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_FIELD_LIMIT: Final = 800  # octets of one field's text: with its name it fits a line of 998


class NoticeKind(Enum):
    """What a notice is for."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"
    DELAY_CLEARED = "delay cleared"
    PROBE = "probe"
    POSTMASTER_FAILURE = "postmaster failure"
    POSTMASTER_DELAY = "postmaster delay"
    DOUBLE_BOUNCE = "double bounce"

    @property
    def phrase(self) -> str:
        """How the log calls it (NoticeQueued)."""
        return _PHRASES[self]


_PHRASES: Final = {
    NoticeKind.FAILURE: "sender non-delivery notification",
    NoticeKind.DELAY: "sender delay notification",
    NoticeKind.SUCCESS: "sender delivery status notification",
    NoticeKind.DELAY_CLEARED: "sender delivery status notification",
    NoticeKind.PROBE: "sender delivery status notification",
    NoticeKind.POSTMASTER_FAILURE: "postmaster non-delivery notification",
    NoticeKind.POSTMASTER_DELAY: "postmaster delay notification",
    NoticeKind.DOUBLE_BOUNCE: "postmaster non-delivery notification",
}


class ReportAction(Enum):
    """The Action field of RFC 3464 section 2.3.3, and Postfix's words for what a probe finds."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    DELIVERABLE = "deliverable"
    UNDELIVERABLE = "undeliverable"


@dataclass(frozen=True, slots=True)
class Reported:
    """One recipient in a notice."""

    outcome: RecipientOutcome
    action: ReportAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What a notice is about. `head`: the start of the original content, as much as is needed."""

    kind: NoticeKind
    message: QueuedMessage
    reported: Sequence[Reported]  # at least one
    head: bytes
    now: float  # wall-clock seconds
    give_up: float  # when a delayed message will be returned


def wants_original(message: QueuedMessage, kind: NoticeKind, size_limit: int) -> bool:
    """Whether the whole original goes into the notice, not only its header.

    Only failures return the content (RFC 3461 section 4.3), unless the sender asked for headers
    or the message exceeds bounce_size_limit. The postmaster needs no content to see what is wrong.
    """
    return (
        kind in {NoticeKind.FAILURE, NoticeKind.DOUBLE_BOUNCE}
        and message.ret is not Ret.HDRS
        and message.size <= size_limit
    )


def compose(
    occasion: Occasion, sender: str, recipient: str, settings: NoticeSettings
) -> NoticeDraft:
    """The notice, ready to be queued. `sender`: null or the double-bounce address."""
    message = occasion.message
    # Only who asked for SMTPUTF8 can be sure to understand it in the answer (RFC 6533 section 4).
    utf8 = message.options.requires_smtputf8
    parts = [
        _text_part(occasion, settings),
        _status_part(occasion, settings, utf8=utf8),
        _original_part(occasion, settings.size_limit, utf8=utf8),
    ]
    report: Message = Message(policy=POLICY)
    origin = ascii_or_same(settings.origin)
    report["From"] = f'"Mail system of {settings.hostname}" <MAILER-DAEMON@{origin}>'
    _set(report, "To", mailbox(recipient, utf8=utf8))
    report["Subject"] = subject(occasion.kind.value, occasion.reported[0].action.value)
    report["Date"] = format_datetime(date(occasion.now))
    report["Message-ID"] = (
        f"<{occasion.now:.6f}.{message.queue_id}.{occasion.kind.name}@{settings.hostname}>"
    )
    report["Auto-Submitted"] = "auto-replied"
    report["MIME-Version"] = "1.0"
    boundary = _boundary(message.queue_id, occasion.now, parts)
    report["Content-Type"] = (
        f'multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"'
    )
    for part in parts:
        report.attach(part)
    report.preamble = "This is a delivery report in MIME format.\r\n"
    content = flatten(report)
    eight_bit = not content.isascii()
    if eight_bit:
        content = content.replace(
            b"\r\nMIME-Version: 1.0\r\n",
            b"\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n",
            1,
        )
    return NoticeDraft(
        kind=occasion.kind.phrase,
        sender=sender,
        recipient=recipient,
        content=content,
        encoding="8bit" if eight_bit else "7bit",
        options=_options(recipient, utf8=utf8),
    )


def _options(recipient: str, *, utf8: bool) -> SendOptions:
    options = SendOptions.NONE
    if utf8:
        options = SendOptions.SMTPUTF8_REQUESTED | SendOptions.UTF8_HEADER
        if not recipient.isascii():
            options |= SendOptions.UTF8_RECIPIENT
    return options


# --- the parts -----------------------------------------------------------------------------------


def _text_part(occasion: Occasion, settings: NoticeSettings) -> Part:
    text = explanation(
        occasion.kind.value,
        [
            (_printable(quote(item.outcome.recipient.address)), _why(item.outcome))
            for item in occasion.reported
        ],
        hostname=settings.hostname,
        mail_name=settings.mail_name,
        give_up=occasion.give_up,
    )
    part = Part(policy=POLICY)
    part["Content-Description"] = "Explanation"
    charset = "us-ascii" if text.isascii() else "utf-8"
    part["Content-Type"] = f"text/plain; charset={charset}"
    return part.with_body(text.encode("utf-8", "replace"))


def _why(outcome: RecipientOutcome) -> str:
    return _printable(outcome.reason)[:2000]


def _status_part(occasion: Occasion, settings: NoticeSettings, *, utf8: bool) -> Part:
    part = Part(policy=POLICY)
    part["Content-Description"] = "Delivery report"
    subtype = "global-delivery-status" if utf8 else "delivery-status"
    part["Content-Type"] = f"message/{subtype}"
    message = occasion.message
    about = Part(policy=POLICY)
    if message.envelope_id:
        _set(about, "Original-Envelope-Id", _field(message.envelope_id, utf8=utf8))
    about["Reporting-MTA"] = f"dns; {settings.hostname}"
    about["X-Postrio-Queue-ID"] = message.queue_id
    if message.sender:
        _set(about, "X-Postrio-Sender", _typed_address(message.sender, utf8=utf8))
    about["Arrival-Date"] = format_datetime(date(message.arrival))
    blocks = [about, *(_recipient_fields(item, occasion, utf8=utf8) for item in occasion.reported)]
    return part.with_body(b"\r\n".join(flatten(block, body=False) for block in blocks))


def _recipient_fields(item: Reported, occasion: Occasion, *, utf8: bool) -> Part:
    outcome = item.outcome
    recipient = outcome.recipient
    fields = Part(policy=POLICY)
    if recipient.orcpt:
        kind, _, address = recipient.orcpt.partition(";")
        if address.isascii():
            original = f"{kind.strip()}; {address.strip()}"
        else:
            original = _typed_address(address.strip(), utf8=utf8)
        _set(fields, "Original-Recipient", _field(original, utf8=utf8))
    elif recipient.original:
        _set(fields, "Original-Recipient", _typed_address(recipient.original, utf8=utf8))
    _set(fields, "Final-Recipient", _typed_address(recipient.address, utf8=utf8))
    fields["Action"] = item.action.value
    fields["Status"] = outcome.dsn
    if outcome.mta:
        _set(fields, "Remote-MTA", _field(f"dns; {outcome.mta}", utf8=utf8))
    if outcome.reply:
        _set(fields, "Diagnostic-Code", _field(f"smtp; {outcome.reply}", utf8=utf8))
    else:
        _set(fields, "Diagnostic-Code", _field(f"X-Postrio; {outcome.reason}", utf8=utf8))
    if item.action is ReportAction.DELAYED:
        fields["Will-Retry-Until"] = format_datetime(date(occasion.give_up))
    return fields


def _original_part(occasion: Occasion, size_limit: int, *, utf8: bool) -> Part:
    part = Part(policy=POLICY)
    whole = wants_original(occasion.message, occasion.kind, size_limit)
    content = _LINE_END.sub(b"\r\n", occasion.head.replace(b"\0", b""))
    if whole:
        part["Content-Description"] = "Your message"
        part["Content-Type"] = "message/global" if utf8 else "message/rfc822"
    else:
        part["Content-Description"] = "Header of your message"
        part["Content-Type"] = "message/global-headers" if utf8 else "text/rfc822-headers"
        content = _header_of(content, size_limit)
    return part.with_body(content)


def _header_of(content: bytes, size_limit: int) -> bytes:
    """The lines before the first empty one; whole lines only, if they exceed the limit."""
    if content.startswith(b"\r\n"):
        return b""
    end = _HEADER_END.search(content)
    header = content[: end.start() + 2] if end else content
    if len(header) > size_limit:
        header = header[: header.rfind(b"\n", 0, size_limit) + 1]
    return header


def _boundary(queue_id: str, now: float, parts: Sequence[Part]) -> str:
    """A boundary that occurs in no part; the same for the same notice."""
    number = 0
    while True:
        boundary = f"={queue_id}.{int(now)}.{number}="
        if not any(boundary.encode() in part.octets for part in parts):
            return boundary
        number += 1


# --- field texts ----------------------------------------------------------------------------------


def _set(fields: Message, name: str, text: str) -> None:
    """Set a field that may hold UTF-8: as octets, for the library would make encoded words."""
    fields[name] = text.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")


def _printable(text: str) -> str:
    """One line of text; what is no character is a question mark."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _CONTROL.sub(" ", text).replace("�", "?").strip()


def _field(text: str, *, utf8: bool) -> str:
    """Text as a field may hold it: printable, bounded, ASCII unless the report is UTF-8."""
    text = _printable(text)
    if not utf8:
        text = text.encode("ascii", "replace").decode("ascii")
    octets = text.encode("utf-8")
    if len(octets) > _FIELD_LIMIT:
        text = octets[:_FIELD_LIMIT].decode("utf-8", "ignore") + "..."
    return text


def _typed_address(address: str, *, utf8: bool) -> str:
    """An address with its address type (RFC 3464 section 2.1.2, RFC 6533 section 3)."""
    address = _printable(address)
    if address.isascii():
        return f"rfc822; {_field(quote(address), utf8=utf8)}"
    if utf8:
        return f"utf-8; {_field(quote(address), utf8=True)}"
    if not needs_smtputf8(address):
        return f"rfc822; {_field(quote(to_ascii(address)), utf8=False)}"
    return f"utf-8; {_field(encode_utf8_address(quote(address)), utf8=False)}"


def mailbox(address: str, *, utf8: bool) -> str:
    """The address as the To field has it: the envelope is what counts, so "?" is good enough."""
    if not address.isascii() and not utf8 and not needs_smtputf8(address):
        address = to_ascii(address)
    return f"<{_field(quote(address), utf8=utf8)}>"


def ascii_or_same(domain: str) -> str:
    """The domain in A-labels, where it needs them."""
    return domain if domain.isascii() else to_ascii(f"x@{domain}").partition("@")[2]
