"""Attribute lists, octet by octet as Postfix writes them."""

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.attributes import (
    MAX_GROUP,
    AttributeDecoder,
    AttributeList,
    encode,
    parse_int,
    parse_long,
    unsigned_int,
    unsigned_long,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.reply import NEED_DATA

TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=10)
NAMES = TEXTS.filter(lambda name: name not in ("", "{", "}"))
GROUPS = st.dictionaries(NAMES, TEXTS, max_size=3).map(lambda group: ("{", group))
LISTS = st.lists(st.tuples(NAMES, TEXTS) | GROUPS, max_size=6)


def events(chunks: Iterable[bytes], max_size: int = 200) -> list[object]:
    """Everything the decoder says about these chunks, its final error included."""
    decoder, seen = AttributeDecoder(max_size), list[object]()
    try:
        for chunk in chunks:
            decoder.receive_data(chunk)
            while (event := decoder.next_event()) is not NEED_DATA:
                seen.append(event)
    except RemoteProtocolError as exc:
        seen.append(str(exc))
    return seen


def decode(data: bytes) -> AttributeList:
    """The only list in `data`."""
    decoder = AttributeDecoder()
    decoder.receive_data(data)
    event = decoder.next_event()
    assert isinstance(event, tuple)
    assert decoder.unread == 0
    return event


@given(st.lists(LISTS, max_size=3))
def test_lists_come_back_in_order(lists: list[AttributeList]) -> None:
    wire = b"".join(map(encode, lists))
    assert events([wire], 10_000) == [tuple(attributes) for attributes in lists]


WIRE = st.lists(
    st.sampled_from([b"\0", b"a", b"{\0", b"}\0", b"{", b"name\0value\0", b"\xff"]), max_size=30
).map(b"".join)


@given(WIRE, st.integers(0, 60))
def test_lists_do_not_depend_on_how_the_stream_is_cut(wire: bytes, cut: int) -> None:
    whole = events([wire], 40)
    assert events([wire[:cut], wire[cut:]], 40) == whole
    assert events([bytes([octet]) for octet in wire], 40) == whole


@given(WIRE)
def test_every_octet_is_either_unread_or_in_a_list(wire: bytes) -> None:
    decoder = AttributeDecoder()
    decoder.receive_data(wire)
    assert decoder.unread == len(wire)
    try:
        count = 0
        while (event := decoder.next_event()) is not NEED_DATA:
            assert isinstance(event, tuple)
            count += len(encode(event)) if b"{" not in wire else 0
    except RemoteProtocolError:
        return
    if b"{" not in wire:
        assert decoder.unread == len(wire) - count


def test_the_octets_of_a_list() -> None:
    assert encode([("status", 0), ("reason", ""), ("x", "é")]) == (
        b"status\x000\x00reason\x00\x00x\x00\xc3\xa9\x00\x00"
    )
    assert encode([]) == b"\0"
    assert encode([("{", {"a": "1", "b": ""}), ("c", "2")]) == (
        b"{\x00a\x001\x00b\x00\x00}\x00c\x002\x00\x00"
    )


def test_an_empty_value_does_not_end_a_list_and_names_may_repeat() -> None:
    data = b"label\0\0label\0x\0\0"
    assert decode(data) == (("label", ""), ("label", "x"))


def test_octets_that_are_no_utf8_come_through() -> None:
    attributes = decode(b"a\0\xff\xfe\0\0")
    assert encode(attributes) == b"a\0\xff\xfe\0\0"


@pytest.mark.parametrize(
    "attributes",
    [
        [("a", "b\0c")],
        [("a\0", "b")],
        [("", "b")],
        [("}", "b")],
        [("{", "b")],
        [("a", "\ud800")],
        [("a", -1)],
        [("{", {"": "x"})],
    ],
)
def test_what_would_be_read_differently_is_not_written(
    attributes: list[tuple[str, str | int]],
) -> None:
    with pytest.raises(LocalProtocolError):
        encode(attributes)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{\0{\0", "inside a group"),
        (b"}\0", "never began"),
        (b"{\0a\0b\0\0", "ends inside a group"),
        (b"{\0" + b"".join(b"%d\0\0" % n for n in range(MAX_GROUP + 1)), "more than 1024"),
    ],
)
def test_braces_out_of_place_are_refused(data: bytes, complaint: str) -> None:
    decoder = AttributeDecoder()
    decoder.receive_data(data)
    with pytest.raises(RemoteProtocolError, match=complaint):
        decoder.next_event()


@pytest.mark.parametrize("piece", [b"a\0b\0", b"a", b"{\0a\0b\0}\0"])
def test_an_endless_list_is_refused(piece: bytes) -> None:
    decoder = AttributeDecoder(max_size=1000)
    for _ in range(1000 // len(piece)):
        decoder.receive_data(piece)
        assert decoder.next_event() is NEED_DATA
    decoder.receive_data(piece)
    with pytest.raises(RemoteProtocolError, match="longer than 1000 octets"):
        decoder.next_event()


def test_a_complete_list_over_the_limit_is_refused_too() -> None:
    decoder = AttributeDecoder(max_size=10)
    decoder.receive_data(b"a\x00123456\0\0" + b"a\x001234567\0\0")
    assert decoder.next_event() == (("a", "123456"),)
    with pytest.raises(RemoteProtocolError, match="longer than 10 octets"):
        decoder.next_event()


def test_a_name_that_waits_for_its_value_counts() -> None:
    decoder = AttributeDecoder(max_size=10)
    decoder.receive_data(b"123456789\0")
    assert decoder.next_event() is NEED_DATA
    decoder.receive_data(b"x")
    with pytest.raises(RemoteProtocolError, match="longer than 10 octets"):
        decoder.next_event()


def test_negative_numbers_are_written_with_their_width() -> None:
    assert unsigned_int(-1) == "4294967295"
    assert unsigned_long(-1) == "18446744073709551615"


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers_come_back(small: int, large: int) -> None:
    assert parse_int(unsigned_int(small)) == small
    assert parse_long(unsigned_long(large)) == large


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1_0", "٣", "1x", "4294967296", "9" * 5000])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=re.compile("number")):
        parse_int(text)
