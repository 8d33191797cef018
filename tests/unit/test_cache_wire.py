"""scache(8)'s messages: octets recorded from a real pair, round trips, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.attributes import AttributeDecoder, AttributeList
from protocol.cache_wire import (
    ANNOUNCEMENT,
    ANNOUNCEMENT_WIRE,
    DUMMY,
    DUMMY_WIRE,
    MAX_MESSAGE,
    MAX_TEXT,
    BadRequest,
    FindDestination,
    FindEndpoint,
    ListReader,
    Reply,
    ReportRequest,
    Request,
    SaveDestination,
    SaveEndpoint,
    Status,
    decode_reply,
    decode_report,
    decode_request,
    encode_report,
    miss,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import NEED_DATA

# What smtp(8) 3.7.11 and scache(8) say to each other, in the terms of the interface notes.
RECORDED: list[tuple[bytes, Request]] = [
    (
        b"request\0save_endp\0ttl\x002\0label\0smtp\n127.0.0.1\n2572\n0\n\0property\0"
        b"host=[127.0.0.1]\naddress=127.0.0.1\nport=2572\n\n\0\0",
        SaveEndpoint(
            2,
            "smtp\n127.0.0.1\n2572\n0\n",
            "host=[127.0.0.1]\naddress=127.0.0.1\nport=2572\n\n",
        ),
    ),
    (
        b"request\0find_endp\0label\0smtp\n127.0.0.1\n2572\n0\n\0\0",
        FindEndpoint("smtp\n127.0.0.1\n2572\n0\n"),
    ),
    (
        b"request\0save_dest\0ttl\x002\0label\0smtp\n[127.0.0.1]:2572\n\0property\0features=15\n\0"
        b"label\0smtp\n127.0.0.1\n2572\n0\n\0\0",
        SaveDestination(
            2, "smtp\n[127.0.0.1]:2572\n", "features=15\n", "smtp\n127.0.0.1\n2572\n0\n"
        ),
    ),
    (
        b"request\0find_dest\0label\0smtp\n[127.0.0.1]:2572\n\0\0",
        FindDestination("smtp\n[127.0.0.1]:2572\n"),
    ),
]

# Any octets but NUL, and few enough to fit, as the decoder makes text of them.
TEXTS = st.binary(max_size=60).map(
    lambda octets: octets.replace(b"\0", b"\n").decode("utf-8", "surrogateescape")
)
TTLS = st.integers(1, 0x7FFF_FFFF)
REQUESTS = (
    st.builds(SaveEndpoint, TTLS, TEXTS, TEXTS)
    | st.builds(FindEndpoint, TEXTS)
    | st.builds(SaveDestination, TTLS, TEXTS, TEXTS, TEXTS)
    | st.builds(FindDestination, TEXTS)
    | st.builds(ReportRequest)
)


def lists(octets: bytes) -> list[AttributeList]:
    """All lists in `octets`, which must end with the last one."""
    reader = ListReader()
    reader.receive_data(octets)
    found = []
    while (event := reader.next_event()) is not NEED_DATA:
        found.append(event)
    assert reader.unread == 0
    return found


def only(octets: bytes) -> AttributeList:
    (attributes,) = lists(octets)
    return attributes


@pytest.mark.parametrize(("octets", "request_"), RECORDED, ids=["se", "fe", "sd", "fd"])
def test_s140_recorded_requests_are_understood_and_written_octet_for_octet(
    octets: bytes, request_: Request
) -> None:
    assert decode_request(only(octets)) == request_
    assert request_.encode() == octets


def test_the_announcement_and_the_dummy_are_the_recorded_octets() -> None:
    assert ANNOUNCEMENT_WIRE == b"protocol\0connection_cache_protocol\0\0"
    assert DUMMY_WIRE == b"dummy\0\0\0"
    assert lists(ANNOUNCEMENT_WIRE + DUMMY_WIRE) == [ANNOUNCEMENT, DUMMY]


def test_s140_replies_are_the_recorded_octets() -> None:
    assert Reply(Status.OK).encode() == b"status\x000\0\0"
    assert Reply(Status.OK, ("dest\n", "endp\n")).encode() == (
        b"status\x000\0property\0dest\n\0property\0endp\n\0\0"
    )
    assert miss(1).encode() == b"status\x002\0property\0\0\0"
    assert miss(2, Status.MALFORMED).encode() == b"status\x001\0property\0\0property\0\0\0"


@given(REQUESTS)
def test_every_request_survives_the_wire(request_: Request) -> None:
    assert decode_request(only(request_.encode())) == request_


@given(st.sampled_from(Status), st.lists(TEXTS, max_size=2))
def test_every_reply_survives_the_wire(status: Status, texts: list[str]) -> None:
    reply = Reply(status, tuple(texts))
    assert decode_reply(only(reply.encode()), len(texts)) == reply


def test_a_dummy_glued_to_the_next_request_is_a_list_of_its_own() -> None:
    dummy, request = lists(DUMMY_WIRE + FindEndpoint("a").encode())
    assert dummy == DUMMY
    assert decode_request(request) == FindEndpoint("a")


@pytest.mark.parametrize(
    ("attributes", "properties"),
    [
        ((), 0),
        (DUMMY, 0),
        ((("request", "drop_endp"), ("label", "a")), 0),
        ((("label", "a"), ("request", "find_endp")), 0),
        ((("request", "find_endp"),), 1),
        ((("request", "find_endp"), ("label", "a"), ("label", "b")), 1),
        ((("request", "find_dest"), ("property", "a")), 2),
        ((("request", "find_dest"), ("{", {"label": "a"})), 2),
        ((("request", "find_dest"), ("label", "a" * (MAX_TEXT + 1))), 2),
        ((("request", "find_endp"), ("label", "ü" * (MAX_TEXT // 2 + 1))), 1),
        ((("request", "save_endp"), ("ttl", "0"), ("label", "a"), ("property", "")), 0),
        ((("request", "save_endp"), ("ttl", "4294967295"), ("label", "a"), ("property", "")), 0),
        ((("request", "save_endp"), ("ttl", "2x"), ("label", "a"), ("property", "")), 0),
        ((("request", "save_endp"), ("label", "a"), ("ttl", "2"), ("property", "")), 0),
        ((("request", "save_dest"), ("ttl", "2"), ("label", "a"), ("property", "")), 0),
        ((("request", "postrio_report"), ("label", "a")), 0),
    ],
)
def test_a_list_that_is_no_request_says_what_form_its_answer_has(
    attributes: AttributeList, properties: int
) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_request(attributes)
    assert caught.value.properties == properties


@pytest.mark.parametrize(
    ("attributes", "properties"),
    [
        ((), 0),
        (DUMMY, 0),
        ((("status", "3"),), 0),
        ((("status", "-1"),), 0),
        ((("status", "0"),), 1),
        ((("status", "0"), ("property", "a")), 2),
        ((("status", "2"), ("property", "a")), 2),
        ((("status", "0"), ("property", "a"), ("property", "b")), 1),
        ((("status", "0"), ("{", {"property": "a"})), 1),
        ((("status", "0"), ("property", "a" * (MAX_TEXT + 1))), 1),
    ],
)
def test_a_list_that_is_no_reply_is_refused(attributes: AttributeList, properties: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_reply(attributes, properties)


def test_a_refusal_may_come_without_properties() -> None:
    assert decode_reply((("status", "1"),), 2) == Reply(Status.MALFORMED)


@pytest.mark.parametrize(
    "request_",
    [
        FindEndpoint("a\0b"),
        FindEndpoint("\ud800"),
        FindEndpoint("\ud800" * MAX_TEXT),
        FindDestination("a" * (MAX_TEXT + 1)),
        SaveEndpoint(0, "a", "b"),
        SaveEndpoint(2**31, "a", "b"),
        SaveDestination(-1, "a", "b", "c"),
    ],
)
def test_what_the_other_side_would_refuse_is_not_sent(request_: Request) -> None:
    with pytest.raises(LocalProtocolError):
        request_.encode()


def test_the_largest_request_fits_a_message() -> None:
    text = "\udcff" * MAX_TEXT
    request = SaveDestination(0x7FFF_FFFF, text, text, text)
    assert len(request.encode()) <= MAX_MESSAGE
    assert decode_request(only(request.encode())) == request


def test_a_report_is_told_from_the_refusal_of_a_cache_that_gives_none() -> None:
    assert decode_report(only(encode_report('{"a": 1}'))) == '{"a": 1}'
    with pytest.raises(RemoteProtocolError, match="not postrio's"):
        decode_report((("status", "1"),))


# --- the reader of lists -------------------------------------------------------------------------

# Octets that look like lists, and some that do not; no groups, which this protocol does not have.
WIRE = st.lists(
    st.sampled_from([b"a\0", b"\0", b"label\0", b"\xff\0", b"\n", DUMMY_WIRE])
    | st.binary(max_size=4)
).map(lambda pieces: b"".join(pieces).replace(b"{", b"(").replace(b"}", b")"))


@given(WIRE, st.lists(st.integers(1, 9)))
def test_lists_are_those_of_the_general_decoder_however_the_stream_is_cut(
    wire: bytes, sizes: list[int]
) -> None:
    general, expected = AttributeDecoder(MAX_MESSAGE), []
    general.receive_data(wire)
    while (event := general.next_event()) is not NEED_DATA:
        expected.append(event)
    reader, found, position = ListReader(), [], 0
    for size in [*sizes, len(wire)]:
        reader.receive_data(wire[position : position + size])
        position += size
        while (event := reader.next_event()) is not NEED_DATA:
            found.append(event)
    assert found == expected
    assert reader.unread == general.unread


@pytest.mark.parametrize(
    "wire",
    [
        b"a" * 101,
        b"a\0" * 51,
        b"a\0" + b"b" * 98 + b"\0\0",
        b"{\0a\0b\0}\0\0",
        b"request\0find_endp\0{\0}\0\0",
    ],
)
def test_a_list_that_is_too_long_or_has_a_group_is_refused(wire: bytes) -> None:
    reader = ListReader(100)
    reader.receive_data(wire)
    with pytest.raises(RemoteProtocolError):
        reader.next_event()


def test_a_list_of_the_limit_is_taken_with_whatever_follows_it() -> None:
    reader = ListReader(100)
    reader.receive_data(b"a\0" + b"b" * 96 + b"\0\0" + DUMMY_WIRE)
    assert reader.next_event() == (("a", "b" * 96),)
    assert reader.next_event() == DUMMY


def test_an_expected_list_is_taken_only_when_it_is_complete() -> None:
    reader = ListReader()
    reader.receive_data(DUMMY_WIRE[:5])
    assert not reader.take(DUMMY_WIRE)
    assert reader.peek(100) == b"dummy"
    reader.receive_data(DUMMY_WIRE[5:] + b"label")
    assert reader.take(DUMMY_WIRE)
    assert reader.peek(3) == b"lab"


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\ud800" * MAX_TEXT, "a" * (MAX_TEXT + 1)])
def test_a_property_that_the_client_would_refuse_is_not_sent(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        Reply(Status.OK, (text,)).encode()
