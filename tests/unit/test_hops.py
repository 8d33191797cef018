"""How many hosts a message has passed, counted in a stream."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocol.hops import HopCounter


def hops(*blocks: bytes) -> int:
    counter = HopCounter()
    for block in blocks:
        counter.feed(block)
    return counter.count


def test_received_fields_of_the_header_count_and_nothing_else() -> None:
    field = b"Received: from a.example\r\n\tby b.example; now\r\n"
    assert hops(field * 3 + b"Subject: Received: x\r\nX-Received: y\r\n\r\n" + field) == 3
    assert hops(b"RECEIVED: a\r\nreceived:b\r\n") == 2
    assert hops(b"\r\n" + field) == 0  # no header at all
    assert hops(b"Subject: x\r\n received: continued\r\n\r\n") == 0
    assert hops() == 0


PIECES = st.lists(
    st.sampled_from([b"Received:", b"received: x", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"ReceiveD"])
)


@given(PIECES.map(b"".join), st.lists(st.integers(0, 100)))
def test_the_count_does_not_depend_on_the_cuts(content: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    pieces = [content[start:end] for start, end in pairwise(edges)]
    single = [bytes([octet]) for octet in content]
    assert hops(*pieces) == hops(content) == hops(*single)
