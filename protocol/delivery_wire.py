"""Delivery requests and results as octets, between our queue process and our workers.

Payloads only: whoever moves them adds lengths. They are attribute lists in Postfix's
null-terminated flavour (`attributes.py`), with Postfix's names where it has them: one list for the
request, one for each recipient, in a fixed order. Nothing that comes in is trusted: every field
has its bounds and its form, and anything odd is a RemoteProtocolError. What the other side would
refuse is refused before it is sent (LocalProtocolError), so that a bad message shows where it is.

This is on the path of every message, twice. Hence one decode, one split and comparisons of whole
slices of names, instead of `attributes.AttributeDecoder`.
"""

import re
from functools import lru_cache
from typing import Final

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

MAX_RECIPIENTS: Final = 1000  # of one request; default_destination_recipient_limit is 50
MAX_FIELD: Final = 4096  # characters of one value
TEXT_LIMIT: Final = 1024  # characters of a text in a result; longer ones are cut when sent
MAX_REQUEST_SIZE: Final = 4_194_304  # octets
MAX_RESULT_SIZE: Final = 16_777_216  # octets: MAX_RECIPIENTS, each with four full texts

# Names in their order; the empty one is the terminator of the list.
_REQUEST: Final = [
    "flags",
    "queue_id",
    "size",
    "nexthop",
    "encoding",
    "sendopts",
    "sender",
    "envelope_id",
    "ret_flags",
    "arrival_time",  # ours, for the first two members of Postfix's binary "time"
    "active_time",
    "log_client_name",
    "log_client_address",
    "log_client_port",
    "log_protocol_name",
    "log_helo_name",
    "log_ident",
    "transport",  # ours, like the next: Postfix says both by the socket it connects to
    "protocol",
    "recipient_count",
    "",
]
_RECIPIENT: Final = [
    "original_recipient",
    "recipient",
    "offset",
    "dsn_orig_rcpt",
    "notify_flags",
    "",
]
# Postfix answers with one list for the site and writes recipients' fates to other services; here
# they follow, one list each.
_RESULT: Final = ["status", "reason", "session_kept", "stopped", "recipient_count", ""]
_OUTCOME: Final = [
    "offset",
    "action",
    "status",
    "reason",
    "diag_text",
    "mta_mname",
    "relay",
    "conn_use",
    "delays",
    "dsn_announced",
    "in_doubt",
    "",
]

_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}
_ACTIONS: Final = {action.value: action for action in Action}
_ACTION_CLASS: Final = {Action.SENT: "2", Action.DEFERRED: "4", Action.BOUNCED: "5"}
_ENCODINGS: Final = frozenset(("", "7bit", "8bit"))
_RETS: Final = {str(int(ret)): ret for ret in Ret}
# NEVER goes with nothing else (RFC 3461 section 4.1).
_NOTIFIES: Final = {
    str(bits): Notify(bits) for bits in range(16) if bits == 1 or not bits & Notify.NEVER
}
_OPTIONS: Final = {str(bits): SendOptions(bits) for bits in range(16)}
_BOOLS: Final = {"0": False, "1": True}
_ALL_FLAGS: Final = sum(RequestFlags)

_LONG: Final = 1 << 64
_MAX_KEY: Final = (1 << 63) - 1
_NO_KEY: Final = str(_LONG - 1)  # -1 as Postfix writes it
_MAX_TIME: Final = 1e12  # seconds

_CONTROLS: Final = bytes((*range(1, 32), 127))  # NUL separates; the rest has no business here
_WORD = re.compile(r"[!-~]{1,128}")  # queue id, transport
_DSN = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_SECONDS = re.compile(r"[0-9]{1,13}(?:\.[0-9]{1,20})?(?:e[+-][0-9]{1,3})?")
_NUMBER = re.compile(r"[0-9]{1,20}")
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # for texts of results


# --- requests ----------------------------------------------------------------------------------


