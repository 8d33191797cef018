"""Long lines are found and broken where the limit says, however the stream is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.line_length import LineFolder, has_longer_line

LINES = st.lists(
    st.sampled_from([b"a", b"bc", b".", b" ", b"\r\n", b"\r\n\r\n", b"d" * 9, b"\xc3\xbc"]),
    max_size=30,
).map(b"".join)
LIMIT = st.integers(2, 12)


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content in blocks that begin at these places."""
    edges = [0, *sorted(at for at in cuts if at < len(content)), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


def fold(blocks: list[bytes], limit: int) -> bytes:
    """What a fresh folder makes of these blocks."""
    folder = LineFolder(limit)
    return b"".join([folder.feed(block) for block in blocks]) + folder.finish()


def folded(content: bytes, limit: int) -> bytes:
    """The same, said in another way: octet after octet."""
    out, column = bytearray(), 0
    for at, octet in enumerate(content):
        ends = content[at : at + 2] == b"\r\n"
        if not ends and octet != 0x0A and column == limit:
            out += b"\r\n "
            column = 1
        out.append(octet)
        column = 0 if octet == 0x0A else column + (not ends)
    return bytes(out)


@given(LINES, LIMIT, st.lists(st.integers(0, 40)))
def test_s070_lines_are_broken_at_the_limit_under_any_cut(
    content: bytes, limit: int, cuts: list[int]
) -> None:
    expected = folded(content, limit)
    assert fold([content], limit) == expected
    assert fold(cut(content, cuts), limit) == expected
    assert fold([bytes([octet]) for octet in content], limit) == expected


@given(LINES, LIMIT)
def test_no_line_is_longer_than_the_limit_and_nothing_else_has_changed(
    content: bytes, limit: int
) -> None:
    out = fold([content], limit)
    assert max(map(len, out.split(b"\r\n"))) <= limit
    assert out.replace(b"\r\n", b"").replace(b" ", b"") == content.replace(b"\r\n", b"").replace(
        b" ", b""
    )


@given(LINES, LIMIT, st.integers(0, 12))
def test_a_long_line_is_seen(content: bytes, limit: int, column: int) -> None:
    column = min(column, limit)
    lines = (b"x" * column + content).removesuffix(b"\r").split(b"\r\n")
    assert has_longer_line(content, limit, column) == (max(map(len, lines)) > limit)


@given(
    st.lists(st.integers(0, 13), min_size=20, max_size=200), st.integers(2, 12), st.integers(0, 12)
)
def test_a_long_line_is_seen_among_many(lengths: list[int], limit: int, column: int) -> None:
    column = min(column, limit)
    content = b"".join(b"x" * min(length, limit) + b"\r\n" for length in lengths)
    first = content.index(b"\r\n")
    assert has_longer_line(content, limit, column) == (first + column > limit)
    longer = content + b"x" * (limit + 1) + b"\r\n" + content
    assert has_longer_line(longer, limit)


@pytest.mark.parametrize("length", [997, 998, 999])
def test_s070_lines_of_up_to_998_octets_stay_as_they_are(length: int) -> None:
    block = b"short\r\n" + b"x" * length + b"\r\nshort\r\n"
    folder = LineFolder(998)
    out = folder.feed(block)
    if length <= 998:
        assert out is block
        assert not folder.folded
    else:
        assert out == b"short\r\n" + b"x" * 998 + b"\r\n x\r\nshort\r\n"
        assert folder.folded


def test_a_line_that_grows_block_by_block_is_broken_once_it_is_too_long() -> None:
    folder = LineFolder(10)
    assert [folder.feed(block) for block in (b"12345", b"67890", b"\r", b"\n1234567890", b"1")] == [
        b"12345",
        b"67890",
        b"",
        b"\r\n1234567890",
        b"\r\n 1",
    ]
