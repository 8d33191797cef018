"""What is sent: envelopes from patterns, contents of any size or from files.

Contents are ready for the wire, dots stuffed and the final dot behind them: a source has no time
for that while it measures. Generated ones differ in their header only.
"""

import contextlib
import mailbox
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Final

from protocol.command import Mail, Rcpt
from protocol.data import DataEncoder, scan
from protocol.errors import LocalProtocolError

_LINE: Final = b"The quick brown fox jumps over the lazy dog, and back again ok\r\n"
BLOCK: Final = 65_536  # octets: larger contents are sent in such blocks, and made of the same one
_TEXT: Final = _LINE * (BLOCK // len(_LINE))
LARGEST: Final = 1_000_000_000  # octets of a generated message
FILES_LIMIT: Final = 256_000_000  # octets of all messages read from files: they are kept in memory
FAR: Final = 10**12  # a message number that no run will come to

_FIELD: Final = re.compile(r"\{([nr])(?:%([1-9][0-9]{0,8}))?\}")

Draw = Callable[[], int]  # the size of the next message, in octets


class MessageError(Exception):
    """No message can be made of that: what, and why."""


class UnreadableError(MessageError):
    """A file that is not there, or that we may not read."""


@dataclass(frozen=True, slots=True)
class Content:
    """Octets between the 354 and the reply, in pieces that are sent one after the other."""

    pieces: tuple[bytes, ...]  # the last one ends with the final dot
    octets: int  # before dot-stuffing, without the final dot: what SIZE announces
    eight_bit: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """What one transaction needs; commands without their CRLF, so that parameters can follow."""

    mail: bytes
    recipients: tuple[bytes, ...]
    content: Content


class Pattern:
    """An address for each message: `{n}` is its number, `{r}` the recipient's within it.

    `{n%1000}` counts to 999 and begins again, so that so many users get mail in turn.
    """

    def __init__(self, text: str) -> None:
        """Raises MessageError for what SMTP could not send, or what looks like a mistake."""
        if not text.isascii():
            raise MessageError(f"{text!r}: only ASCII addresses are supported")
        rest = _FIELD.sub("", text)
        if "{" in rest or "}" in rest:
            raise MessageError(f"{text!r}: expected {{n}}, {{n%1000}} or {{r}} between braces")
        self._text = text
        self.constant = rest == text

    def __call__(self, number: int, recipient: int = 0) -> str:
        """The address for message `number`, and its recipient number `recipient`."""
        if self.constant:
            return self._text

        def value(found: re.Match[str]) -> str:
            count = number if found[1] == "n" else recipient
            return str(count % int(found[2]) if found[2] else count)

        return _FIELD.sub(value, self._text)


class Envelopes:
    """MAIL and RCPT commands by message number."""

    def __init__(self, sender: str, recipient: str, recipients: int = 1) -> None:
        """`sender`, `recipient`: patterns. `recipients` of each message. Raises MessageError."""
        self._sender, self._recipient = Pattern(sender), Pattern(recipient)
        self._recipients = recipients
        self._mail_of(FAR), self._rcpt_of(FAR)  # what is too long is found now, and not then
        self._mail, self._rcpt = self._mail_of(0), self._rcpt_of(0)

    def __call__(self, number: int) -> tuple[bytes, tuple[bytes, ...]]:
        """The commands of message `number`, without CRLF."""
        mail = self._mail if self._sender.constant else self._mail_of(number)
        return mail, self._rcpt if self._recipient.constant else self._rcpt_of(number)

    def _mail_of(self, number: int) -> bytes:
        try:
            return Mail(self._sender(number)).to_wire()[:-2]
        except LocalProtocolError as exc:
            raise MessageError(f"sender: {exc}") from exc

    def _rcpt_of(self, number: int) -> tuple[bytes, ...]:
        try:
            return tuple(
                Rcpt(self._recipient(number, which)).to_wire()[:-2]
                for which in range(self._recipients)
            )
        except LocalProtocolError as exc:
            raise MessageError(f"recipient: {exc}") from exc


class Generated:
    """Contents of given sizes, each with a header of its own, and never smaller than that."""

    def __init__(self, draw: Draw, run: str) -> None:
        """`run`: a word that tells the message ids of this run from others'."""
        self._draw = draw
        self._run = run.encode()
        self._date = formatdate().encode()
        self._last: tuple[int, tuple[bytes, ...]] = (-1, ())  # octets of the last body, and it

    def __call__(self, number: int) -> Content:
        """The content of message `number`."""
        head = (
            b"From: Load <load@source.example>\r\nTo: undisclosed-recipients:;\r\n"
            b"Subject: message %d\r\nMessage-ID: <%s.%d@source.example>\r\nDate: %s\r\n\r\n"
        ) % (number, self._run, number, self._date)
        octets = max(self._draw() - len(head), 2)  # the body ends with CRLF
        if self._last[0] != octets:
            self._last = octets, _body(octets)
        first, *rest = self._last[1]
        return Content((head + first, *rest), len(head) + octets)


def _body(octets: int) -> tuple[bytes, ...]:
    """Lines of text, `octets` in all, and the final dot; at least two octets. No line has a dot."""
    blocks, rest = divmod(octets - 2, BLOCK)
    text = _TEXT[:rest]
    if text.endswith(b"\r"):
        text = text[:-1] + b"x"  # a line that is one octet longer: no stray CR
    return (*[_TEXT] * blocks, text + b"\r\n.\r\n")


class FromFiles:
    """Contents that were read from files, in turn."""

    def __init__(self, contents: Sequence[Content]) -> None:
        self._contents = contents

    def __call__(self, number: int) -> Content:
        """The content of message `number`."""
        return self._contents[number % len(self._contents)]


def read_contents(path: Path) -> FromFiles:
    """The message in a file, those in an mbox, or in all files below a directory (a maildir, too).

    Line ends become CRLF. Raises MessageError.
    """
    contents: list[Content] = []
    total = 0
    try:
        for octets in _messages(path):
            total += len(octets)
            if total > FILES_LIMIT:
                raise MessageError(
                    f"{path}: more than {FILES_LIMIT // 1_000_000} MB of messages; use fewer"
                )
            contents.append(_content(octets))
    except OSError as exc:
        raise UnreadableError(f"{exc.filename or path}: {exc.strerror or exc}") from exc
    if not contents:
        raise MessageError(f"{path}: no message there")
    return FromFiles(contents)


def _messages(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        yield from map(_read, sorted(file for file in path.rglob("*") if file.is_file()))
    elif path.exists() and not path.is_file():
        raise MessageError(f"{path}: neither a file nor a directory")
    elif _is_mbox(path):
        with contextlib.closing(mailbox.mbox(path, create=False)) as box:
            yield from map(box.get_bytes, box.keys())
    else:
        yield _read(path)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILES_LIMIT + 1)


def _is_mbox(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(5) == b"From "


def _content(octets: bytes) -> Content:
    canonical, facts = scan(octets)
    encoder = DataEncoder()
    return Content((encoder.feed(canonical) + encoder.finish(),), facts.octets, facts.eight_bit)


def parse_sizes(text: str, rng: random.Random) -> Draw:
    """`4096`, `uniform:LOW:HIGH` or `lognormal:MEDIAN:SIGMA[:LARGEST]`. Raises MessageError.

    Sizes of real mail are about lognormal; `sigma` is that of their natural logarithm.
    """
    name, *words = text.split(":")
    try:
        match name, words:
            case "uniform", [low, high]:
                first, last = _octets(low), _octets(high)
                if first > last:
                    raise MessageError(f"size {text!r}: {first} is more than {last}")
                return lambda: rng.randint(first, last)
            case "lognormal", [median, sigma, *largest] if len(largest) < 2:
                middle, spread = _octets(median), float(sigma)
                top = _octets(largest[0]) if largest else LARGEST
                if not 0 <= spread <= 10:
                    raise MessageError(f"size {text!r}: sigma is between 0 and 10")
                return lambda: min(top, round(middle * rng.lognormvariate(0.0, spread)))
            case _, []:
                size = _octets(name)
                return lambda: size
    except ValueError:
        pass
    raise MessageError(
        f"size {text!r}: expected OCTETS, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:LARGEST]"
    )


def _octets(text: str) -> int:
    """A size. ValueError if it is no number, MessageError if it is none for us."""
    size = int(text)
    if not 0 < size <= LARGEST:
        raise MessageError(f"size {text!r}: between 1 and {LARGEST} octets")
    return size


class Composer:
    """Whole messages by number."""

    def __init__(self, envelopes: Envelopes, content: Callable[[int], Content]) -> None:
        self._envelopes = envelopes
        self._content = content

    def __call__(self, number: int) -> Message:
        """Message `number`."""
        mail, recipients = self._envelopes(number)
        return Message(mail, recipients, self._content(number))
