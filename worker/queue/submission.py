"""Submissions: which ones are accepted, and how one crosses the submission socket.

On the socket a submission is one frame with an attribute list (the envelope), frames of content,
an empty frame; then the answer comes, one frame with an attribute list. Any number of submissions
may follow each other on one connection. Attribute lists are those of protocol/attributes.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol.address import AddressError, check_address
from protocol.attributes import AttributeDecoder, AttributeList, Value, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import NeedData
from protocol.request import ClientFacts, Notify, Recipient, Ret, SendOptions
from worker.queue.records import Submission
from worker.queue.store import SubmissionRefused

ENVELOPE_LIMIT: Final = 8 * 1024 * 1024  # octets: 50,000 recipients with addresses of 100
CONTENT_FRAME: Final = 65_536  # octets of content in one frame, at most
ANSWER_LIMIT: Final = 4096  # octets of an answer
TEXT_LIMIT: Final = 1024  # octets of any text of an envelope but the addresses

_ENCODINGS: Final = ("", "7bit", "8bit")
_CLIENT: Final = ("name", "address", "port", "protocol", "helo", "ident")
_HEAD: Final = ("request", "sender", "envelope_id", "ret", "encoding", "options", "held")
_TAIL: Final = ("message_id", *(f"client_{fact}" for fact in _CLIENT))


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
    (protocol.address.check_address), other texts short, without control characters.
    """
    count = len(submission.recipients)
    if not count:
        raise SubmissionRefused("no recipient was given")
    if count > recipient_limit:
        raise SubmissionRefused(
            f"too many recipients: {count}, and at most {recipient_limit} are accepted"
        )
    try:
        if submission.sender:
            check_address(submission.sender)
        for recipient in submission.recipients:
            check_address(recipient.address)
            _check_text("original recipient", recipient.original)
            _check_text("ORCPT", recipient.orcpt)
    except AddressError as exc:
        raise SubmissionRefused(str(exc)) from exc
    if submission.encoding not in _ENCODINGS:
        raise SubmissionRefused("the encoding is neither 7bit nor 8bit")
    _check_text("envelope id", submission.envelope_id)
    _check_text("message id", submission.message_id)
    for fact in _CLIENT:
        _check_text(f"client {fact}", getattr(submission.client, fact))


def _check_text(what: str, text: str) -> None:
    if not text:
        return
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_LIMIT:
        raise SubmissionRefused(f"the {what} is longer than {TEXT_LIMIT} octets")
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in text):
        raise SubmissionRefused(f"the {what} contains a control character")


def encode_envelope(submission: Submission) -> bytes:
    """The envelope as an attribute list. Raises SubmissionRefused if some text does not fit one."""
    head: dict[str, str | int] = {
        "request": "submit",
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
    """The submission again, its addresses unchecked. Raises RemoteProtocolError."""
    texts = _texts(decode_list(data, ENVELOPE_LIMIT))
    fixed = dict[str, str]()
    for wanted in (*_HEAD, *_TAIL):
        name, value = next(texts, ("the end", ""))
        if name != wanted:
            raise RemoteProtocolError(f"expected the attribute {wanted}, got {name!r:.60}")
        fixed[wanted] = value
    if fixed["request"] != "submit":
        raise RemoteProtocolError(f"unknown request {fixed['request']!r:.60}")
    return Submission(
        sender=fixed["sender"],
        recipients=tuple(_recipients(texts)),
        envelope_id=fixed["envelope_id"],
        ret=Ret(_number(fixed["ret"], max(Ret))),
        encoding=fixed["encoding"],
        options=SendOptions(_number(fixed["options"], sum(SendOptions))),
        held=bool(_number(fixed["held"], 1)),
        message_id=fixed["message_id"],
        client=ClientFacts(**{fact: fixed[f"client_{fact}"] for fact in _CLIENT}),
    )


def encode_answer(answer: Answer) -> bytes:
    """An answer as an attribute list. Its text is cut where a frame would be too long."""
    text = answer.text.replace("\0", " ")[: ANSWER_LIMIT // 8]
    return encode([("status", answer.verdict.value), ("text", text)])


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


def _recipients(texts: Iterator[tuple[str, str]]) -> Iterator[Recipient]:
    address: str | None = None
    facts: dict[str, str] = {}
    for name, value in texts:
        if name == "recipient":
            if address is not None:
                yield _recipient(address, facts)
            address, facts = value, {}
        elif name in ("original", "orcpt", "notify") and address is not None and name not in facts:
            facts[name] = value
        else:
            raise RemoteProtocolError(f"unexpected attribute {name!r:.60}")
    if address is not None:
        yield _recipient(address, facts)


def _recipient(address: str, facts: dict[str, str]) -> Recipient:
    return Recipient(
        address=address,
        original=facts.get("original", ""),
        orcpt=facts.get("orcpt", ""),
        notify=Notify(_number(facts.get("notify", "0"), sum(Notify))),
    )


def _number(text: str, largest: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= largest:
        return int(text)
    raise RemoteProtocolError(f"bad number {text!r:.60}")
