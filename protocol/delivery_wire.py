"""Delivery requests and results as octets, between our queue process and our workers.

Payloads only: whoever moves them adds lengths. A payload is its numbers, packed (`struct`), and
then its texts, a NUL behind each: first those of the request or result, then those of each
recipient. Nothing that comes in is trusted: every field has its bounds and its form, and anything
odd is a RemoteProtocolError. What the other side would refuse is refused before it is sent
(LocalProtocolError), so that a bad message shows where it is.

This is on the path of every message, four times. Attribute lists as in Postfix's own protocol were
turned down: names and numbers as text take more than twice as long to write and to read, and no
Postfix process ever reads these.
"""

import re
import struct
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.outcome import Action, Delays, DeliveryResult, RecipientOutcome, SiteFailure
from protocol.request import (
    ClientFacts,
    DeliveryRequest,
    Notify,
    Protocol,
    Recipient,
    RequestFlags,
    Ret,
    SendOptions,
)
from protocol.transcript import MAX_LINE, MAX_LINES, MAX_TRANSCRIPTS, Transcript, Trouble

MAX_RECIPIENTS: Final = 1000  # of one request; default_destination_recipient_limit is 50
MAX_FIELD: Final = 4096  # characters of one text
TEXT_LIMIT: Final = 1024  # characters of a text in a result; longer ones are cut when sent
MAX_REQUEST_SIZE: Final = 4_194_304  # octets
MAX_RESULT_SIZE: Final = 16_777_216  # octets: MAX_RECIPIENTS, each with four full texts

# flags, size, options, ret, place in _PROTOCOLS, place in _ENCODINGS, arrival, active, recipients
_REQUEST: Final = struct.Struct("!IqBBBBddH")
_REQUEST_TEXTS: Final = 11  # queue id to the client's ident, see encode_request()
_RECIPIENT: Final = struct.Struct("!qB")  # key, notify
_RECIPIENT_TEXTS: Final = 3  # address, original, orcpt
_RESULT: Final = struct.Struct("!BHB")  # _KEPT | _STOPPED, outcomes, transcripts
_RESULT_TEXTS: Final = 2  # status and reason of a site failure, both empty if there is none
# key, place in _ACTIONS, _ANNOUNCED | _DOUBT, use of the connection, four delays
_OUTCOME: Final = struct.Struct("!qBBIdddd")
_OUTCOME_TEXTS: Final = 6  # status, reason, reply, mta, relay, TLS
# bits of _TROUBLES and _LMTP, lines; its texts: peer, lines
_TRANSCRIPT: Final = struct.Struct("!BH")

_PROTOCOLS: Final = (Protocol.SMTP, Protocol.LMTP)
_ENCODINGS: Final = ("", "7bit", "8bit")
_ACTIONS: Final = (Action.SENT, Action.DEFERRED, Action.BOUNCED)
_CLASSES: Final = ("2", "4", "5")  # of the status that goes with it
_TROUBLES: Final = tuple(Trouble)
_LMTP: Final = 0x80
_OPTIONS: Final = tuple(SendOptions(bits) for bits in range(16))
_RETS: Final = (Ret.UNSPECIFIED, Ret.FULL, Ret.HDRS)
# NEVER goes with nothing else (RFC 3461 section 4.1).
_NOTIFIES: Final = {
    bits: Notify(bits) for bits in range(16) if bits == 1 or not bits & Notify.NEVER
}
_ALL_FLAGS: Final = sum(RequestFlags)
_KEPT, _STOPPED = 1, 2
_ANNOUNCED, _DOUBT = 1, 2

_MAX_KEY: Final = (1 << 63) - 1
_MAX_USE: Final = (1 << 32) - 1
_MAX_TIME: Final = 1e12  # seconds

_NOTHING_KNOWN: Final = ClientFacts()
_CONTROLS: Final = bytes((*range(1, 32), 127))  # NUL separates; the rest has no business here
_WORD = re.compile(r"[!-~]{1,128}")  # queue id, transport
_DSN = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_SAME_KEYS: Final = "recipients of the request cannot be told apart by key"
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # for texts of results


# --- requests ----------------------------------------------------------------------------------


