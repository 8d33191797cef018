"""Replies: octets in, replies out, whatever the segments; limits, garbage, status codes."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.reply import LINE_LIMIT, NEED_DATA, Reply, ReplyParser

LINES = st.sampled_from(
    [b"250-a\r\n", b"250 ok\r\n", b"354\n", b"5", b"\r", b"\n", b"garbage\r\n", b"550 5.1.1 no\r\n"]
)
WIRE = st.lists(LINES | st.binary(max_size=8)).map(b"".join)


def events(chunks: Iterable[bytes], max_size: int = 40) -> list[object]:
    """Everything the parser says about these chunks, its final error included."""
    parser, seen = ReplyParser(max_size), list[object]()
    try:
        for chunk in chunks:
            parser.receive_data(chunk)
            while (event := parser.next_event()) is not NEED_DATA:
                seen.append(event)
    except RemoteProtocolError as exc:
        seen.append(str(exc))
    return seen


def parse(wire: bytes) -> Reply:
    """The only reply of `wire`."""
    parser = ReplyParser()
    parser.receive_data(wire)
    reply = parser.next_event()
    assert isinstance(reply, Reply)
    assert parser.next_event() is NEED_DATA
    assert not parser.unread
    return reply


@given(st.lists(WIRE))
def test_replies_do_not_depend_on_how_the_stream_is_cut(chunks: list[bytes]) -> None:
    wire = b"".join(chunks)
    assert events(chunks) == events([wire]) == events(bytes([octet]) for octet in wire)


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_s182_nothing_but_a_protocol_error_comes_of_random_octets(chunks: list[bytes]) -> None:
    for event in events(chunks, max_size=500):
        if isinstance(event, Reply):
            assert event.text.isprintable()
            assert event.dsn[0] in "245"
            assert 0 <= event.code <= 999


@given(WIRE)
def test_there_is_something_unread_until_the_last_reply_was_returned(wire: bytes) -> None:
    parser = ReplyParser()
    parser.receive_data(wire)
    left = [parser.unread]
    while parser.next_event() is not NEED_DATA:
        left.append(parser.unread)
    assert left[0] == bool(wire)
    assert all(left[:-1])
    parser.receive_data(b"x")
    assert parser.unread


def test_a_reply_of_one_line_has_code_text_and_status() -> None:
    reply = parse(b"550 5.1.1 no such user\r\n")
    assert reply == Reply(550, ("5.1.1 no such user",), enhanced="5.1.1")
    assert reply.text == "550 5.1.1 no such user"
    assert reply.dsn == "5.1.1"


def test_lines_are_joined_by_a_space_and_continuations_lose_their_code() -> None:
    reply = parse(b"550-5.7.1 We do not\r\n550-\r\n550 5.7.1 like you\r\n")
    assert reply.lines == ("5.7.1 We do not", "", "5.7.1 like you")
    assert reply.text == "550 5.7.1 We do not 5.7.1 like you"


@pytest.mark.parametrize(
    ("wire", "dsn"),
    [
        (b"250 2.1.5 ok\r\n", "2.1.5"),
        (b"250 ok\r\n", "2.0.0"),
        (b"450 4.2.0 greylisted\r\n", "4.2.0"),
        (b"450 5.2.0 of the wrong class\r\n", "4.0.0"),
        (b"550 2.0.0 of the wrong class\r\n", "5.0.0"),
        (b"550   5.1.1 after spaces\r\n", "5.1.1"),
        (b"550 5.1.1\r\n", "5.1.1"),
        (b"550 5.1.1, with a comma\r\n", "5.0.0"),
        (b"550 5.1111.1 with too many digits\r\n", "5.0.0"),
        (b"550 5.1 with too few parts\r\n", "5.0.0"),
        (b"550-5.1.1 in the first line\r\n550 not in the last\r\n", "5.0.0"),
        (b"354 go ahead\r\n", "4.5.0"),
        (b"690 what\r\n", "4.5.0"),
    ],
)
def test_s039_the_status_code_counts_only_if_its_class_is_that_of_the_reply(
    wire: bytes, dsn: str
) -> None:
    assert parse(wire).dsn == dsn


@pytest.mark.parametrize(
    ("code", "positive", "intermediate", "transient", "permanent"),
    [
        (250, True, False, False, False),
        (354, False, True, False, False),
        (421, False, False, True, False),
        (599, False, False, False, True),
        (199, False, False, False, False),
        (600, False, False, False, False),
    ],
)
def test_the_first_digit_decides(
    code: int, positive: bool, intermediate: bool, transient: bool, permanent: bool
) -> None:
    reply = Reply(code, ("x",))
    assert reply.positive is positive
    assert reply.intermediate is intermediate
    assert reply.transient is transient
    assert reply.permanent is permanent


def test_s039_garbage_lines_are_kept_and_spoil_the_session() -> None:
    reply = parse(b"what is this\r\n25 short\r\n250x\r\n250 ok\r\n")
    assert reply.lines == ("what is this", "25 short", "250x", "ok")
    assert reply.code == 250
    assert not reply.well_formed


def test_the_code_of_the_last_line_counts_and_differing_codes_spoil_the_session() -> None:
    reply = parse(b"250-fine\r\n550 not fine\r\n")
    assert reply.code == 550
    assert not reply.well_formed


@pytest.mark.parametrize("wire", [b"000 nothing\r\n", b"199 low\r\n", b"600 high\r\n"])
def test_a_code_that_smtp_does_not_have_spoils_the_session(wire: bytes) -> None:
    assert not parse(wire).well_formed
    assert parse(wire).text == wire.decode().strip()


@pytest.mark.parametrize("wire", [b"250\r\n", b"250 \r\n", b"250\n", b"250 \n"])
def test_a_reply_may_have_no_text(wire: bytes) -> None:
    reply = parse(wire)
    assert reply.text == "250"
    assert reply.well_formed


def test_s039_what_cannot_be_printed_becomes_a_question_mark() -> None:
    wire = b"550 a\0b\x1b[31m\xff \xc3\xa9 \xe2\x80\xae\ttab \r inside\r\n"
    assert parse(wire).text == "550 a?b?[31m? é ??tab ? inside"


def test_s039_a_long_line_is_cut_and_the_rest_of_it_dropped() -> None:
    reply = parse(b"250 " + b"x" * 5000 + b"\r\n")
    assert reply.lines == ("x" * (LINE_LIMIT - 4),)
    assert reply.well_formed


def test_s039_a_line_of_exactly_the_limit_is_kept_whole() -> None:
    assert parse(b"250 " + b"x" * (LINE_LIMIT - 4) + b"\r\n").lines == ("x" * (LINE_LIMIT - 4),)


@pytest.mark.parametrize("piece", [b"250-more\r\n", b"x", b"garbage\r\n", b"\n", b"250-\xff\xff\n"])
def test_s182_an_endless_reply_is_an_error_and_stays_one(piece: bytes) -> None:
    parser = ReplyParser(max_size=1000)
    for _ in range(1000 // len(piece)):
        parser.receive_data(piece)
        assert parser.next_event() is NEED_DATA
    parser.receive_data(piece)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="longer than 1000 octets"):
            parser.next_event()


def test_the_limit_is_for_one_reply_not_for_a_segment_of_many() -> None:
    parser = ReplyParser(max_size=100)
    parser.receive_data(b"250 ok\r\n" * 1000)
    for _ in range(1000):
        assert parser.next_event() == Reply(250, ("ok",))
    assert parser.next_event() is NEED_DATA


def test_lines_of_an_unfinished_reply_are_unread() -> None:
    parser = ReplyParser()
    parser.receive_data(b"250 ok\r\n250-and\r\n25")
    assert parser.next_event() == Reply(250, ("ok",))
    assert parser.unread
    assert parser.next_event() is NEED_DATA
    assert parser.unread
    parser.receive_data(b"0 end\r\n")
    assert parser.next_event() == Reply(250, ("and", "end"))
    assert not parser.unread


def test_what_is_ready_is_what_will_be_returned_next() -> None:
    parser = ReplyParser()
    parser.receive_data(b"250 ok\r\n250 2.1.5 ok\r\n250-more\r\n250 lines\r\n354 go\r\n22")
    assert [reply.text for reply in parser.ready] == ["250 ok", "250 2.1.5 ok"]
    assert parser.unparsed
    texts = [event.text for _ in range(4) if isinstance(event := parser.next_event(), Reply)]
    assert texts == ["250 ok", "250 2.1.5 ok", "250 more lines", "354 go"]
    parser.receive_data(b"0 hello\r\n")
    assert [reply.code for reply in parser.ready] == [220]
    assert not parser.unparsed