def encode_request(request: DeliveryRequest) -> bytes:
    """Return the payload for `request`.

    Raises LocalProtocolError if decode_request() would refuse it: a control character anywhere,
    a value out of bounds, no recipient or more than MAX_RECIPIENTS.
    """
    _check_request(request)
    client = request.client
    lists = [
        f"flags\0{request.flags:d}\0queue_id\0{request.queue_id}\0size\0{request.size}\0"
        f"nexthop\0{request.nexthop}\0encoding\0{request.encoding}\0"
        f"sendopts\0{request.options:d}\0sender\0{request.sender}\0"
        f"envelope_id\0{request.envelope_id}\0ret_flags\0{request.ret:d}\0"
        f"arrival_time\0{float(request.arrival)!r}\0active_time\0{float(request.active)!r}\0"
        f"log_client_name\0{client.name}\0log_client_address\0{client.address}\0"
        f"log_client_port\0{client.port}\0log_protocol_name\0{client.protocol}\0"
        f"log_helo_name\0{client.helo}\0log_ident\0{client.ident}\0"
        f"transport\0{request.transport}\0protocol\0{request.protocol.value}\0"
        f"recipient_count\0{len(request.recipients)}\0\0"
    ]
    for recipient in request.recipients:
        key = recipient.key
        if not recipient.address or not -1 <= key <= _MAX_KEY:
            raise LocalProtocolError(f"recipient {recipient.address[:100]!r}, key {key}")
        notify = f"{recipient.notify:d}"
        if notify not in _NOTIFIES:
            raise LocalProtocolError(f"NOTIFY flags {notify} of {recipient.address[:100]!r}")
        lists.append(
            f"original_recipient\0{recipient.original}\0recipient\0{recipient.address}\0"
            f"offset\0{key if key >= 0 else _NO_KEY}\0dsn_orig_rcpt\0{recipient.orcpt}\0"
            f"notify_flags\0{notify}\0\0"
        )
    fields = 2 * len(_REQUEST) - 1 + (len(lists) - 1) * (2 * len(_RECIPIENT) - 1)
    return _encoded("".join(lists), fields, MAX_REQUEST_SIZE)


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
    if not 1 <= len(request.recipients) <= MAX_RECIPIENTS:
        raise LocalProtocolError(f"{len(request.recipients)} recipients in one request")


def decode_request(data: bytes) -> DeliveryRequest:
    """Return the request of a payload. Raises RemoteProtocolError, and nothing else."""
    texts = _decoded(data, MAX_REQUEST_SIZE)
    (
        flags,
        queue_id,
        size,
        nexthop,
        encoding,
        options,
        sender,
        envelope_id,
        ret,
        arrival,
        active,
        client_name,
        client_address,
        client_port,
        client_protocol,
        helo,
        ident,
        transport,
        protocol,
        count,
    ) = _values(texts, 0, _REQUEST)
    if not (_WORD.fullmatch(queue_id) and _WORD.fullmatch(transport) and nexthop):
        raise _bad("queue_id, transport or nexthop", f"{queue_id} {transport} {nexthop}")
    if encoding not in _ENCODINGS:
        raise _bad("encoding", encoding)
    position = 2 * len(_REQUEST) - 1
    _check_count(texts, position, count, _RECIPIENT)
    try:
        return DeliveryRequest(
            queue_id=queue_id,
            transport=transport,
            protocol=_PROTOCOLS[protocol],
            nexthop=nexthop,
            sender=sender,
            recipients=tuple(
                [
                    _recipient(texts, start)
                    for start in range(position, len(texts) - 1, 2 * len(_RECIPIENT) - 1)
                ]
            ),
            size=_number(size, _MAX_KEY),
            encoding=encoding,
            options=_OPTIONS[options],
            envelope_id=envelope_id,
            ret=_RETS[ret],
            flags=_flags(flags),
            arrival=_seconds(arrival),
            active=_seconds(active),
            client=ClientFacts(
                name=client_name,
                address=client_address,
                port=client_port,
                protocol=client_protocol,
                helo=helo,
                ident=ident,
            ),
        )
    except KeyError as exc:
        raise RemoteProtocolError(f"no such value: {exc.args[0][:100]!r}") from exc


def _recipient(texts: list[str], start: int) -> Recipient:
    """The recipient whose list begins at `start`. KeyError for an unknown NOTIFY."""
    original, address, key, orcpt, notify = _values(texts, start, _RECIPIENT)
    if not address:
        raise _bad("recipient", address)
    return Recipient(
        address=address,
        original=original,
        orcpt=orcpt,
        notify=_NOTIFIES[notify],
        key=_key(key),
    )


@lru_cache(maxsize=256)  # of 128 valid texts; an IntFlag takes longer to make than to look up
def _flags(text: str) -> RequestFlags:
    bits = _number(text, 0xFFFF_FFFF)
    if bits & ~_ALL_FLAGS:
        raise _bad("flags", text)
    return RequestFlags(bits)