def encode_request(request: DeliveryRequest) -> bytes:
    """Return the payload for `request`.

    Raises LocalProtocolError if decode_request() would refuse it: a control character anywhere,
    a value out of bounds, no recipient or more than MAX_RECIPIENTS, two with the same key.
    """
    _check_request(request)
    client = request.client
    texts = [
        *(request.queue_id, request.transport, request.nexthop),
        *(request.sender, request.envelope_id),
        *(client.name, client.address, client.port, client.protocol, client.helo, client.ident),
    ]
    parts = [
        _REQUEST.pack(
            request.flags,
            request.size,
            request.options,
            request.ret,
            _PROTOCOLS.index(request.protocol),
            _ENCODINGS.index(request.encoding),
            request.arrival,
            request.active,
            len(request.recipients),
        )
    ]
    for recipient in request.recipients:
        key, notify = recipient.key, recipient.notify
        if not recipient.address or not -1 <= key <= _MAX_KEY:
            raise LocalProtocolError(f"recipient {recipient.address[:100]!r}, key {key}")
        if notify not in _NOTIFIES:
            raise LocalProtocolError(f"NOTIFY flags {notify:d} of {recipient.address[:100]!r}")
        parts.append(_RECIPIENT.pack(key, notify))
        texts += (recipient.address, recipient.original, recipient.orcpt)
    parts.append(_encoded(texts))
    return _bounded(b"".join(parts), MAX_REQUEST_SIZE)


def _check_request(request: DeliveryRequest) -> None:
    """What encode_request() refuses of the request itself."""
    if not (_WORD.fullmatch(request.queue_id) and _WORD.fullmatch(request.transport)):
        raise LocalProtocolError(
            f"bad queue id {request.queue_id[:100]!r} or transport {request.transport[:100]!r}"
        )
    if not request.nexthop or request.encoding not in _ENCODINGS:
        raise LocalProtocolError(
            f"bad nexthop {request.nexthop[:100]!r} or encoding {request.encoding[:100]!r}"
        )
    if not (0 <= request.arrival < _MAX_TIME and 0 <= request.active < _MAX_TIME):
        raise LocalProtocolError(f"bad times {request.arrival} and {request.active}")
    if not 0 <= request.size <= _MAX_KEY:
        raise LocalProtocolError(f"bad size {request.size}")
    # As numbers: operators of flags are slow.
    flags, options, ret = int(request.flags), int(request.options), int(request.ret)
    if flags & ~_ALL_FLAGS or not (0 <= options < len(_OPTIONS) and 0 <= ret < len(_RETS)):
        raise LocalProtocolError(f"bad flags {flags:#x}, options {options} or RET {ret}")
    if not 1 <= len(request.recipients) <= MAX_RECIPIENTS:
        raise LocalProtocolError(f"{len(request.recipients)} recipients in one request")
    if not _told_apart(request.recipients):
        raise LocalProtocolError(_SAME_KEYS)


def decode_request(data: bytes) -> DeliveryRequest:
    """Return the request of a payload. Raises RemoteProtocolError, and nothing else."""
    flags, size, options, ret, protocol, encoding, arrival, active, count = _unpacked(
        _REQUEST, data, MAX_REQUEST_SIZE
    )
    end = _REQUEST.size + _check_count(count) * _RECIPIENT.size
    # An address may be any octets: those that are no UTF-8 come as surrogates, and leave as octets.
    texts = _decoded(data, end, _REQUEST_TEXTS + count * _RECIPIENT_TEXTS, "surrogateescape")
    queue_id, transport, nexthop, sender, envelope_id, *client = texts[:_REQUEST_TEXTS]
    if not (_WORD.fullmatch(queue_id) and _WORD.fullmatch(transport) and nexthop):
        raise _bad("queue id, transport or nexthop", f"{queue_id} {transport} {nexthop}")
    if size < 0 or not (0 <= arrival < _MAX_TIME and 0 <= active < _MAX_TIME):
        raise _bad("size or times", f"{size} {arrival} {active}")
    try:
        request = DeliveryRequest(
            queue_id=queue_id,
            transport=transport,
            protocol=_PROTOCOLS[protocol],
            nexthop=nexthop,
            sender=sender,
            recipients=tuple(
                [
                    _recipient(key, notify, texts, place)
                    for (key, notify), place in zip(
                        _RECIPIENT.iter_unpack(data[_REQUEST.size : end]),
                        range(_REQUEST_TEXTS, len(texts), _RECIPIENT_TEXTS),
                        strict=True,
                    )
                ]
            ),
            size=size,
            encoding=_ENCODINGS[encoding],
            options=_OPTIONS[options],
            envelope_id=envelope_id,
            ret=_RETS[ret],
            flags=_flags(flags),
            arrival=arrival,
            active=active,
            client=_client(client),
        )
    except LookupError as exc:
        raise _bad("number", f"{protocol} {encoding} {options} {ret}, or a NOTIFY") from exc
    if not _told_apart(request.recipients):
        raise RemoteProtocolError(_SAME_KEYS)
    return request


