"""A message as commands get it: header fields, recipients in them, canonical content."""

import errno
import io
import os
import tempfile
from typing import Never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.data import scan
from protocol.request import SendOptions
from worker.cli.exits import CommandError
from worker.cli.message import (
    HEADER_LIMIT,
    HeaderError,
    header_recipients,
    read_message,
    send_options,
    spool,
)
from worker.content import FileContent, InlineContent


def recipients(header: bytes) -> list[str]:
    return header_recipients(read_message(io.BytesIO(header + b"\nbody\n")))


class Unreadable(io.BytesIO):
    """A file that ends in a fault."""

    def read(self, size: int | None = -1, /) -> bytes:
        """What is there; instead of an end an error."""
        if octets := super().read(size):
            return octets
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("octets", [b"", b"Subject: a\n\nbody\n"])
def test_a_message_that_cannot_be_read_is_said_to_be(octets: bytes) -> None:
    with pytest.raises(CommandError, match="cannot be read: Input/output error") as caught:
        list(read_message(Unreadable(octets)).blocks())
    assert caught.value.status == os.EX_IOERR


def test_fields_are_taken_apart_and_given_back_as_they_were() -> None:
    octets = b"Subject: a\r\n  b\r\nX-Odd : c\nTo:d@e\n\nBody: no field\n\n"
    message = read_message(io.BytesIO(octets))
    assert [(field.name, field.value) for field in message.fields] == [
        ("subject", "a b"),
        ("x-odd", "c"),
        ("to", "d@e"),
    ]
    assert message.separated
    assert b"".join(message.blocks()) == octets


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\nbody",
        b"\r\nbody",
        b"no header at all\nSubject: x\n\n",
        b" begins with a fold\n",
        b"Subject: no end",
        b"Subject: x\nthis is no field\n\nbody",
        b"Subject: x\n \t \nbody",
        b"x" * (HEADER_LIMIT + 5),
        b"A: b\n" * 300_000 + b"\nbody",
    ],
)
def test_a_strange_header_loses_nothing(octets: bytes) -> None:
    assert b"".join(read_message(io.BytesIO(octets)).blocks()) == octets


@given(
    st.lists(st.sampled_from([b"A: b", b"\n", b"\r\n", b" ", b":", b"\r", b"x", b"\0", b"\xc3"]))
)
def test_no_octet_is_lost_whatever_the_message(pieces: list[bytes]) -> None:
    octets = b"".join(pieces)
    assert b"".join(read_message(io.BytesIO(octets)).blocks()) == octets


def test_recipients_come_from_to_cc_and_bcc_each_once() -> None:
    header = (
        b'To: Bob <b@y.example>, "C, D" <c@y.example>,\n d@y.example (a comment)\n'
        b"Cc: b@y.example, friends: e@y.example, f@y.example;\n"
        b'Bcc: "g h"@y.example\nFrom: no@y.example\n'
    )
    assert recipients(header) == [
        "b@y.example",
        "c@y.example",
        "d@y.example",
        "e@y.example",
        "f@y.example",
        "g h@y.example",
    ]


def test_resent_fields_count_alone() -> None:
    assert recipients(b"To: a@y.example\nResent-To: b@y.example\n") == ["b@y.example"]


def test_an_empty_group_is_no_recipient() -> None:
    assert recipients(b"To: undisclosed-recipients:;\n") == []


def test_recipients_may_be_in_any_script() -> None:
    assert recipients("To: Jürgen <jürgen@bücher.example>\n".encode()) == ["jürgen@bücher.example"]


def test_a_bad_address_names_its_field() -> None:
    with pytest.raises(HeaderError, match=r"^cc: field: "):
        recipients(b"To: a@y.example\nCc: b@@\n")


def test_a_removed_field_goes_with_its_folds() -> None:
    message = read_message(io.BytesIO(b"Bcc: a@b,\n c@d\nSubject: x\n\nbody"))
    message.remove("bcc")
    assert b"".join(message.blocks()) == b"Subject: x\n\nbody"


@pytest.mark.parametrize(
    ("recipient", "sender", "requested", "options"),
    [
        ("a@b", "c@d", None, SendOptions.NONE),
        ("ü@b", "c@d", None, SendOptions.UTF8_RECIPIENT | SendOptions.SMTPUTF8_REQUESTED),
        ("a@b", "ü@d", None, SendOptions.UTF8_SENDER | SendOptions.SMTPUTF8_REQUESTED),
        ("a@bücher.example", "c@d", None, SendOptions.NONE),
        ("ü@b", "c@d", False, SendOptions.UTF8_RECIPIENT),
        ("a@b", "c@d", True, SendOptions.SMTPUTF8_REQUESTED),
    ],
)
def test_smtputf8_is_asked_for_where_an_address_needs_it(
    recipient: str, sender: str, requested: bool | None, options: SendOptions
) -> None:
    found = send_options([recipient], sender, eight_bit_header=False, requested=requested)
    assert found == options


def test_an_eight_bit_header_alone_does_not_ask_for_smtputf8() -> None:
    options = send_options(["a@b"], "c@d", eight_bit_header=True)
    assert options == SendOptions.UTF8_HEADER
    assert not options.requires_smtputf8


def test_a_small_content_stays_in_memory_in_canonical_form() -> None:
    content, facts = spool([b"a\n", b"\xe9\r", b"\nb"])
    assert content == InlineContent(b"a\r\n\xe9\r\nb\r\n")
    assert (facts.octets, facts.encoding) == (9, "8bit")


def test_a_large_content_goes_to_a_file() -> None:
    blocks = [b"x" * 70 + b"\n"] * 3_000
    content, facts = spool(blocks)
    assert isinstance(content, FileContent)
    assert os.pread(content.fd, 10**6, 0) == scan(b"".join(blocks))[0]
    content.close()
    assert facts.octets == 72 * 3_000


def test_a_large_content_that_cannot_be_kept_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> Never:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(CommandError, match=r"TMPDIR.*: No space left on device") as caught:
        spool([b"x\n"])
    assert caught.value.status == os.EX_TEMPFAIL