# --- results -----------------------------------------------------------------------------------


def encode_result(result: DeliveryResult) -> bytes:
    """Return the payload for `result`.

    Reasons and replies are cut to TEXT_LIMIT characters and control characters in any text become
    `?`: an outcome must not be lost for its wording. Raises LocalProtocolError for what only a bug
    can make: a status that disagrees with the action, numbers out of bounds.
    """
    site = result.site_failure
    lists = [
        f"status\0{site.dsn if site else ''}\0reason\0{_text(site.reason) if site else ''}\0"
        f"session_kept\0{result.session_kept:d}\0stopped\0{result.stopped:d}\0"
        f"recipient_count\0{len(result.outcomes)}\0\0"
    ]
    if site and not _DSN.fullmatch(site.dsn):
        raise LocalProtocolError(f"bad status {site.dsn[:100]!r} of a site failure")
    if not 1 <= len(result.outcomes) <= MAX_RECIPIENTS:
        raise LocalProtocolError(f"{len(result.outcomes)} outcomes in one result")
    for outcome in result.outcomes:
        _check_outcome(outcome)
        key, delays = outcome.recipient.key, outcome.delays
        lists.append(
            f"offset\0{key if key >= 0 else _NO_KEY}\0action\0{outcome.action.value}\0"
            f"status\0{outcome.dsn}\0reason\0{_text(outcome.reason)}\0"
            f"diag_text\0{_text(outcome.reply)}\0mta_mname\0{_text(outcome.mta)}\0"
            f"relay\0{_text(outcome.relay)}\0conn_use\0{outcome.conn_use}\0"
            f"delays\0{float(delays.before_active)!r}/{float(delays.active)!r}"
            f"/{float(delays.setup)!r}/{float(delays.transmission)!r}\0"
            f"dsn_announced\0{outcome.dsn_announced:d}\0in_doubt\0{outcome.in_doubt:d}\0\0"
        )
    fields = 2 * len(_RESULT) - 1 + (len(lists) - 1) * (2 * len(_OUTCOME) - 1)
    return _encoded("".join(lists), fields, MAX_RESULT_SIZE)


def _check_outcome(outcome: RecipientOutcome) -> None:
    """What encode_result() refuses of one outcome."""
    delays = outcome.delays
    shown = f"outcome of {outcome.recipient.address[:100]!r}"
    if not _agrees(outcome.action, outcome.dsn):
        raise LocalProtocolError(f"{shown}: {outcome.action.value} with {outcome.dsn[:100]!r}")
    if not (-1 <= outcome.recipient.key <= _MAX_KEY and 0 <= outcome.conn_use <= _MAX_KEY):
        raise LocalProtocolError(f"{shown}: bad key or use")
    if not (
        0 <= delays.before_active < _MAX_TIME
        and 0 <= delays.active < _MAX_TIME
        and 0 <= delays.setup < _MAX_TIME
        and 0 <= delays.transmission < _MAX_TIME
    ):
        raise LocalProtocolError(f"{shown}: bad {delays}")


def decode_result(data: bytes, request: DeliveryRequest) -> DeliveryResult:
    """Return the result of a payload, its outcomes in the order of the request's recipients.

    Recipients are matched by key. Raises RemoteProtocolError, and nothing else: also if a key is
    unknown, twice there or missing.
    """
    texts = _decoded(data, MAX_RESULT_SIZE)
    dsn, reason, kept, stopped, count = _values(texts, 0, _RESULT)
    if (dsn and not _DSN.fullmatch(dsn)) or kept not in _BOOLS or stopped not in _BOOLS:
        raise _bad("status, session_kept or stopped", f"{dsn} {kept} {stopped}")
    position = 2 * len(_RESULT) - 1
    _check_count(texts, position, count, _OUTCOME)
    waiting = {recipient.key: recipient for recipient in request.recipients}
    if len(waiting) != len(request.recipients):
        raise RemoteProtocolError("recipients of the request cannot be told apart by key")
    outcomes: dict[int, RecipientOutcome] = {}
    try:
        for start in range(position, len(texts) - 1, 2 * len(_OUTCOME) - 1):
            outcome = _outcome(texts, start, waiting)
            outcomes[outcome.recipient.key] = outcome
    except KeyError as exc:
        raise RemoteProtocolError(f"no such value: {str(exc.args[0])[:100]!r}") from exc
    if waiting:
        raise RemoteProtocolError(f"no outcome for {len(waiting)} recipients")
    return DeliveryResult(
        outcomes=tuple([outcomes[recipient.key] for recipient in request.recipients]),
        site_failure=SiteFailure(dsn=dsn, reason=reason) if dsn else None,
        session_kept=_BOOLS[kept],
        stopped=_BOOLS[stopped],
    )


