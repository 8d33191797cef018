"""Requests and results as octets: what is sent comes back, what is odd is refused."""

import math
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import fields, replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.delivery_wire import (
    _OUTCOME,
    _RECIPIENT,
    _REQUEST,
    _RESULT,
    MAX_FIELD,
    MAX_RECIPIENTS,
    MAX_REQUEST_SIZE,
    MAX_RESULT_SIZE,
    TEXT_LIMIT,
    decode_request,
    decode_result,
    encode_request,
    encode_result,
)
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

CLEAN = st.text(
    st.characters(codec="utf-8", exclude_characters=[*map(chr, range(32)), "\x7f"]), max_size=12
)
WILD = CLEAN | st.text(max_size=6) | st.just("\udcff")  # a surrogate escape; others by chance
WORDS = st.from_regex(r"[0-9A-Za-z.-]{1,12}", fullmatch=True)
TIMES = st.floats(0, 1e11)
KEYS = st.integers(-1, (1 << 63) - 1)
NOTIFY = st.sampled_from([Notify(bits) for bits in range(16) if bits == 1 or not bits & 1])


def recipients(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Recipient, ...]]:
    """At least one recipient, no two with the same key."""
    recipient = st.builds(
        Recipient, address=text.filter(bool), original=text, orcpt=text, notify=NOTIFY, key=KEYS
    )
    return st.lists(
        recipient, min_size=1, max_size=4, unique_by=lambda recipient: recipient.key
    ).map(tuple)


def requests(text: st.SearchStrategy[str] = CLEAN) -> st.SearchStrategy[DeliveryRequest]:
    """Requests whose texts are `text`; with CLEAN all are fit to be sent."""
    return st.builds(
        DeliveryRequest,
        queue_id=WORDS,
        transport=WORDS,
        protocol=st.sampled_from(Protocol),
        nexthop=text.filter(bool),
        sender=text,
        recipients=recipients(text),
        size=st.integers(0, (1 << 63) - 1),
        encoding=st.sampled_from(["", "7bit", "8bit"]),
        options=st.integers(0, 15).map(SendOptions),
        envelope_id=text,
        ret=st.sampled_from(Ret),
        flags=st.sampled_from(RequestFlags),  # combinations included
        arrival=TIMES,
        active=TIMES,
        client=st.builds(
            ClientFacts, name=text, address=text, port=text, protocol=text, helo=text, ident=text
        ),
    )


STATUS = {Action.SENT: "2.0.0", Action.DEFERRED: "4.4.2", Action.BOUNCED: "5.1.1"}


def outcomes(recipient: Recipient) -> st.SearchStrategy[RecipientOutcome]:
    """Any fate of one recipient."""
    return st.sampled_from(Action).flatmap(
        lambda action: st.builds(
            RecipientOutcome,
            recipient=st.just(recipient),
            action=st.just(action),
            dsn=st.just(STATUS[action]),
            reason=CLEAN,
            reply=CLEAN,
            mta=CLEAN,
            relay=CLEAN,
            conn_use=st.integers(1, 1000),
            delays=st.builds(Delays, TIMES, TIMES, TIMES, TIMES),
            dsn_announced=st.booleans(),
            tls=CLEAN,
            in_doubt=st.booleans(),
        )
    )


@st.composite
def answered(draw: st.DrawFn) -> tuple[DeliveryRequest, DeliveryResult]:
    """A request and a result of it."""
    request = draw(requests())
    site = st.none() | st.builds(SiteFailure, dsn=st.just("4.4.1"), reason=CLEAN)
    result = DeliveryResult(
        outcomes=tuple(draw(outcomes(recipient)) for recipient in request.recipients),
        site_failure=draw(site),
        session_kept=draw(st.booleans()),
        stopped=draw(st.booleans()),
    )
    return request, result


