"""`postrio-sendmail`: the sendmail command that other programs call, on top of our queue.

Answers for sendmail's way of being told, for ending a message at a lone dot, and for the header
fields that a submission program adds. Start at `invoke`.
"""

import os
import pwd
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from email.header import Header
from email.utils import formatdate, getaddresses, make_msgid
from io import BytesIO, StringIO
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import click

from protocol.address import quote
from protocol.request import Notify, Ret
from worker.cli import invoke as invoke_postrio
from worker.cli import program_version
from worker.cli.exits import CommandError, run_command
from worker.cli.message import HEADER_LIMIT, Field, Message, read_message, standard_input
from worker.cli.order import (
    BODY_WORDS,
    OrderError,
    check_envelope_id,
    parse_notify,
    parse_recipient,
    parse_ret,
    parse_sender,
)
from worker.cli.submitting import (
    completed,
    login_name,
    recipients_of,
    submit_message,
    take_recipients,
)
from worker.config.config import Config
from worker.content import BLOCK_SIZE
from worker.queue.records import Submission

NAME: Final = "postrio-sendmail"
WITH_VALUE: Final = "ABCFLNORVXbefhopr"  # flags followed by a value, attached or the next word
WITHOUT_VALUE: Final = "GIUcimntvx"
PROBE_HEADER: Final = b"Subject: probe\n\n"  # what the report about a probe returns
DROPPED: Final = ("bcc", "resent-bcc", "return-path", "content-length")
USAGE: Final = """\
Usage: postrio-sendmail [FLAGS] [RECIPIENT]...

Put the message on standard input on postrio's queue.

  -f ADDRESS, -r ADDRESS  sender; '' or '<>' is the null one
  -F NAME                 full name for a missing From: field
  -t                      recipients also from To, Cc and Bcc; Bcc is taken out
  -i, -oi                 a line with a dot alone does not end the message
  -B 7BIT|8BITMIME        the type of the body
  -N WORDS                notify on success,failure,delay, or never
  -R full|hdrs            what a notice returns
  -V ENVID                envelope id for notices
  -bv                     only ask whether the recipients are accepted, and mail
                          the answers to the sender; no message is read
  -bp                     list the queue          -q   try deferred mail now
  -C MAIN.CF              read this configuration
  --version, --help

Other flags of sendmail are taken and have no effect, except -bs, -bd and others
that need a server: those are refused.

Example:
  printf 'Subject: hello\\n\\nHello.\\n' | postrio-sendmail -f a@here.example b@there.example
"""

_REFUSED_MODES: Final = {
    "s": "SMTP on standard input (-bs)",
    "d": "the SMTP server (-bd)",
    "D": "the SMTP server (-bD)",
    "l": "the SMTP server (-bl)",
    "t": "testing addresses (-bt)",
    "h": "the host status (-bh)",
    "H": "the host status (-bH)",
    "i": "rebuilding aliases (-bi)",
}


