"""Large messages of the scenario big: what every contender may send without a change."""

import pytest

from bench.harness.scenario import LoadError
from bench.scenarios.big import BASE64, TEXT, Load, large_message, scenario
from protocol.data import DataEncoder


@pytest.mark.parametrize("content", [BASE64, TEXT])
@pytest.mark.parametrize("size", [1000, 1001, 99_999, 100_000, 100_030])
def test_a_large_message_is_of_its_size_and_has_nothing_to_change(content: str, size: int) -> None:
    octets = large_message(size, content)
    encoder = DataEncoder()
    assert len(octets) in {size - 1, size}
    assert encoder.feed(octets) + encoder.finish() == octets + b".\r\n"
    assert octets == large_message(size, content)  # in every turn the same


def test_an_attachment_has_no_dots_and_prose_has_them() -> None:
    assert b"." not in large_message(100_000, BASE64)[1000:]
    assert large_message(100_000, TEXT).count(b".") > 1000


def test_a_content_that_it_has_no_idea_of_is_refused() -> None:
    with pytest.raises(LoadError, match="base64 or text, not 'html'"):
        scenario(Load(content="html"))