REQUEST = DeliveryRequest(
    queue_id="4F2C1A9B3D7",
    transport="smtp",
    protocol=Protocol.SMTP,
    nexthop="[192.0.2.1]:2525",
    sender="sender@example.org",
    recipients=(Recipient(address="a@example", key=1), Recipient(address="b@example", key=2)),
    size=4123,
    arrival=1_700_000_000.125,
    active=1_700_000_001.5,
)
RESULT = DeliveryResult(
    outcomes=tuple(
        RecipientOutcome(
            recipient=recipient, action=Action.SENT, dsn="2.0.0", reason="250 ok", reply="250 ok"
        )
        for recipient in REQUEST.recipients
    )
)


@given(requests())
def test_a_request_comes_back(request: DeliveryRequest) -> None:
    decoded = decode_request(encode_request(request))
    assert decoded == request
    assert [type(getattr(decoded, each.name)) for each in fields(decoded)] == [
        type(getattr(request, each.name)) for each in fields(request)
    ]


@given(requests(WILD))
def test_a_request_is_either_refused_before_it_is_sent_or_can_be_read(
    request: DeliveryRequest,
) -> None:
    try:
        data = encode_request(request)
    except LocalProtocolError:
        return
    # Not always equal: surrogate escapes may happen to make up a character of UTF-8.
    assert encode_request(decode_request(data)) == data