@dataclass(slots=True)
class Call:
    """One call, taken apart. Addresses in internal form."""

    mode: str = "m"  # -b: "m" submit, "p" list the queue, "v" try addresses; "q": -q
    flush: str = ""  # what follows -q: "I" and a queue id, "R" or "S" and a domain
    sender: str | None = None  # None: the caller
    full_name: str = ""
    from_header: bool = False
    dot_ends: bool = True
    encoding: str = ""
    notify: Notify = Notify.UNSPECIFIED
    ret: Ret = Ret.UNSPECIFIED
    envelope_id: str = ""
    config: Path | None = None
    recipients: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command `postrio-sendmail`: runs and ends the process."""
    run_command(NAME, invoke, arguments)


def invoke(arguments: Sequence[str]) -> int | None:
    """Carry out one call; returns the exit status or raises."""
    if "--help" in arguments:
        click.echo(USAGE)
        return os.EX_OK
    if "--version" in arguments:
        click.echo(f"{NAME} {program_version()}")
        return os.EX_OK
    try:
        call = parse_arguments(arguments)
    except OrderError as exc:
        raise CommandError(f"{exc} ('{NAME} --help' says how it is used)", os.EX_USAGE) from exc
    chosen = [] if call.config is None else ["-c", str(call.config)]
    match call.mode:
        case "p":
            return invoke_postrio([*chosen, "queue", "list"])
        case "q":
            with redirect_stdout(StringIO()):  # as sendmail: cron would mail what it says
                return invoke_postrio([*chosen, "queue", "flush", *_flush_arguments(call.flush)])
    return _submit(call)


def parse_arguments(arguments: Sequence[str]) -> Call:
    """What the flags say. Raises OrderError."""
    call = Call()
    words = list(arguments)
    all_recipients = False
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            all_recipients = True
            break
        letters = word[1:]
        while letters:
            flag, letters = letters[0], letters[1:]
            if flag == "q":
                if letters in {"I", "R", "S"}:  # it would mean all mail
                    raise OrderError(f"-q{letters} needs a value, in the same word")
                call.mode, call.flush, letters = "q", letters, ""
            elif flag in WITH_VALUE:
                if not letters and not words:
                    raise OrderError(f"-{flag} needs a value")
                value, letters = letters or words.pop(0), ""
                _take_value(call, flag, value)
            elif flag in WITHOUT_VALUE:
                _take_flag(call, flag)
            else:
                raise OrderError(f"unknown flag -{flag if flag.isprintable() else '?'}")
    for word in words:
        if len(word) > 1 and word.startswith("-") and not all_recipients:  # -C would be an address
            raise OrderError(f"{word} stands behind a recipient; flags come first")
        call.recipients += recipients_in(word)
    return call


def recipients_in(text: str) -> Iterator[str]:
    """The addresses in one argument, which may be a list as in a header. Raises OrderError."""
    for _, address in getaddresses([text]):
        yield parse_recipient(address, "recipient")


def _take_value(call: Call, flag: str, value: str) -> None:
    match flag:
        case "b":
            mode = value[:1]
            if mode in _REFUSED_MODES:
                raise OrderError(f"{_REFUSED_MODES[mode]} is not offered")
            if mode not in {"m", "p", "a", "v"}:
                raise OrderError(f"unknown mode -b{mode}")
            call.mode = "m" if mode == "a" else mode
        case "f" | "r":
            call.sender = parse_sender(value, f"-{flag}")
        case "F":
            call.full_name = value
        case "B":
            if value.lower() not in BODY_WORDS:
                raise OrderError("-B: expected 7BIT or 8BITMIME")
            call.encoding = BODY_WORDS[value.lower()]
        case "N":
            call.notify = parse_notify(value, "-N")
        case "R":
            call.ret = parse_ret(value, "-R")
        case "V":
            call.envelope_id = check_envelope_id(value, "-V")
        case "C":
            call.config = Path(value)
        case "o" if value == "i":
            call.dot_ends = False
        case "O" if value.replace(" ", "").lower() == "ignoredots=true":
            call.dot_ends = False


def _take_flag(call: Call, flag: str) -> None:
    match flag:
        case "i":
            call.dot_ends = False
        case "t":
            call.from_header = True
        case "I":
            raise OrderError("rebuilding aliases (-I) is not offered")


def _flush_arguments(what: str) -> list[str]:
    """The arguments of `postrio queue flush` for what follows -q; an interval means now."""
    match what[:1]:
        case "I":
            return ["--", what[1:]]
        case "R" | "S":
            return [f"--domain={what[1:].lstrip('@')}"]
    return []


# --- submitting --------------------------------------------------------------------------------


def _submit(call: Call) -> int:
    config = Config.load(call.config, tables=False)
    probe = call.mode == "v"
    if probe and call.from_header:
        raise CommandError("-bv reads no message: it does not go with -t", os.EX_USAGE)
    if probe:
        message = read_message(BytesIO(PROBE_HEADER))
    else:
        message = read_message(SubmittedText(standard_input(), dot_ends=call.dot_ends))
    recipients = list(call.recipients)
    if call.from_header:
        recipients += take_recipients(message)
    if not recipients:
        hint = "" if probe else ", and no -t"
        raise CommandError(f"no recipient was given{hint}", os.EX_USAGE)
    sender = completed(login_name() if call.sender is None else call.sender, config)
    if probe and not sender:
        raise CommandError("-bv mails its answers to the sender, and there is none", os.EX_USAGE)
    complete_header(message, sender, call.full_name or gecos_name(), config, time.time())
    submission = Submission(
        sender=sender,
        recipients=recipients_of(recipients, config, call.notify),
        envelope_id=call.envelope_id,
        ret=call.ret,
        encoding=call.encoding,
        probe=probe,
    )
    submit_message(config, submission, message)
    if probe:
        click.echo(f"Mail Delivery Status Report will be mailed to <{quote(sender)}>.")
    return os.EX_OK


class SubmittedText:
    """Standard input as sendmail reads it: to a lone dot, and without a mailbox's From line.

    Lines are taken in pieces of a bounded size: one of them may be as long as the message.
    """

    def __init__(self, file: BinaryIO, *, dot_ends: bool) -> None:
        self._file = file
        self._dot_ends = dot_ends
        self._begun = False
        self._ended = False
        self._at_line_start = True

    def read(self, size: int) -> bytes:
        """About `size` octets, at least one; none at the end."""
        pieces = [] if self._begun else [self._first_piece()]
        if not self._dot_ends:
            return b"".join(pieces) or self._file.read(size)
        octets = sum(map(len, pieces))
        while octets < size and (piece := self._next_piece()):
            pieces.append(piece)
            octets += len(piece)
        return b"".join(pieces)

    def _first_piece(self) -> bytes:
        self._begun = True
        piece = self._next_piece()
        if piece.startswith((b"From ", b">From ")):  # mbox's separator is no field
            piece = self._next_piece()
        return piece

    def _next_piece(self) -> bytes:
        """The next line, or a part of a long one; empty at the end."""
        if self._ended:
            return b""
        piece = self._file.readline(BLOCK_SIZE)
        lone_dot = self._at_line_start and piece.rstrip(b"\r\n") == b"."
        self._at_line_start = piece.endswith(b"\n")
        self._ended = not piece or (self._dot_ends and lone_dot)
        return b"" if self._ended else piece


def complete_header(
    message: Message, sender: str, full_name: str, config: Config, now: float
) -> None:
    """Add From, Date and Message-ID where they are missing, drop what must not be sent on.

    A message that is sent on again (it has Resent- fields) gets Resent- ones. Raises CommandError
    if the header is too long to be one.
    """
    if not message.whole:
        raise CommandError(f"the header is longer than {HEADER_LIMIT} octets", os.EX_DATAERR)
    message.remove(*DROPPED)
    resent = any(field.name.startswith("resent-") for field in message.fields)
    prefix = "Resent-" if resent else ""
    author = sender or completed("MAILER-DAEMON", config)
    host = config.text("myhostname")
    for name, value in (
        ("From", f"{_phrase(full_name)}<{quote(author)}>"),
        ("Date", formatdate(now, localtime=True)),
        ("Message-ID", make_msgid(domain=host)),
    ):
        if not message.has(f"{prefix}{name}".lower()):
            octets = f"{prefix}{name}: {value}\n".encode("utf-8", "surrogateescape")
            message.add(Field(f"{prefix}{name}".lower(), octets))
    message.separate()


def gecos_name() -> str:
    """The caller's full name: NAME of the environment, else the system's; empty: none."""
    if name := os.environ.get("NAME", ""):
        return name
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return ""
    return entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())


def _phrase(name: str) -> str:
    """A display name fit for a From: field, with the space after it; empty: none."""
    name = "".join(char if char.isprintable() else " " for char in name).strip()
    if not name:
        return ""
    if not name.isascii():
        return Header(name, "utf-8", maxlinelen=10_000).encode() + " "
    if all(char.isalnum() or char in " !#$%&'*+-/=?^_`{|}~" for char in name):
        return name + " "
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}" '


if __name__ == "__main__":
    main()
