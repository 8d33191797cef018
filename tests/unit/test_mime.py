"""What the parser makes of messages: events that are the message again, however it was cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.mime import Body, Event, Header, HeaderRest, MimeError, MimeParser, Place, Separator

HEAD = b"From: a@x.example\r\nSubject: b\r\n"
CRUMBS = st.sampled_from(
    [
        *(b"\r\n", b"-", b"--", b"--B\r\n", b"--B--\r\n", b"--C\r\n", b"x", b" y\r\n", b"\xe4\r\n"),
        b"Content-Type: multipart/mixed; boundary=B\r\n",
        b'Content-Type: multipart/signed; boundary="C"\r\n',
        b"Content-Type: message/rfc822\r\n",
        b"Content-Type: message/partial\r\n",
        b"content-transfer-encoding: 8bit\r\n",
        b"Content-Transfer-Encoding: 7bit\r\n",
        b"Subject: " + b"long " * 5 + b"\r\n\tfolded\r\n",
        b"X-Long: " + b"l" * 70 + b"\r\n and on\r\n",
        b"no field\r\n",
    ]
)
START = st.sampled_from([b"", b"Content-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n"])
MESSAGES = st.tuples(START, st.lists(CRUMBS, max_size=25).map(b"".join)).map(b"".join)
CUTS = st.lists(st.integers(0, 300), max_size=8)


def parse(blocks: list[bytes], *, convert: bool = False, parts: bool = True) -> list[Event]:
    """The events of these blocks, pieces of one body joined."""
    parser = MimeParser(
        convert=convert, parts=parts, nesting_limit=3, boundary_limit=4, header_limit=60
    )
    events: list[Event] = []
    try:
        for block in blocks:
            events += parser.feed(block)
        events += parser.finish()
    except MimeError:
        return []
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Body) and isinstance(last, Body) and event.convert == last.convert:
            joined[-1] = Body(last.octets + event.octets, event.convert)
        elif isinstance(event, HeaderRest) and isinstance(last, HeaderRest):
            joined[-1] = HeaderRest(last.octets + event.octets)
        else:
            joined.append(event)
    return joined


def written(events: list[Event]) -> bytes:
    """The message that the events are."""
    out = bytearray()
    for event in events:
        match event:
            case Header():
                out += event.text.replace(b"\n", b"\r\n") + b"\r\n"
            case Separator():
                out += b"\r\n"
            case HeaderRest() | Body():
                out += event.octets
    return bytes(out)


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content in blocks that begin at these places."""
    edges = [0, *sorted(at for at in cuts if at < len(content)), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("convert", [False, True])
@given(message=MESSAGES, cuts=CUTS)
def test_events_are_the_same_under_any_cut(convert: bool, message: bytes, cuts: list[int]) -> None:
    whole = parse([message], convert=convert)
    assert parse(cut(message, cuts), convert=convert) == whole
    assert parse([bytes([octet]) for octet in message], convert=convert) == whole


@given(MESSAGES, st.booleans())
def test_the_events_are_the_message_again(message: bytes, parts: bool) -> None:
    message = HEAD + b"\r\n" + message
    if not message.endswith(b"\r\n"):
        message += b"\r\n"  # a line that was kept gets it
    out = written(parse([message], parts=parts))
    out = out.removesuffix(b"\r\n") + b"\r\n"
    # A field longer than the limit is folded there.
    assert out.replace(b"\r\n ", b"").replace(b"\r\n", b"") == message.replace(
        b"\r\n ", b""
    ).replace(b"\r\n", b"")


def places(message: bytes) -> list[tuple[Place, bytes]]:
    """The fields, and where they stand."""
    return [(event.place, event.name) for event in parse([message]) if isinstance(event, Header)]


def test_fields_are_found_in_parts_and_in_messages_inside() -> None:
    message = (
        b"Content-Type: multipart/mixed;\r\n boundary=B\r\n\r\nX: prolog\r\n"
        b"--B\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nX: body\r\n"
        b"--B junk\r\nX-Part : 1\r\n\r\nX: body\r\n--B--\r\nX: epilogue\r\n"
    )
    assert places(message) == [
        (Place.PRIMARY, b"Content-Type"),
        (Place.PART, b"Content-Type"),
        (Place.NESTED, b"Subject"),
        (Place.PART, b"X-Part"),
    ]


def test_parts_of_a_digest_are_messages() -> None:
    message = (
        b"Content-Type: multipart/digest; boundary=B\r\n\r\n--B\r\n\r\nSubject: inner\r\n\r\nx\r\n"
        b"--B\r\nContent-Type: text/plain\r\n\r\nX: body\r\n--B--\r\n"
    )
    assert places(message)[1:] == [(Place.NESTED, b"Subject"), (Place.PART, b"Content-Type")]


def test_an_outer_boundary_ends_what_was_not_closed() -> None:
    message = (
        b"Content-Type: multipart/mixed; boundary=OUT\r\n\r\n--OUT\r\n"
        b"Content-Type: multipart/mixed; boundary=IN\r\n\r\n--IN\r\n\r\nx\r\n"
        b"--OUT\r\nX-Part: 1\r\n\r\n--IN\r\nX-Text: 1\r\n"
    )
    assert places(message)[-1] == (Place.PART, b"X-Part")


def test_a_header_that_ends_without_an_empty_line_gets_one_if_it_is_the_first() -> None:
    assert written(parse([b"X: 1\r\nbody\r\n"])) == b"X: 1\r\n\r\nbody\r\n"


def test_s072_only_the_first_octets_of_a_boundary_count() -> None:
    message = (
        b"Content-Type: multipart/mixed; boundary=12345\r\n\r\n--1234X\r\nX-Part: 1\r\n\r\n"
        b"--1234--\r\n"
    )
    assert places(message)[1:] == [(Place.PART, b"X-Part")]


def nested(depth: int) -> bytes:
    """A multipart in a multipart in ..."""
    return b"".join(
        b"Content-Type: multipart/mixed; boundary=%d_\r\n\r\n--%d_\r\n" % (level, level)
        for level in range(depth)
    )


def test_s073_what_is_nested_too_deeply_is_text_or_an_error_in_a_conversion() -> None:
    assert len(places(nested(3) + b"X: 1\r\n")) == 4
    assert len(places(nested(4) + b"X: 1\r\n")) == 4
    assert parse([nested(3)], convert=True)
    parser = MimeParser(convert=True, nesting_limit=3)
    with pytest.raises(MimeError, match="nesting"):
        parser.feed(nested(4) + b"\r\n")


@pytest.mark.parametrize("piece", [b"a:\r\n", b" \r\n", b"--B\r\n\r\n", b"--\r\n", b"\r\n--C\r\n"])
def test_a_block_full_of_small_things_is_read_in_one_go(piece: bytes) -> None:
    # Quadratic work would take minutes.
    message = b"Content-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n" + piece * 200_000
    parser = MimeParser()
    parser.feed(message)
    parser.finish()


def test_what_is_kept_is_bounded() -> None:
    for start in (b"", b"X: ", b"X: 1\r\n ", b"\r\n", nested(1), nested(1) + b"\r\n--"):
        parser = MimeParser(header_limit=1000)
        parser.feed(start)
        for _ in range(50):
            parser.feed(b"-" * 1000)
            assert len(parser._buffer) + sum(map(len, parser._lines)) < 4_000