def _recipient(key: int, notify: int, texts: list[str], place: int) -> Recipient:
    """The recipient whose texts begin at `place`. LookupError for an unknown NOTIFY."""
    address = texts[place]
    if not address or key < -1:
        raise _bad("recipient", f"{address}, key {key}")
    return Recipient(
        address=address,
        original=texts[place + 1],
        orcpt=texts[place + 2],
        notify=_NOTIFIES[notify],
        key=key,
    )


def _client(texts: list[str]) -> ClientFacts:
    if not any(texts):
        return _NOTHING_KNOWN
    name, address, port, protocol, helo, ident = texts
    return ClientFacts(
        name=name, address=address, port=port, protocol=protocol, helo=helo, ident=ident
    )


@lru_cache(maxsize=256)  # of 128 valid ones; an IntFlag takes longer to make than to look up
def _flags(bits: int) -> RequestFlags:
    if bits & ~_ALL_FLAGS:
        raise _bad("flags", f"{bits:x}")
    return RequestFlags(bits)


# --- results -----------------------------------------------------------------------------------


def encode_result(result: DeliveryResult) -> bytes:
    """Return the payload for `result`.

    Reasons and replies are cut to TEXT_LIMIT characters and control characters in any text become
    `?`: an outcome must not be lost for its wording. Raises LocalProtocolError for what only a bug
    can make: a status that disagrees with the action, numbers out of bounds.
    """
    site, outcomes = result.site_failure, result.outcomes
    if site and not _DSN.fullmatch(site.dsn):
        raise LocalProtocolError(f"bad status {site.dsn[:100]!r} of a site failure")
    if not 1 <= len(outcomes) <= MAX_RECIPIENTS:
        raise LocalProtocolError(f"{len(outcomes)} outcomes in one result")
    transcripts = result.transcripts[:MAX_TRANSCRIPTS]
    bits = _KEPT * result.session_kept | _STOPPED * result.stopped
    parts = [_RESULT.pack(bits, len(outcomes), len(transcripts))]
    texts = [site.dsn, *_fit(site.reason)] if site else ["", ""]
    for outcome in outcomes:
        place = _check_outcome(outcome)
        delays = outcome.delays
        parts.append(
            _OUTCOME.pack(
                outcome.recipient.key,
                place,
                _ANNOUNCED * outcome.dsn_announced | _DOUBT * outcome.in_doubt,
                outcome.conn_use,
                delays.before_active,
                delays.active,
                delays.setup,
                delays.transmission,
            )
        )
        texts.append(outcome.dsn)
        texts += _fit(outcome.reason, outcome.reply, outcome.mta, outcome.relay, outcome.tls)
    for transcript in transcripts:
        lines = transcript.lines[:MAX_LINES]
        troubles = sum(1 << _TROUBLES.index(trouble) for trouble in transcript.troubles)
        parts.append(_TRANSCRIPT.pack(troubles | _LMTP * transcript.lmtp, len(lines)))
        texts += (text[:MAX_LINE] for text in _fit(transcript.peer, *lines))
    parts.append(_encoded(texts))
    data = b"".join(parts)
    if transcripts and len(data) > MAX_RESULT_SIZE:  # outcomes count, notices about them do not
        return encode_result(replace(result, transcripts=()))
    return _bounded(data, MAX_RESULT_SIZE)


