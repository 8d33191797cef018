"""The sendmail command: its flags, the lone dot, the header fields it adds."""

import io
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from protocol.request import Notify, Ret
from worker.cli.exits import CommandError
from worker.cli.message import Message, read_message
from worker.cli.order import OrderError
from worker.cli.sendmail import Call, SubmittedText, complete_header, parse_arguments
from worker.config.config import Config
from worker.content import BLOCK_SIZE

CONFIG = Config.from_mapping({"myhostname": "mail.x.example", "myorigin": "x.example"})


def text(octets: bytes, *, dot_ends: bool) -> bytes:
    message = read_message(SubmittedText(io.BytesIO(octets), dot_ends=dot_ends))
    return b"".join(message.blocks())


def completed(octets: bytes, sender: str = "a@x.example", name: str = "") -> Message:
    message = read_message(io.BytesIO(octets))
    complete_header(message, sender, name, CONFIG, 0.0)
    return message


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["b@y.example"], Call(recipients=["b@y.example"])),
        (["b@y.example, c@y.example", "d"], Call(recipients=["b@y.example", "c@y.example", "d"])),
        (["-f", "a@x.example", "b@y"], Call(sender="a@x.example", recipients=["b@y"])),
        (["-fa@x.example", "b@y"], Call(sender="a@x.example", recipients=["b@y"])),
        (["-r", "<>", "b@y"], Call(sender="", recipients=["b@y"])),
        (["-f", "", "b@y"], Call(sender="", recipients=["b@y"])),
        (["-ti"], Call(from_header=True, dot_ends=False)),
        (["-t", "-oi", "-oem", "-odb"], Call(from_header=True, dot_ends=False)),
        (["-o", "i", "-om", "b@y"], Call(dot_ends=False, recipients=["b@y"])),
        (["-F", "J. Doe", "-FJane", "b@y"], Call(full_name="Jane", recipients=["b@y"])),
        (["-B8BITMIME", "b@y"], Call(encoding="8bit", recipients=["b@y"])),
        (
            ["-N", "success,delay", "-R", "hdrs", "-V", "QQ", "b@y"],
            Call(
                notify=Notify.SUCCESS | Notify.DELAY,
                ret=Ret.HDRS,
                envelope_id="QQ",
                recipients=["b@y"],
            ),
        ),
        (["-bm", "-v", "-n", "-h", "3", "b@y"], Call(recipients=["b@y"])),
        (["-C", "/etc/x/main.cf", "b@y"], Call(config=Path("/etc/x/main.cf"), recipients=["b@y"])),
        (["--", "b@y"], Call(recipients=["b@y"])),
        (["--", "b@y", "-c@y"], Call(recipients=["b@y", "-c@y"])),
        (["-bp"], Call(mode="p")),
        (["-q"], Call(mode="q")),
        (["-q30m"], Call(mode="q", flush="30m")),
        (["-qRy.example"], Call(mode="q", flush="Ry.example")),
    ],
)
def test_the_flags_of_sendmail_are_understood(arguments: list[str], call: Call) -> None:
    assert parse_arguments(arguments) == call


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["-bs"], "SMTP on standard input (-bs) is not offered"),
        (["-bd"], "the SMTP server (-bd) is not offered"),
        (["-bt"], "testing addresses (-bt) is not offered"),
        (["b@y", "-C", "main.cf"], "-C stands behind a recipient; flags come first"),
        (["-bv", "b@y", "-fa@x"], "-fa@x stands behind a recipient"),
        (["-bz"], "unknown mode -bz"),
        (["-y"], "unknown flag -y"),
        (["-f"], "-f needs a value"),
        (["-qR"], "-qR needs a value"),  # it is not all mail
        (["-qI"], "-qI needs a value"),
        (["-Nsucess", "b@y"], "-N: unknown word 'sucess'"),
        (["-Bbinary", "b@y"], "-B: expected 7BIT or 8BITMIME"),
        (["b@@"], "recipient: "),
        (["-I"], "rebuilding aliases (-I) is not offered"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(arguments: list[str], refusal: str) -> None:
    with pytest.raises(OrderError) as caught:
        parse_arguments(arguments)
    assert str(caught.value).startswith(refusal)


def test_a_lone_dot_ends_the_message_unless_told_otherwise() -> None:
    octets = b"Subject: x\n\na\n..\n.\nb\n"
    assert text(octets, dot_ends=True) == b"Subject: x\n\na\n..\n"
    assert text(octets, dot_ends=False) == octets


def test_a_lone_dot_with_crlf_ends_the_message() -> None:
    assert text(b"A: b\r\n\r\nc\r\n.\r\nd", dot_ends=True) == b"A: b\r\n\r\nc\r\n"


def test_a_message_that_is_a_dot_is_empty() -> None:
    assert text(b".\nmore\n", dot_ends=True) == b""


@pytest.mark.parametrize("dot_ends", [True, False])
def test_a_mailbox_separator_is_left_out(dot_ends: bool) -> None:
    octets = b"From a@x Mon Nov 23 09:00:00 2026\nSubject: x\n\nFrom here on\n"
    assert text(octets, dot_ends=dot_ends) == b"Subject: x\n\nFrom here on\n"


def test_a_large_message_arrives_whole() -> None:
    octets = b"Subject: x\n\n" + b"line of text\n" * 100_000
    assert text(octets, dot_ends=True) == octets


def test_a_dot_inside_a_long_line_does_not_end_the_message() -> None:
    octets = b"Subject: x\n\n" + b"x" * BLOCK_SIZE + b".\nmore\n"
    assert text(octets, dot_ends=True) == octets


def test_a_header_without_end_is_refused() -> None:
    with pytest.raises(CommandError, match="the header is longer"):
        completed(b"A: b\n" * 300_000)


def test_missing_fields_are_added() -> None:
    message = completed(b"Subject: x\n\nbody\n", name="Jane Doe")
    assert message.first("from") == "Jane Doe <a@x.example>"
    assert parsedate_to_datetime(message.first("date")).timestamp() == 0.0
    assert message.first("message-id").endswith("@mail.x.example>")
    assert b"".join(message.blocks()).endswith(b"mail.x.example>\n\nbody\n")


def test_fields_that_are_there_stay_as_they_are() -> None:
    octets = b"From: me@x\nDate: today\nMessage-Id: <1@x>\n\nbody\n"
    assert b"".join(completed(octets).blocks()) == octets


def test_bcc_and_other_private_fields_are_dropped() -> None:
    octets = b"Bcc: c@y\nReturn-Path: <x>\nFrom: me@x\nDate: d\nMessage-ID: <1@x>\n\nbody\n"
    assert b"".join(completed(octets).blocks()) == (
        b"From: me@x\nDate: d\nMessage-ID: <1@x>\n\nbody\n"
    )


def test_a_message_sent_on_gets_resent_fields() -> None:
    message = completed(b"From: me@x\nDate: d\nMessage-ID: <1@x>\nResent-To: b@y\n\nbody\n")
    assert message.first("resent-from") == "<a@x.example>"
    assert message.has("resent-date")
    assert message.has("resent-message-id")
    assert message.first("from") == "me@x"


@pytest.mark.parametrize("octets", [b"only a body\n", b"", b"Subject: no newline"])
def test_a_message_without_a_separator_gets_one(octets: bytes) -> None:
    found = b"".join(completed(octets).blocks())
    header, separator, body = found.partition(b"\n\n")
    assert b"Message-ID: <" in header
    assert (separator, body) == ((b"\n\n", octets) if octets.startswith(b"only") else (b"", b""))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Jane Doe", "Jane Doe <a@x.example>"),
        ("J. Doe", '"J. Doe" <a@x.example>'),
        ('J "x" \\ Doe', '"J \\"x\\" \\\\ Doe" <a@x.example>'),
        ("Evil\r\nBcc: z@z", '"Evil  Bcc: z@z" <a@x.example>'),
        ("Jürgen", "=?utf-8?q?J=C3=BCrgen?= <a@x.example>"),
        ("", "<a@x.example>"),
    ],
)
def test_a_full_name_is_written_as_a_phrase(name: str, value: str) -> None:
    assert completed(b"\n", name=name).first("from") == value


def test_the_null_sender_writes_as_the_mailer_daemon() -> None:
    assert completed(b"\n", sender="").first("from") == "<MAILER-DAEMON@x.example>"
