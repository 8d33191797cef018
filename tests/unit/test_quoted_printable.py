"""Quoted-printable text decodes to what was encoded, and is fit for any server."""

import itertools
import quopri
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import quoted_printable
from protocol.quoted_printable import QuotedPrintableEncoder

TEXT = st.lists(
    st.sampled_from(
        [b"a", b"=", b" ", b"\t", b".", b"\r\n", b"\xc3\xa4", b"\x01", b"word " * 9, b"x" * 40]
    ),
    max_size=40,
).map(b"".join) | st.binary(max_size=60).map(
    lambda octets: octets.replace(b"\r", b"").replace(b"\n", b"\r\n")
)
CUTS = st.lists(st.integers(0, 200))


@pytest.fixture(params=[7, 65_536], autouse=True, scope="module")
def piece(request: pytest.FixtureRequest) -> int:
    """Once with pieces so small that most lines have several."""
    return int(request.param)


def encode(blocks: list[bytes], piece: int) -> bytes:
    """What a fresh encoder makes of these blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quoted_printable, "PIECE", piece)
        encoder = QuotedPrintableEncoder()
        return b"".join([encoder.feed(block) for block in blocks]) + encoder.finish()


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    """The content in blocks that begin at these places."""
    edges = [0, *sorted(at for at in cuts if at < len(content)), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(edges)]


@given(content=TEXT, cuts=CUTS)
@example(content=b"a" * 14 + b"\r\n", cuts=[])
def test_the_text_is_the_same_under_any_cut(piece: int, content: bytes, cuts: list[int]) -> None:
    whole = encode([content], piece)
    assert encode(cut(content, cuts), piece) == whole
    assert encode([bytes([octet]) for octet in content], piece) == whole


@given(content=TEXT)
def test_s195_the_text_decodes_to_what_was_encoded(piece: int, content: bytes) -> None:
    assert quopri.decodestring(encode([content], piece)) == content


@given(content=TEXT)
def test_s195_lines_are_short_printable_and_do_not_end_in_white_space(
    piece: int, content: bytes
) -> None:
    text = encode([content], piece)
    assert re.fullmatch(rb"(?:[\t -~]{0,76}\r\n)*[\t -~]{0,76}", text)
    assert not re.search(rb"[ \t](?:\r\n|\Z)", text)


def test_what_is_kept_of_an_endless_line_is_bounded() -> None:
    encoder = QuotedPrintableEncoder()
    for _ in range(40):
        encoder.feed(b"x" * 10_000)
        assert len(encoder._line) <= quoted_printable.PIECE