def _check_outcome(outcome: RecipientOutcome) -> int:
    """What encode_result() refuses of one outcome; else its action's place."""
    delays = outcome.delays
    place = _ACTIONS.index(outcome.action)
    if _class_of(outcome.dsn) != _CLASSES[place]:
        raise _unfit(outcome, f"{outcome.action.value} with {outcome.dsn[:100]!r}")
    if not (-1 <= outcome.recipient.key <= _MAX_KEY and 0 <= outcome.conn_use <= _MAX_USE):
        raise _unfit(outcome, "bad key or use")
    if not (
        0 <= delays.before_active < _MAX_TIME
        and 0 <= delays.active < _MAX_TIME
        and 0 <= delays.setup < _MAX_TIME
        and 0 <= delays.transmission < _MAX_TIME
    ):
        raise _unfit(outcome, f"bad {delays}")
    return place


def decode_result(data: bytes, request: DeliveryRequest) -> DeliveryResult:
    """Return the result of a payload, its outcomes in the order of the request's recipients.

    Recipients are matched by key. Raises RemoteProtocolError, and nothing else: also if a key is
    unknown, twice there or missing.
    """
    bits, count, sessions = _unpacked(_RESULT, data, MAX_RESULT_SIZE)
    end = _RESULT.size + _check_count(count) * _OUTCOME.size
    heads = _transcript_heads(data, end, sessions) if sessions else []
    # Strictly: encode_result() sends nothing but UTF-8, and these texts go into logs and notices.
    texts = _decoded(
        data,
        end + sessions * _TRANSCRIPT.size,
        _RESULT_TEXTS + count * _OUTCOME_TEXTS + sum([1 + lines for _, lines in heads]),
        "strict",
    )
    dsn, reason = texts[:_RESULT_TEXTS]
    if (dsn and not _DSN.fullmatch(dsn)) or bits & ~(_KEPT | _STOPPED):
        raise _bad("status or flags", f"{dsn} {bits:x}")
    waiting = {recipient.key: recipient for recipient in request.recipients}
    if len(waiting) != len(request.recipients):
        raise RemoteProtocolError(_SAME_KEYS)
    outcomes: dict[int, RecipientOutcome] = {}
    place = _RESULT_TEXTS
    for numbers in _OUTCOME.iter_unpack(data[_RESULT.size : end]):
        recipient = waiting.pop(numbers[0], None)
        if recipient is None:
            raise _bad("recipient", str(numbers[0]))
        outcomes[recipient.key] = _outcome(
            recipient, numbers, texts[place : place + _OUTCOME_TEXTS]
        )
        place += _OUTCOME_TEXTS
    if waiting:
        raise RemoteProtocolError(f"no outcome for {len(waiting)} recipients")
    return DeliveryResult(
        outcomes=tuple([outcomes[recipient.key] for recipient in request.recipients]),
        site_failure=SiteFailure(dsn=dsn, reason=reason) if dsn else None,
        session_kept=bits & _KEPT != 0,
        stopped=bits & _STOPPED != 0,
        transcripts=_transcripts(heads, texts[place:]) if heads else (),
    )


def _transcript_heads(data: bytes, start: int, count: int) -> list[tuple[int, int]]:
    """Troubles and number of lines of each transcript."""
    end = start + count * _TRANSCRIPT.size
    if count > MAX_TRANSCRIPTS or end > len(data):
        raise _bad("number of transcripts", str(count))
    heads = list(_TRANSCRIPT.iter_unpack(data[start:end]))
    for troubles, lines in heads:
        if not 0 < troubles & ~_LMTP < 1 << len(_TROUBLES) or lines > MAX_LINES:
            raise _bad("transcript", f"{troubles:x} {lines}")
    return heads


def _transcripts(heads: list[tuple[int, int]], texts: list[str]) -> tuple[Transcript, ...]:
    transcripts, place = [], 0
    for troubles, lines in heads:
        place, start = place + 1 + lines, place
        peer, *said = texts[start:place]
        transcripts.append(
            Transcript(
                peer=peer,
                troubles=frozenset(
                    trouble for bit, trouble in enumerate(_TROUBLES) if troubles >> bit & 1
                ),
                lmtp=troubles & _LMTP != 0,
                lines=tuple(said),
            )
        )
    return tuple(transcripts)


