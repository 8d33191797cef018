"""Large messages of the scenario big: what every contender may send without a change."""

import pytest

from bench.scenarios.big import Content, large_message
from protocol.data import DataEncoder


@pytest.mark.parametrize("content", ["base64", "text"])
@pytest.mark.parametrize("size", [1000, 1001, 99_999, 100_000, 100_030])
def test_a_large_message_is_of_its_size_and_has_nothing_to_change(
    content: Content, size: int
) -> None:
    octets = large_message(size, content)
    encoder = DataEncoder()
    assert len(octets) in {size - 1, size}
    assert encoder.feed(octets) + encoder.finish() == octets + b".\r\n"
    assert octets == large_message(size, content)  # in every turn the same


def test_an_attachment_has_no_dots_and_prose_has_them() -> None:
    assert b"." not in large_message(100_000, "base64")[1000:]
    assert large_message(100_000, "text").count(b".") > 1000
