"""Submissions: which ones are accepted, and how one crosses the submission socket.

On the socket a submission is one frame with an attribute list (the envelope), frames of content,
an empty frame; then the answer comes, one frame with an attribute list. Any number of submissions
may follow each other on one connection. Attribute lists are those of protocol/attributes.py.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from protocol.address import AddressError, check_address
from protocol.attributes import AttributeDecoder, AttributeList, Value, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import NeedData
from protocol.request import NOTHING_KNOWN, ClientFacts, Notify, Recipient, Ret, SendOptions
from worker.queue.records import Submission
from worker.queue.store import SubmissionRefused

T = TypeVar("T")

RECIPIENT_LIMIT: Final = 50_000  # recipients of one submission: as StoreSettings.recipient_limit
# Octets: so many recipients with addresses of 150, or with addresses of 30, ORCPT, NOTIFY and the
# original address.
ENVELOPE_LIMIT: Final = 8 * 1024 * 1024
CONTENT_FRAME: Final = 65_536  # octets of content in one frame, at most
ANSWER_LIMIT: Final = 4096  # octets of an answer
TEXT_LIMIT: Final = 1024  # octets of any text of an envelope but the addresses

_ENCODINGS: Final = ("", "7bit", "8bit")
_CLIENT: Final = ("name", "address", "port", "protocol", "helo", "ident")
_FIXED: Final = [
    *("request", "sender", "envelope_id", "ret", "encoding", "options", "held", "message_id"),
    *(f"client_{fact}" for fact in _CLIENT),
]
_NO_NAMES: Final = frozenset({"", "{", "}"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_BEFORE_RECIPIENT: Final = b"\0recipient\0"
_TEXTS_LIMIT: Final = 2 * (len(_FIXED) + 4 * RECIPIENT_LIMIT + 1)  # a recipient has 4 attributes

# The numbers of an envelope as they are written. Looked up: members of flags are slow to make.
_RETS: Final = {str(int(ret)): ret for ret in Ret}
_OPTIONS: Final = {str(bits): SendOptions(bits) for bits in range(sum(SendOptions) + 1)}
_NOTIFY: Final = {str(bits): Notify(bits) for bits in range(sum(Notify) + 1)}
# NEVER stands alone (RFC 3461 section 4.1), and the requests to workers cannot say anything else.
_NOTIFIABLE: Final = frozenset(
    notify for notify in _NOTIFY.values() if not notify & Notify.NEVER or notify == Notify.NEVER
)
_HELD: Final = {"0": False, "1": True}


class Verdict(Enum):
    """How an answer begins."""

    ACCEPTED = "accepted"  # durable; the text is the queue id
    REFUSED = "refused"  # for good; the text says why
    TEMPORARY = "temporary"  # try again later; the text says why


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one submission."""

    verdict: Verdict
    text: str


def check_submission(submission: Submission, recipient_limit: int) -> None:
    """Raise SubmissionRefused unless this envelope can be queued and delivered as it is.

    At least one and at most `recipient_limit` recipients, all addresses fit for the wire
    (protocol.address.check_address), other texts short, without control characters, NOTIFY as
    RFC 3461 has it.
    """
    count = len(submission.recipients)
    if not count:
        raise SubmissionRefused("no recipient was given")
    if count > recipient_limit:
        raise _too_many(count, recipient_limit)
    try:
        if submission.sender:
            check_address(submission.sender)
        for recipient in submission.recipients:
            check_address(recipient.address)
            _check_text("original recipient", recipient.original)
            _check_text("ORCPT", recipient.orcpt)
            if recipient.notify and recipient.notify not in _NOTIFIABLE:
                raise SubmissionRefused(
                    f"NOTIFY of {recipient.address}: NEVER stands alone, and this is"
                    f" {recipient.notify.name}"
                )
    except AddressError as exc:
        raise SubmissionRefused(str(exc)) from exc
    if submission.encoding not in _ENCODINGS:
        raise SubmissionRefused("the encoding is neither 7bit nor 8bit")
    _check_text("envelope id", submission.envelope_id)
    _check_text("message id", submission.message_id)
    if submission.client is not NOTHING_KNOWN:
        for fact in _CLIENT:
            _check_text(f"client {fact}", getattr(submission.client, fact))


def _too_many(count: int, limit: int) -> SubmissionRefused:
    return SubmissionRefused(f"too many recipients: {count}, and at most {limit} are accepted")


def _check_text(what: str, text: str) -> None:
    if not text:
        return
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_LIMIT:
        raise SubmissionRefused(f"the {what} is longer than {TEXT_LIMIT} octets")
    if _CONTROL.search(text):
        raise SubmissionRefused(f"the {what} contains a control character")


def encode_envelope(submission: Submission) -> bytes:
    """The envelope as an attribute list. Raises SubmissionRefused if some text does not fit one."""
    head: dict[str, str | int] = {
        "request": "probe" if submission.probe else "submit",
        "sender": submission.sender,
        "envelope_id": submission.envelope_id,
        "ret": int(submission.ret),
        "encoding": submission.encoding,
        "options": int(submission.options),
        "held": int(submission.held),
        "message_id": submission.message_id,
    }
    attributes: list[tuple[str, Value | int]] = [*head.items()]
    attributes += [(f"client_{fact}", getattr(submission.client, fact)) for fact in _CLIENT]
    for recipient in submission.recipients:
        attributes.append(("recipient", recipient.address))
        if recipient.original:
            attributes.append(("original", recipient.original))
        if recipient.orcpt:
            attributes.append(("orcpt", recipient.orcpt))
        if recipient.notify:
            attributes.append(("notify", int(recipient.notify)))
    try:
        envelope = encode(attributes)
    except LocalProtocolError as exc:
        raise SubmissionRefused(f"the envelope cannot be submitted: {exc}") from exc
    if len(envelope) > ENVELOPE_LIMIT:
        raise SubmissionRefused("too many recipients, or too long ones, for one submission")
    return envelope