def _outcome(texts: list[str], start: int, waiting: dict[int, Recipient]) -> RecipientOutcome:
    """The outcome whose list begins at `start`; its recipient is waiting no more.

    KeyError for a recipient that is not waiting, and for unknown words.
    """
    key, action, dsn, reason, reply, mta, relay, use, delays, announced, doubt = _values(
        texts, start, _OUTCOME
    )
    parts = delays.split("/")
    if len(parts) != 4:
        raise _bad("delays", delays)
    if not _agrees(_ACTIONS[action], dsn):
        raise _bad("action and status", f"{action} {dsn}")
    return RecipientOutcome(
        recipient=waiting.pop(_key(key)),
        action=_ACTIONS[action],
        dsn=dsn,
        reason=reason,
        reply=reply,
        mta=mta,
        relay=relay,
        conn_use=_number(use, _MAX_KEY),
        delays=Delays(*map(_seconds, parts)),
        dsn_announced=_BOOLS[announced],
        in_doubt=_BOOLS[doubt],
    )


def _agrees(action: Action, dsn: str) -> bool:
    return dsn[:1] == _ACTION_CLASS[action] and _DSN.fullmatch(dsn) is not None


# --- both --------------------------------------------------------------------------------------


def _encoded(text: str, fields: int, limit: int) -> bytes:
    """The octets of finished lists, after the checks that look at the whole."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"not valid text: {exc.reason}") from exc
    if data.count(0) != fields or len(data.translate(None, _CONTROLS)) != len(data):
        raise LocalProtocolError("control character in a delivery message")
    if len(data) > limit or (len(text) > MAX_FIELD and max(map(len, text.split("\0"))) > MAX_FIELD):
        raise LocalProtocolError("delivery message or field is too long")
    return data


def _decoded(data: bytes, limit: int) -> list[str]:
    """The texts of a payload, names and values in turn, a last empty one behind the last NUL."""
    if len(data) > limit:
        raise RemoteProtocolError(f"delivery message of {len(data)} octets")
    if len(data.translate(None, _CONTROLS)) != len(data):
        raise RemoteProtocolError("control character in a delivery message")
    texts = data.decode("utf-8", "surrogateescape").split("\0")
    if len(data) > MAX_FIELD and max(map(len, texts)) > MAX_FIELD:
        raise RemoteProtocolError("field of a delivery message is too long")
    return texts


def _values(texts: list[str], start: int, names: list[str]) -> list[str]:
    """The values of the list at `start`, which must have exactly these names, in this order."""
    end = start + 2 * len(names) - 1
    if texts[start:end:2] != names:
        raise RemoteProtocolError(f"not the attributes expected: {texts[start:end:2]!s:.200}")
    return texts[start + 1 : end - 1 : 2]


def _check_count(texts: list[str], position: int, count: str, names: list[str]) -> None:
    """The lists from `position` on are as many as announced, and nothing is behind them."""
    lists = _number(count, MAX_RECIPIENTS)
    if not lists or len(texts) != position + lists * (2 * len(names) - 1) + 1 or texts[-1]:
        raise _bad("recipient_count", count)


def _number(text: str, largest: int) -> int:
    if _NUMBER.fullmatch(text) and (number := int(text)) <= largest:
        return number
    raise _bad("number", text)


def _key(text: str) -> int:
    return -1 if text == _NO_KEY else _number(text, _MAX_KEY)


def _seconds(text: str) -> float:
    if _SECONDS.fullmatch(text) and (seconds := float(text)) < _MAX_TIME:
        return seconds
    raise _bad("time", text)


def _text(text: str) -> str:
    """A text of a result as it may be sent: bounded, and without control characters."""
    if len(text) > TEXT_LIMIT:
        text = text[: TEXT_LIMIT - 3] + "..."
    if text.isascii() and text.isprintable():
        return text
    return _UNFIT.sub("?", text)


def _bad(what: str, text: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"bad {what} in a delivery message: {text[:100]!r}")