def _outcome(
    recipient: Recipient,
    numbers: tuple[int, int, int, int, float, float, float, float],
    texts: list[str],
) -> RecipientOutcome:
    _, place, bits, use, before_active, active, setup, transmission = numbers
    dsn, reason, reply, mta, relay, tls = texts
    if place >= len(_ACTIONS) or _class_of(dsn) != _CLASSES[place]:
        raise _bad("action and status", f"{place} {dsn}")
    if bits & ~(_ANNOUNCED | _DOUBT):
        raise _bad("flags", f"{bits:x}")
    if not (
        0 <= before_active < _MAX_TIME
        and 0 <= active < _MAX_TIME
        and 0 <= setup < _MAX_TIME
        and 0 <= transmission < _MAX_TIME
    ):
        raise _bad("delays", f"{before_active}/{active}/{setup}/{transmission}")
    return RecipientOutcome(
        recipient=recipient,
        action=_ACTIONS[place],
        dsn=dsn,
        reason=reason,
        reply=reply,
        mta=mta,
        relay=relay,
        conn_use=use,
        delays=Delays(before_active, active, setup, transmission),
        dsn_announced=bits & _ANNOUNCED != 0,
        tls=tls,
        in_doubt=bits & _DOUBT != 0,
    )


@lru_cache(maxsize=1024)  # few are used, and again and again
def _class_of(dsn: str) -> str:
    """The class of a status; empty: it is none."""
    return dsn[0] if _DSN.fullmatch(dsn) else ""


# --- both --------------------------------------------------------------------------------------


def _encoded(texts: list[str]) -> bytes:
    """The octets of all texts, after the checks that look at the whole."""
    text = "\0".join(texts) + "\0"
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"not valid text: {exc.reason}") from exc
    if data.count(0) != len(texts) or len(data.translate(None, _CONTROLS)) != len(data):
        raise LocalProtocolError("control character in a delivery message")
    if len(text) > MAX_FIELD and max(map(len, texts)) > MAX_FIELD:
        raise LocalProtocolError("field of a delivery message is too long")
    return data


def _bounded(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise LocalProtocolError(f"delivery message of {len(data)} octets is too long")
    return data


def _unpacked(head: struct.Struct, data: bytes, limit: int) -> tuple[Any, ...]:
    """The numbers that a payload begins with."""
    if not head.size <= len(data) <= limit:
        raise RemoteProtocolError(f"delivery message of {len(data)} octets")
    return head.unpack_from(data)


def _check_count(count: int) -> int:
    if not 1 <= count <= MAX_RECIPIENTS:
        raise _bad("number of recipients", str(count))
    return count


def _told_apart(recipients: tuple[Recipient, ...]) -> bool:
    """No two have the same key: an outcome is matched by it."""
    return len(recipients) == 1 or len({recipient.key for recipient in recipients}) == len(
        recipients
    )


def _decoded(data: bytes, start: int, count: int, errors: str) -> list[str]:
    """The texts of a payload, from `start` to its end: exactly `count`.

    `errors`: what becomes of octets that are no UTF-8, as bytes.decode() takes it.
    """
    octets = data[start:]
    if len(octets.translate(None, _CONTROLS)) != len(octets):
        raise RemoteProtocolError("control character in a delivery message")
    # Counted before it is split: a list of empty texts takes many times their octets.
    # What is behind the last NUL must be nothing.
    if (found := octets.count(0)) != count or not octets.endswith(b"\0"):
        raise RemoteProtocolError(f"delivery message with {found} texts, not {count}")
    try:
        texts = octets.decode("utf-8", errors).split("\0")[:-1]
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError(f"text of a delivery message is not UTF-8: {exc.reason}") from exc
    if len(octets) > MAX_FIELD and max(map(len, texts)) > MAX_FIELD:
        raise RemoteProtocolError("field of a delivery message is too long")
    return texts


def _fit(*texts: str) -> tuple[str, ...]:
    """Texts of a result as they may be sent: bounded, and without control characters."""
    whole = "".join(texts)
    if len(whole) <= TEXT_LIMIT and whole.isascii() and whole.isprintable():  # nearly always
        return texts
    return tuple(
        _UNFIT.sub("?", text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 3] + "...")
        for text in texts
    )


def _unfit(outcome: RecipientOutcome, what: str) -> LocalProtocolError:
    return LocalProtocolError(f"outcome of {outcome.recipient.address[:100]!r}: {what}")


def _bad(what: str, text: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"bad {what} in a delivery message: {text[:100]!r}")
