"""A message as a command gets it: its header taken apart, its body a stream that nobody holds.

Answers for what commands need of a header (recipients of -t, fields to add or to leave out). The
octets of every field, and of the body, stay as they came; line ends are made canonical by whoever
takes the message in.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import getaddresses
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from protocol.address import AddressError, needs_smtputf8, parse_mailbox
from protocol.data import ContentFacts, ContentScanner
from protocol.request import SendOptions
from worker.cli.exits import CommandError
from worker.content import BLOCK_SIZE, INLINE_LIMIT, Content, FileContent, InlineContent

HEADER_LIMIT: Final = 1_048_576  # octets; beyond it nothing is taken for a header any more
STANDARD_INPUT: Final = "-"
RECIPIENT_FIELDS: Final = ("to", "cc", "bcc")

_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:", re.DOTALL)  # RFC 5322 section 2.2, obs-syntax


class HeaderError(ValueError):
    """Recipients cannot be taken from this header: which field, and why."""


@dataclass(frozen=True, slots=True)
class Field:
    """One header field: its name in lower case, and its octets with folds and line ends."""

    name: str
    octets: bytes

    @property
    def value(self) -> str:
        """What stands after the colon, unfolded."""
        text = self.octets.partition(b":")[2].decode("utf-8", "surrogateescape")
        return " ".join(line.strip() for line in text.splitlines()).strip()


@dataclass(slots=True)
class Message:
    """A message while it is read. `rest` begins with what ended the header: an empty line, a line
    that is no field, or nothing; it can be gone through once.
    """

    fields: list[Field]
    rest: Iterator[bytes]
    separated: bool  # an empty line stands between header and body (or there is no body)
    whole: bool = True  # False: no end of the header within HEADER_LIMIT; nothing of it was parsed

    def blocks(self) -> Iterator[bytes]:
        """The whole message, as it is now."""
        if self.fields:
            yield b"".join(field.octets for field in self.fields)
        yield from self.rest

    def has(self, name: str) -> bool:
        """Whether a field of this name (lower case) is there."""
        return any(field.name == name for field in self.fields)

    def first(self, name: str) -> str:
        """The value of the first field of this name (lower case); empty: there is none."""
        return next((field.value for field in self.fields if field.name == name), "")

    def remove(self, *names: str) -> None:
        """Take out the fields of these names (lower case)."""
        self.fields = [field for field in self.fields if field.name not in names]

    def add(self, field: Field) -> None:
        """Append a field; the last one before it gets its line end if the message lacked it."""
        if self.fields and not self.fields[-1].octets.endswith(b"\n"):
            self.fields[-1] = Field(self.fields[-1].name, self.fields[-1].octets + b"\n")
        self.fields.append(field)

    def separate(self) -> None:
        """Put an empty line between header and body if there is none."""
        if not self.separated:
            self.rest = chain([b"\n"], self.rest)
            self.separated = True

    @property
    def eight_bit_header(self) -> bool:
        """Some field holds octets that are not ASCII."""
        return not all(field.octets.isascii() for field in self.fields)


def open_message(path: str) -> BinaryIO:
    """The file of a message or of a request; "-": standard input. Raises CommandError."""
    if path == STANDARD_INPUT:
        return standard_input()
    try:
        return Path(path).open("rb")
    except OSError as exc:
        raise CommandError(f"{path}: {exc.strerror}", os.EX_NOINPUT) from exc


def standard_input() -> BinaryIO:
    """Raises CommandError where the caller has closed it."""
    if sys.stdin is None:
        raise CommandError("standard input is closed", os.EX_NOINPUT)
    return sys.stdin.buffer


class Readable(Protocol):
    """What a message is read from: a binary file, or what sendmail makes of one."""

    def read(self, size: int, /) -> bytes:
        """At least one octet, and about `size`; none at the end. May raise OSError."""


def read_message(file: Readable) -> Message:
    """Read the header of a message; the body is read with Message.blocks().

    Both raise CommandError where the file cannot be read.
    """
    octets, ended = _read_header(file)
    fields: list[Field] = []
    position = 0
    for line in octets.splitlines(keepends=True) if ended else ():
        if line[:1] in b" \t" and fields and line.strip():
            fields[-1] = Field(fields[-1].name, fields[-1].octets + line)
        elif match := _FIELD.match(line):
            fields.append(Field(match[1].decode("ascii").lower(), line))
        else:
            break
        position += len(line)
    body = octets[position:]
    separated = not body or body.startswith((b"\n", b"\r\n"))
    return Message(fields, _rest(body, file), separated, whole=ended)


def header_recipients(message: Message) -> list[str]:
    """The addresses (internal form) in To, Cc and Bcc, in order, each once. Raises HeaderError.

    A message that was sent on by its reader has Resent- fields of these, which then count alone.
    """
    if not message.whole:
        raise HeaderError(f"the header is longer than {HEADER_LIMIT} octets")
    names: Sequence[str] = RECIPIENT_FIELDS
    resent = [f"resent-{name}" for name in names]
    if any(message.has(name) for name in resent):
        names = resent
    found: dict[str, None] = {}
    for field in message.fields:
        if field.name in names:
            found |= dict.fromkeys(_addresses(field))
    return list(found)


def send_options(
    addresses: Iterable[str], sender: str, *, eight_bit_header: bool, requested: bool | None = None
) -> SendOptions:
    """What of the message needs SMTPUTF8 (RFC 6531), and whether it is to be asked for.

    `requested` None: where an address needs it. An 8-bit header alone does not: such mail is older
    than SMTPUTF8, is taken nearly everywhere, and would come back from servers without it.
    """
    options = SendOptions.NONE
    if needs_smtputf8(sender):
        options |= SendOptions.UTF8_SENDER
    if any(needs_smtputf8(address) for address in addresses):
        options |= SendOptions.UTF8_RECIPIENT
    if requested or (requested is None and options):
        options |= SendOptions.SMTPUTF8_REQUESTED
    if eight_bit_header:
        options |= SendOptions.UTF8_HEADER
    return options


def spool(blocks: Iterable[bytes]) -> tuple[Content, ContentFacts]:
    """A content in canonical form, in memory if it is small; the caller closes it.

    A large one goes to a file without a name in the directory for temporary files. Raises
    CommandError where it cannot be kept there.
    """
    try:
        return _spool(blocks)
    except OSError as exc:
        where = "in the directory for temporary files (TMPDIR)"
        raise CommandError(
            f"the message cannot be kept {where}: {exc.strerror}", os.EX_TEMPFAIL
        ) from exc


def _spool(blocks: Iterable[bytes]) -> tuple[Content, ContentFacts]:
    scanner = ContentScanner()
    held = bytearray()
    with tempfile.TemporaryFile() as file:

        def take(block: bytes) -> None:
            held.extend(block)
            if len(held) > INLINE_LIMIT:
                file.write(held)
                held.clear()

        for block in blocks:
            take(scanner.feed(block))
        take(scanner.finish())
        facts = scanner.facts
        if facts.octets <= INLINE_LIMIT and len(held) == facts.octets:
            return InlineContent(bytes(held)), facts
        file.write(held)
        file.flush()
        return FileContent(os.dup(file.fileno())), facts


def _read_header(file: Readable) -> tuple[bytes, bool]:
    """What was read until the header is in it as a whole; False: it is too long to be one."""
    octets = b""
    while True:
        block = _read_block(file)
        seam = max(len(octets) - 3, 0)
        octets += block
        if not block or b"\n\n" in octets[seam:] or b"\n\r\n" in octets[seam:]:
            return octets, True
        if octets.startswith((b"\n", b"\r\n")):
            return octets, True
        if len(octets) > HEADER_LIMIT:
            return octets, False


def _rest(first: bytes, file: Readable) -> Iterator[bytes]:
    if first:
        yield first
    while block := _read_block(file):
        yield block


def _read_block(file: Readable) -> bytes:
    try:
        return file.read(BLOCK_SIZE)
    except OSError as exc:
        raise CommandError(f"the message cannot be read: {exc.strerror}", os.EX_IOERR) from exc


def _addresses(field: Field) -> Iterator[str]:
    value = field.value
    for _, text in getaddresses([value]):
        if text:
            try:
                yield parse_mailbox(text)
            except AddressError as exc:
                raise HeaderError(f"{field.name}: field: {exc}") from exc
        elif value and not value.endswith(";"):  # not an empty group ("undisclosed-recipients:;")
            raise HeaderError(f"{field.name}: field: not a list of addresses")
