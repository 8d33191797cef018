"""Commands: their octets, and what must never become octets."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import xtext
from protocol.address import check_address, unquote
from protocol.command import (
    MAX_LINE,
    Command,
    Data,
    Ehlo,
    EndOfData,
    Helo,
    Lhlo,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    Xforward,
)
from protocol.errors import LocalProtocolError

TEXT = st.text(
    st.sampled_from('ab.@<>" \\,:;()[]\r\n\0é日\x85\udcff') | st.characters(codec="utf-8"),
    max_size=24,
)


@pytest.mark.parametrize(
    ("command", "wire"),
    [
        (Helo("mail.example"), b"HELO mail.example\r\n"),
        (Ehlo("[192.0.2.1]"), b"EHLO [192.0.2.1]\r\n"),
        (Lhlo("mail.example"), b"LHLO mail.example\r\n"),
        (Mail(""), b"MAIL FROM:<>\r\n"),
        (Mail("a@b", ("SIZE=1", "BODY=7BIT")), b"MAIL FROM:<a@b> SIZE=1 BODY=7BIT\r\n"),
        (Mail("a b@x"), b'MAIL FROM:<"a b"@x>\r\n'),
        (Mail("a b@x", quote=False), b"MAIL FROM:<a b@x>\r\n"),
        (Rcpt("a.@x"), b'RCPT TO:<"a."@x>\r\n'),
        (Rcpt("a.@x", quote=False), b"RCPT TO:<a.@x>\r\n"),
        (Rcpt("postmaster"), b"RCPT TO:<postmaster>\r\n"),
        (Rcpt("a@b", ("NOTIFY=NEVER",)), b"RCPT TO:<a@b> NOTIFY=NEVER\r\n"),
        (Rcpt("jörg@x"), "RCPT TO:<jörg@x>\r\n".encode()),
        (Rcpt("j\udcf6rg@x"), b"RCPT TO:<j\xf6rg@x>\r\n"),
        (Rcpt("a@[192.0.2.1]"), b"RCPT TO:<a@[192.0.2.1]>\r\n"),
        (Data(), b"DATA\r\n"),
        (EndOfData(), b""),
        (EndOfData(3), b""),
        (Rset(), b"RSET\r\n"),
        (Noop(), b"NOOP\r\n"),
        (Quit(), b"QUIT\r\n"),
        (
            Xforward((("NAME", "a b"), ("ADDR", "::1"), ("HELO", ""))),
            b"XFORWARD NAME=a+20b ADDR=::1 HELO=[UNAVAILABLE]\r\n",
        ),
    ],
)
def test_the_octets_of_a_command(command: Command, wire: bytes) -> None:
    assert command.to_wire() == wire


@pytest.mark.parametrize(
    "command",
    [
        Ehlo("a\r\nRSET"),
        Ehlo("a b"),
        Ehlo(""),
        Helo("a\0"),
        Lhlo("a\x85b"),
        Mail("a\r\nRSET@x"),
        Mail("a@x\nRSET"),
        Mail("a\0@x"),
        Mail("a\x7f@x"),
        Mail("a\x85@x"),
        Mail("a@b> SIZE=1"),
        Mail("a@b> SIZE=1", quote=False),
        Mail("a@x y"),
        Mail("a@"),
        Mail("a@x", ("SIZE=1 BODY=7BIT",)),
        Mail("a@x", ("SIZE=1\r\nRSET",)),
        Mail("a@x", ("",)),
        Mail("\ud800@x"),
        Rcpt(""),
        Rcpt("a\r\nb@x"),
        Rcpt("a\r\nb@x", quote=False),
        Rcpt("a" * MAX_LINE + "@x"),
        EndOfData(0),
        Xforward(()),
        Xforward((("NAME", "\ud800"),)),
        Xforward((("NA ME", "x"),)),
    ],
)
def test_what_could_end_the_line_early_or_be_read_in_two_ways_is_refused(command: Command) -> None:
    with pytest.raises(LocalProtocolError):
        command.to_wire()


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("a@evil@good", b'"a@evil"@good'),
        ("a>b@good", b'"a>b"@good'),
        ("@evil:a@good", b'"@evil:a"@good'),
        ('a"b@good', b'"a\\"b"@good'),
    ],
)
def test_an_ambiguous_local_part_is_quoted_even_where_quoting_is_off(
    address: str, path: bytes
) -> None:
    assert Rcpt(address, quote=False).to_wire() == b"RCPT TO:<" + path + b">\r\n"


@given(TEXT, st.booleans())
def test_a_path_is_one_line_and_names_the_address_it_was_given(address: str, quote: bool) -> None:
    try:
        wire = Mail(address, quote=quote).to_wire()
    except LocalProtocolError:
        return
    assert re.fullmatch(rb"MAIL FROM:<[^\x00-\x1f\x7f]*>\r\n", wire)
    path = wire[11:-3].decode("utf-8", "surrogateescape")
    # Surrogate escapes that happen to make up UTF-8 come back as the character they make up.
    same = address.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    if quote:
        assert unquote(path) == same
    # However it is written, the domain is what follows the last @.
    assert path.rpartition("@")[2] == same.rpartition("@")[2] or "@" not in same


@given(TEXT)
def test_a_checked_address_can_always_be_sent(address: str) -> None:
    try:
        check_address(address)
    except ValueError:
        return
    assert Rcpt(address).to_wire().endswith(b"\r\n")


@given(st.lists(TEXT, max_size=3).map(tuple))
def test_parameters_never_split_a_line(params: tuple[str, ...]) -> None:
    try:
        wire = Mail("a@b", params).to_wire()
    except LocalProtocolError:
        return
    assert wire.count(b"\r") == wire.count(b"\n") == 1
    assert wire[:-2].split(b" ")[2:] == [
        param.encode("utf-8", "surrogateescape") for param in params
    ]


@given(st.text(max_size=40))
def test_xforward_values_come_back_from_xtext(value: str) -> None:
    try:
        wire = Xforward((("NAME", value),)).to_wire()
    except LocalProtocolError:
        return
    word = wire.decode("ascii").removeprefix("XFORWARD NAME=").removesuffix("\r\n")
    assert word == "[UNAVAILABLE]" if not value else xtext.decode(word) == value


def test_phrases_complete_in_reply_to() -> None:
    assert Mail("").phrase == "MAIL FROM command"
    assert Rcpt("a").phrase == "RCPT TO command"
    assert Data.phrase == "DATA command"
    assert EndOfData.phrase == "end of DATA command"
    assert Ehlo("x").phrase == "EHLO command"