def decode_envelope(data: bytes) -> Submission:
    """The submission again, its addresses unchecked.

    Raises RemoteProtocolError, and SubmissionRefused for more than RECIPIENT_LIMIT recipients.
    """
    # Counted before anything is made of it: that takes twenty times the memory, and seconds.
    # A text that is "recipient" and no name may count, too; nobody has 50,000 recipients and that.
    if (count := data.count(_BEFORE_RECIPIENT)) > RECIPIENT_LIMIT:
        raise _too_many(count, RECIPIENT_LIMIT)
    if data.count(b"\0") > _TEXTS_LIMIT:
        raise RemoteProtocolError("too many attributes")
    # An attribute list without groups: name NUL value NUL ... NUL. Split at once, because one text
    # after the other (protocol.attributes) takes several times as long as all the rest.
    texts = data.decode("utf-8", "surrogateescape").split("\0")
    if len(texts) % 2 or texts[-2:] != ["", ""]:
        raise _spoilt(data)
    names, values = texts[:-2:2], texts[1:-2:2]
    if names[: len(_FIXED)] != _FIXED or not _NO_NAMES.isdisjoint(names):
        raise _spoilt(data)
    request, sender, envelope_id, ret, encoding, options, held, message_id, *facts = values[
        : len(_FIXED)
    ]
    if request not in ("submit", "probe"):
        raise RemoteProtocolError(f"unknown request {request!r:.60}")
    return Submission(
        sender=sender,
        recipients=_recipients(names[len(_FIXED) :], values[len(_FIXED) :]),
        envelope_id=envelope_id,
        ret=_known(_RETS, ret),
        encoding=encoding,
        options=_known(_OPTIONS, options),
        held=_known(_HELD, held),
        probe=request == "probe",
        message_id=message_id,
        client=ClientFacts(**dict(zip(_CLIENT, facts, strict=True)))
        if any(facts)
        else NOTHING_KNOWN,
    )


def encode_answer(answer: Answer) -> bytes:
    """An answer as an attribute list. Its text is cut where a frame would be too long."""
    text = answer.text.replace("\0", " ")[: ANSWER_LIMIT // 8]
    return f"status\0{answer.verdict.value}\0text\0{text}\0\0".encode("utf-8", "surrogateescape")


def decode_answer(data: bytes) -> Answer:
    """The answer again. Raises RemoteProtocolError."""
    match list(_texts(decode_list(data, ANSWER_LIMIT))):
        case [("status", status), ("text", text)]:
            try:
                return Answer(Verdict(status), text)
            except ValueError as exc:
                raise RemoteProtocolError(f"unknown status {status!r:.60}") from exc
    raise RemoteProtocolError("an answer without status and text")


def decode_list(data: bytes, limit: int) -> AttributeList:
    """The one attribute list that `data` is. Raises RemoteProtocolError."""
    decoder = AttributeDecoder(limit)
    decoder.receive_data(data)
    attributes = decoder.next_event()
    if isinstance(attributes, NeedData):
        raise RemoteProtocolError("the attribute list has no end")
    if decoder.unread:
        raise RemoteProtocolError("octets after the attribute list")
    return attributes


def _texts(attributes: AttributeList) -> Iterator[tuple[str, str]]:
    for name, value in attributes:
        if not isinstance(value, str):
            raise RemoteProtocolError("an attribute group where none is expected")
        yield name, value


def _spoilt(data: bytes) -> RemoteProtocolError:
    """What is wrong with an envelope that is not even an attribute list as it should be."""
    texts = _texts(decode_list(data, ENVELOPE_LIMIT))
    for wanted in _FIXED:
        name, _ = next(texts, ("the end", ""))
        if name != wanted:
            return RemoteProtocolError(f"expected the attribute {wanted}, got {name!r:.60}")
    for _ in texts:
        pass
    return RemoteProtocolError("a spoilt attribute list")


def _recipients(names: Sequence[str], values: Sequence[str]) -> tuple[Recipient, ...]:
    if names == ["recipient"]:  # nearly always
        return (Recipient(address=values[0]),)
    recipients: list[Recipient] = []
    address: str | None = None
    facts: dict[str, str] = {}
    for name, value in zip(names, values, strict=True):
        if name == "recipient":
            if address is not None:
                recipients.append(_recipient(address, facts))
            address, facts = value, {}
        elif name in ("original", "orcpt", "notify") and address is not None and name not in facts:
            facts[name] = value
        else:
            raise RemoteProtocolError(f"unexpected attribute {name!r:.60}")
    if address is not None:
        recipients.append(_recipient(address, facts))
    return tuple(recipients)


def _recipient(address: str, facts: Mapping[str, str]) -> Recipient:
    if not facts:
        return Recipient(address=address)
    return Recipient(
        address=address,
        original=facts.get("original", ""),
        orcpt=facts.get("orcpt", ""),
        notify=_known(_NOTIFY, facts.get("notify", "0")),
    )


def _known(numbers: Mapping[str, T], text: str) -> T:
    try:
        return numbers[text]
    except KeyError:
        raise RemoteProtocolError(f"bad number {text!r:.60}") from None