@given(answered())
def test_a_result_comes_back(pair: tuple[DeliveryRequest, DeliveryResult]) -> None:
    request, result = pair
    assert decode_result(encode_result(result), request) == result


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few octets removed, inserted or changed, or parts of it moved."""
    octets = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(octets)))
        end = at + draw(st.integers(0, 12))
        piece = draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b"\0", b"\0\0", b"\1", b"\xff" * 8, b"\x7f\xf8" + bytes(6), b"2.0.0", b"9" * 30]
            )
        )
        octets[at:end] = piece
    return bytes(octets)


@settings(max_examples=500)
@given(st.binary(max_size=300) | mutations(encode_request(REQUEST)))
def test_random_or_mutated_requests_give_a_request_or_a_protocol_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert encode_request(decode_request(data))


@settings(max_examples=500)
@given(st.binary(max_size=300) | mutations(encode_result(RESULT)))
def test_random_or_mutated_results_give_a_result_or_a_protocol_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        result = decode_result(data, REQUEST)
        assert [outcome.recipient for outcome in result.outcomes] == list(REQUEST.recipients)
        assert encode_result(result)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_message_that_was_cut_short_is_refused(cut: int) -> None:
    request, result = encode_request(REQUEST), encode_result(RESULT)
    with pytest.raises(RemoteProtocolError):
        decode_request(request[: min(cut, len(request) - 1)])
    with pytest.raises(RemoteProtocolError):
        decode_result(result[: min(cut, len(result) - 1)], REQUEST)


def test_a_message_with_something_behind_it_is_refused() -> None:
    for more in (b"x", b"\0", b"x\0"):
        with pytest.raises(RemoteProtocolError):
            decode_request(encode_request(REQUEST) + more)
        with pytest.raises(RemoteProtocolError):
            decode_result(encode_result(RESULT) + more, REQUEST)


def test_the_size_of_a_message_is_bounded_at_both_ends() -> None:
    long = "x" * MAX_FIELD
    many = tuple(Recipient(address="a@x", original=long, orcpt=long, key=key) for key in range(900))
    with pytest.raises(LocalProtocolError, match="too long"):
        encode_request(replace(REQUEST, recipients=many))
    with pytest.raises(RemoteProtocolError, match=f"of {MAX_REQUEST_SIZE + 1} octets"):
        decode_request(bytes(MAX_REQUEST_SIZE + 1))
    with pytest.raises(RemoteProtocolError, match=f"of {MAX_RESULT_SIZE + 1} octets"):
        decode_result(bytes(MAX_RESULT_SIZE + 1), REQUEST)


def test_outcomes_are_matched_by_key_whatever_their_order() -> None:
    data = encode_result(replace(RESULT, outcomes=RESULT.outcomes[::-1]))
    assert decode_result(data, REQUEST) == RESULT


@pytest.mark.parametrize("keys", [[1], [1, 1], [1, 2, 2], [1, 3], [1, 2, 3], [1, -1]])
def test_outcomes_for_other_recipients_than_asked_are_refused(keys: list[int]) -> None:
    outcome = RESULT.outcomes[0]
    wrong = tuple(
        replace(outcome, recipient=Recipient(address="x@example", key=key)) for key in keys
    )
    with pytest.raises(RemoteProtocolError):
        decode_result(encode_result(replace(RESULT, outcomes=wrong)), REQUEST)


def test_recipients_that_share_a_key_cannot_be_answered() -> None:
    same = replace(REQUEST, recipients=(Recipient(address="a@x"), Recipient(address="b@x")))
    with pytest.raises(RemoteProtocolError, match="told apart"):
        decode_result(encode_result(RESULT), same)


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, queue_id=""),
        replace(REQUEST, queue_id="a b"),
        replace(REQUEST, transport="smtp\n"),
        replace(REQUEST, nexthop=""),
        replace(REQUEST, nexthop="x" * (MAX_FIELD + 1)),
        replace(REQUEST, encoding="base64"),
        replace(REQUEST, sender="a\r\nb@x"),
        replace(REQUEST, sender="a\0sender\0b"),
        replace(REQUEST, sender="\ud800"),
        replace(REQUEST, size=-1),
        replace(REQUEST, flags=RequestFlags(1 << 32)),
        replace(REQUEST, flags=RequestFlags(2)),  # fits the wire, and means nothing
        replace(REQUEST, options=SendOptions(16)),
        replace(REQUEST, options=SendOptions(256)),
        replace(REQUEST, ret=cast("Ret", 7)),
        replace(REQUEST, ret=cast("Ret", 256)),
        replace(REQUEST, arrival=-1.0),
        replace(REQUEST, active=float("nan")),
        replace(REQUEST, active=float("inf")),
        replace(REQUEST, recipients=()),
        replace(REQUEST, recipients=REQUEST.recipients * MAX_RECIPIENTS),
        replace(REQUEST, recipients=(Recipient(address=""),)),
        replace(REQUEST, recipients=(Recipient(address="a\x7f@x"),)),
        replace(REQUEST, recipients=(Recipient(address="a@x", key=-2),)),
        replace(
            REQUEST,
            recipients=(Recipient(address="a@x", notify=Notify.NEVER | Notify.SUCCESS),),
        ),
        replace(REQUEST, recipients=(Recipient(address="a@x"), Recipient(address="b@x"))),
    ],
)
def test_a_request_that_would_be_refused_is_not_sent(request_: DeliveryRequest) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request(request_)


def test_a_request_with_one_key_for_two_recipients_is_refused() -> None:
    place = _REQUEST.size + _RECIPIENT.size  # of the second one's key
    data = repacked(_RECIPIENT, encode_request(REQUEST), place, 0, REQUEST.recipients[0].key)
    with pytest.raises(RemoteProtocolError, match="told apart"):
        decode_request(data)


def repacked(head: struct.Struct, data: bytes, start: int, place: int, value: float) -> bytes:
    """`data` with one of the numbers that stand at `start` changed."""
    numbers = list(head.unpack_from(data, start))
    numbers[place] = value
    changed = bytearray(data)
    head.pack_into(changed, start, *numbers)
    return bytes(changed)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2),  # a bit that means nothing to us
        (1, -1),  # size
        (2, 16),  # options
        (3, 3),  # RET
        (4, 2),  # protocol
        (5, 3),  # encoding
        (6, math.nan),
        (6, -1.0),
        (7, math.inf),
        (7, 1e12),
        (8, 1),  # recipients
        (8, 3),
        (8, 0),
        (8, MAX_RECIPIENTS + 1),
    ],
)
def test_odd_numbers_of_a_request_are_refused(place: int, value: float) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(repacked(_REQUEST, encode_request(REQUEST), 0, place, value))


@pytest.mark.parametrize(("place", "value"), [(0, -2), (1, 3), (1, 16)])
def test_odd_numbers_of_a_recipient_are_refused(place: int, value: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(repacked(_RECIPIENT, encode_request(REQUEST), _REQUEST.size, place, value))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"4F2C1A9B3D7", b""),
        (b"4F2C1A9B3D7", b"4F2C 1A9B3D7"),
        (b"smtp", b"x" * 129),
        (b"[192.0.2.1]:2525", b""),
        (b"a@example", b""),
        (b"sender", b"\n"),
        (b"sender", b"\0"),
        (b"sender", b"x" * (MAX_FIELD + 1)),
        (b"sender", b"x" * MAX_REQUEST_SIZE),
    ],
)
def test_odd_texts_of_a_request_are_refused(before: bytes, after: bytes) -> None:
    data = encode_request(REQUEST)
    assert before in data
    with pytest.raises(RemoteProtocolError):
        decode_request(data.replace(before, after, 1))


@pytest.mark.parametrize(("place", "value"), [(0, 4), (1, 0), (1, 1), (1, 3), (1, 65_535)])
def test_odd_numbers_of_a_result_are_refused(place: int, value: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_result(repacked(_RESULT, encode_result(RESULT), 0, place, value), REQUEST)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 3), (0, 2), (1, 1), (1, 3), (2, 4), (4, math.nan), (5, -1.0), (6, math.inf), (7, 1e12)],
)
def test_odd_numbers_of_an_outcome_are_refused(place: int, value: float) -> None:
    data = repacked(_OUTCOME, encode_result(RESULT), _RESULT.size, place, value)
    with pytest.raises(RemoteProtocolError):
        decode_result(data, REQUEST)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"2.0.0", b"4.0.0"),
        (b"2.0.0", b"2.0"),
        (b"4.4.1", b"3.0.0"),
        (b"250 ok", b"250\nok"),
        (b"250 ok", b"250\0ok"),
        (b"250 ok", b"250 \xff"),
        (b"250 ok", b"\xed\xa0\x80"),  # a surrogate, as if it were a character
        (b"no", b"\xc3"),
    ],
)
def test_odd_texts_of_a_result_are_refused(before: bytes, after: bytes) -> None:
    data = encode_result(replace(RESULT, site_failure=SiteFailure(dsn="4.4.1", reason="no")))
    assert before in data
    with pytest.raises(RemoteProtocolError):
        decode_result(data.replace(before, after, 1), REQUEST)


def test_an_outcome_is_not_lost_for_its_wording() -> None:
    outcome = replace(RESULT.outcomes[0], reason="a\r\nb\0c\ud800", reply="é" * 5000)
    data = encode_result(replace(RESULT, outcomes=(outcome, RESULT.outcomes[1])))
    decoded = decode_result(data, REQUEST).outcomes[0]
    assert decoded.reason == "a??b?c?"
    assert decoded.reply == "é" * (TEXT_LIMIT - 3) + "..."


@pytest.mark.parametrize(
    "result",
    [
        replace(RESULT, outcomes=()),
        replace(RESULT, outcomes=(replace(RESULT.outcomes[0], dsn="5.0.0"),)),
        replace(RESULT, outcomes=(replace(RESULT.outcomes[0], dsn="2.0"),)),
        replace(RESULT, outcomes=(replace(RESULT.outcomes[0], conn_use=-1),)),
        replace(RESULT, outcomes=(replace(RESULT.outcomes[0], delays=Delays(setup=-1.0)),)),
        replace(RESULT, site_failure=SiteFailure(dsn="x", reason="")),
        replace(RESULT, outcomes=RESULT.outcomes * MAX_RECIPIENTS),
    ],
)
def test_a_result_that_only_a_bug_can_make_is_not_sent(result: DeliveryResult) -> None:
    with pytest.raises(LocalProtocolError):
        encode_result(result)


def test_the_largest_result_has_room() -> None:
    many = tuple(Recipient(address="a@x", key=key) for key in range(MAX_RECIPIENTS))
    request = replace(REQUEST, recipients=many)
    long = "😀" * 9999
    outcome = replace(RESULT.outcomes[0], reason=long, reply=long, mta=long, relay=long)
    result = replace(
        RESULT, outcomes=tuple(replace(outcome, recipient=recipient) for recipient in many)
    )
    assert len(decode_result(encode_result(result), request).outcomes) == MAX_RECIPIENTS


def test_texts_that_nobody_asked_for_are_not_even_split() -> None:
    wire = encode_request(REQUEST) + b"\0" * 2_000_000
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="texts, not"):
            decode_request(wire)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(wire)


# --- transcripts ---------------------------------------------------------------------------------


def with_transcripts(*transcripts: Transcript) -> DeliveryResult:
    return replace(RESULT, transcripts=transcripts)


TOLD = Transcript(
    peer="mx.example[192.0.2.1]:25",
    troubles=frozenset({Trouble.PROTOCOL, Trouble.SOFTWARE}),
    lines=("In:  220 hello", "Out: EHLO me", "In:  502 é"),
)


def test_s155_transcripts_travel_with_the_result() -> None:
    result = with_transcripts(
        TOLD, replace(TOLD, lines=(), troubles=frozenset({Trouble.DATA}), lmtp=True)
    )
    assert decode_result(encode_result(result), REQUEST) == result


def test_s155_a_transcript_is_cut_and_cleaned_when_it_is_sent() -> None:
    wild = replace(TOLD, lines=("a\0b\n\x1b\ud800", *("x" * 10_000,) * 1000))
    (told,) = decode_result(encode_result(with_transcripts(wild)), REQUEST).transcripts
    assert told.lines[0] == "a?b???"
    assert len(told.lines) == MAX_LINES
    assert {len(line) for line in told.lines[1:]} == {MAX_LINE}


def test_s155_an_outcome_is_not_lost_for_a_transcript_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = encode_result(RESULT)
    monkeypatch.setattr("protocol.delivery_wire.MAX_RESULT_SIZE", len(plain))
    assert encode_result(with_transcripts(TOLD)) == plain


@pytest.mark.parametrize("head", [b"\x00\x00\x00", b"\x10\x00\x00", b"\x01\xff\xff"])
def test_s155_a_transcript_without_trouble_or_with_too_many_lines_is_refused(head: bytes) -> None:
    data = encode_result(with_transcripts(TOLD))
    place = _RESULT.size + len(RESULT.outcomes) * _OUTCOME.size
    with pytest.raises(RemoteProtocolError, match="bad transcript"):
        decode_result(data[:place] + head + data[place + 3 :], REQUEST)


def test_s155_more_transcripts_than_there_may_be_are_refused() -> None:
    data = encode_result(with_transcripts(*(TOLD,) * (MAX_TRANSCRIPTS + 1)))
    assert len(decode_result(data, REQUEST).transcripts) == MAX_TRANSCRIPTS
    for count in (MAX_TRANSCRIPTS + 1, 255):
        with pytest.raises(RemoteProtocolError, match="number of transcripts"):
            decode_result(data[:3] + bytes([count]) + data[4:], REQUEST)
    short = encode_result(RESULT)[: _RESULT.size + len(RESULT.outcomes) * _OUTCOME.size]
    with pytest.raises(RemoteProtocolError, match="number of transcripts"):
        decode_result(short[:3] + b"\x01" + short[4:], REQUEST)
