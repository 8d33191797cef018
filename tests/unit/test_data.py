"""Content on its way to the wire: the same under any cut, and never an early end of data."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.data import (
    Canonicaliser,
    ContentFacts,
    ContentScanner,
    DataEncoder,
    DotStuffer,
    encode,
    scan,
)


class Transform(Protocol):
    """What all transforms have in common."""

    def feed(self, block: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


NASTY = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\0", b"a", b"\xe9", b"\r\n.\r\n", b"\n.\n"]),
    max_size=40,
).map(b"".join)
# Sound at first sight, as what is stored should be; with one fault at most further on.
SOUND = st.lists(st.sampled_from([b"a\r\n", b"a", b"b.c", b"\r\n"]), max_size=4).map(b"".join)
FAULT = st.sampled_from([b"", b"\r", b"\n", b"\r.", b"\n.", b".\r\n", b"\0"])
SPOILT = st.tuples(st.just(b"x\r\n"), SOUND, FAULT, SOUND).map(b"".join)
CONTENT = NASTY | SPOILT | st.binary(max_size=60)
BLOCKS = st.lists(CONTENT | SOUND, max_size=6)
VOUCHED = partial(DataEncoder, vouched=True)


def run(make: Callable[[], Transform], blocks: Sequence[bytes]) -> bytes:
    """All that a fresh transform returns for these blocks."""
    transform = make()
    return b"".join([transform.feed(block) for block in blocks]) + transform.finish()


def octets(content: bytes) -> list[bytes]:
    """The smallest blocks."""
    return [content[at : at + 1] for at in range(len(content))]


def cut_at(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content in blocks that begin at these places."""
    places = [0, *sorted(cuts), len(content)]
    return [content[start:end] for start, end in pairwise(places)]


def canonical(content: bytes) -> bytes:
    """What the Canonicaliser should return, said in another way: one octet after another."""
    out = bytearray()
    for at, octet in enumerate(content):
        if octet == 0x0A:
            out += b"\r\n"
        elif octet == 0x0D:
            out += b"" if content[at + 1 : at + 2] == b"\n" else b" "
        else:
            out.append(octet or 0x20)
    if out and not out.endswith(b"\r\n"):
        out += b"\r\n"
    return bytes(out)


def unstuff(wire: bytes) -> bytes:
    """What a receiver that knows only CRLF makes of the wire (RFC 5321 section 4.5.2)."""
    message, dot, rest = (b"\r\n" + wire).partition(b"\r\n.\r\n")
    assert dot
    assert rest == b""
    return (message + b"\r\n").replace(b"\r\n.", b"\r\n")[2:]


@given(BLOCKS)
def test_canonical_form_is_the_same_under_any_cut(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    expected = canonical(whole)
    assert run(Canonicaliser, blocks) == expected
    assert run(Canonicaliser, [whole]) == expected
    assert run(Canonicaliser, octets(whole)) == expected


@given(CONTENT)
def test_s076_canonical_form_has_no_stray_line_end_and_no_nul(content: bytes) -> None:
    out = run(Canonicaliser, [content])
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", out)
    assert run(Canonicaliser, [out]) == out


@given(BLOCKS)
def test_encoding_is_the_same_under_any_cut(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    assert run(DataEncoder, blocks) == run(DataEncoder, [whole]) == run(DataEncoder, octets(whole))
    assert encode(whole) == run(DataEncoder, [whole])


@given(BLOCKS)
def test_s076_the_end_of_data_comes_once_and_last_and_the_receiver_gets_the_canonical_message(
    blocks: list[bytes],
) -> None:
    wire = run(DataEncoder, blocks)
    assert (b"\r\n" + wire).count(b"\r\n.\r\n") == 1
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", wire)
    assert unstuff(wire) == canonical(b"".join(blocks))


@given(CONTENT, st.lists(st.integers(0, 60)))
def test_a_vouched_content_is_encoded_like_any_other_under_any_cut(
    content: bytes, cuts: list[int]
) -> None:
    content = canonical(content)
    expected = run(DataEncoder, [content])
    assert run(VOUCHED, cut_at(content, cuts)) == expected == run(VOUCHED, octets(content))


@given(BLOCKS)
def test_no_line_end_of_any_sort_makes_an_end_of_data_of_what_was_vouched_for(
    blocks: list[bytes],
) -> None:
    wire = run(VOUCHED, blocks)
    body = wire.removesuffix(b".\r\n")
    assert len(body) == len(wire) - 3
    assert not body or body.endswith(b"\r\n")
    assert not re.search(rb"(?:^|[\r\n])\.(?!\.)|\0", body)


@given(CONTENT.map(lambda content: content.replace(b"\r", b"")), st.lists(st.integers(0, 60)))
def test_a_vouched_content_that_an_editor_saved_with_bare_lf_is_canonical_again(
    content: bytes, cuts: list[int]
) -> None:
    assert run(VOUCHED, cut_at(content, cuts)) == run(DataEncoder, [content])


@given(CONTENT, st.integers(0, 60))
def test_canonical_blocks_are_stuffed_the_same_under_any_cut(content: bytes, cut: int) -> None:
    content = canonical(content)
    whole = run(DotStuffer, [content])
    assert run(DotStuffer, [content[:cut], content[cut:]]) == whole == run(DataEncoder, [content])


@given(BLOCKS)
def test_facts_are_those_of_the_canonical_form(blocks: list[bytes]) -> None:
    scanner = ContentScanner()
    out = b"".join([scanner.feed(block) for block in blocks]) + scanner.finish()
    assert out == canonical(b"".join(blocks))
    assert scanner.facts == ContentFacts(
        octets=len(out),
        eight_bit=any(octet > 127 for octet in out),
    )
    assert scan(b"".join(blocks)) == (out, scanner.facts)


@pytest.mark.parametrize("make", [DataEncoder, VOUCHED])
@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a\n", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r.\rb", b"a . b\r\n.\r\n"),
        (b"a\r\r\nb", b"a \r\nb\r\n.\r\n"),
        (b"a\n\rb", b"a\r\n b\r\n.\r\n"),
        (b"a\0b\r", b"a b \r\n.\r\n"),
        (b"\r", b" \r\n.\r\n"),
        (b"\n", b"\r\n.\r\n"),
    ],
)
def test_what_is_sent_for_a_content(
    make: Callable[[], Transform], content: bytes, wire: bytes
) -> None:
    assert run(make, [content]) == wire == encode(content)


@pytest.mark.parametrize("make", [DataEncoder, VOUCHED])
def test_a_block_that_is_fit_to_be_sent_is_not_copied(make: Callable[[], Transform]) -> None:
    block = b"a line. And on.\r\n\r\n" * 1000
    encoder = make()
    assert encoder.feed(block) is block
    assert encoder.feed(rest := block[:-4]) is rest


def test_a_stuffer_adds_a_line_end_before_the_final_dot_where_one_is_missing() -> None:
    assert run(DotStuffer, [b"a"]) == b"a\r\n.\r\n"


def test_encoding_is_named_as_requests_name_it() -> None:
    assert scan(b"abc\n")[1].encoding == "7bit"
    assert scan("é".encode())[1].encoding == "8bit"
