"""xtext and its UTF-8 cousin."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import xtext
from protocol.errors import RemoteProtocolError


@given(st.text() | st.binary().map(lambda octets: octets.decode("utf-8", "surrogateescape")))
def test_any_text_comes_back(text: str) -> None:
    encoded = xtext.encode(text)
    assert re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", encoded)
    assert xtext.decode(encoded) == text


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("plain;text@example", "plain;text@example"),
        ("a+b=c d", "a+2Bb+3Dc+20d"),
        ("a=b", "a+3Db"),
        ("a+b", "a+2Bb"),
        ("é\r\n", "+C3+A9+0D+0A"),
        ("", ""),
    ],
)
def test_what_is_not_plain_becomes_hex(text: str, encoded: str) -> None:
    assert xtext.encode(text) == encoded


@pytest.mark.parametrize("text", ["a b", "a=b", "+", "+4", "+4g", "+4a", "é", "a\r\n", "\ud800"])
def test_what_is_no_xtext_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="bad xtext"):
        xtext.decode(text)


def test_utf8_addresses_are_written_in_code_points() -> None:
    assert xtext.encode_utf8_address("jörg+x@bücher") == r"j\x{F6}rg\x{2B}x@b\x{FC}cher"
    assert xtext.encode_utf8_address("a\\b=c d😀") == r"a\x{5C}b\x{3D}c\x{20}d\x{1F600}"


@given(st.text())
def test_code_points_come_back(text: str) -> None:
    encoded = xtext.encode_utf8_address(text)
    assert encoded.isascii()
    assert re.sub(r"\\x\{([0-9A-F]+)\}", lambda match: chr(int(match[1], 16)), encoded) == text
