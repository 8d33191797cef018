"""Content on its way to the wire: canonical line ends, dot-stuffing, the end of data.

Streaming transforms of octets: `feed(block)` as often as there are blocks, cut anywhere, then
`finish()` once. Results do not depend on the cuts. Nothing here loops over octets or lines in
Python: big blocks run at the speed of bytes.replace().

What leaves the Canonicaliser holds CR and LF only as CRLF, and no NUL. That is more than
RFC 5321 section 4.1.1.4 asks; it is what keeps a message from being read as two by a server that
takes a bare LF for a line end (SMTP smuggling), whatever was stored.
"""

import re
from dataclasses import dataclass
from typing import Final

END_OF_DATA: Final = b".\r\n"

# A pattern that begins with one literal octet is looked for as fast as bytes.count() counts it, and
# nothing else in the library is as fast: two searches tell whether all line ends are CRLF in half
# the time of counting CR, LF and CRLF. As alternatives of one pattern they take ten times as long.
_STRAY_CR: Final = re.compile(rb"\r(?!\n)")
_STRAY_LF: Final = re.compile(rb"\n(?<!\r\n)")
_STRAY_CR_OR_DOT: Final = re.compile(rb"\r(?!\n[^.])")  # or the last line end of the block
_DOT_AT_LINE_START: Final = re.compile(rb"\.(?<=[\r\n]\.)")  # whatever a line end is taken to be


class Canonicaliser:
    """Makes every line end CRLF (from LF or CRLF); a stray CR and a NUL become one space each."""

    def __init__(self) -> None:
        self._cr_pending = False  # a CR was fed last; whether it is stray, the next octet tells
        self._in_line = False  # something was returned after the last line end

    def feed(self, block: bytes) -> bytes:
        """Return the canonical form of `block`: `block` itself if nothing had to change."""
        if self._cr_pending:
            block = b"\r" + block
            self._cr_pending = False
        if block.endswith(b"\r"):
            self._cr_pending = True
            block = block[:-1]
        if not block:
            return b""
        block = _canonical(block)
        self._in_line = not block.endswith(b"\n")
        return block

    def passed(self, block: bytes) -> None:
        """Take note of a canonical block that did not go through feed(). No CR may be pending."""
        self._in_line = not block.endswith(b"\n")

    @property
    def cr_pending(self) -> bool:
        """The last octet fed was a CR, and what it is depends on the next one."""
        return self._cr_pending

    def finish(self) -> bytes:
        """Return what is left: a stray CR as a space, and the line end if it was missing."""
        rest = b" " if self._cr_pending else b""
        self._cr_pending = False
        if rest or self._in_line:
            self._in_line = False
            return rest + b"\r\n"
        return b""


def _canonical(block: bytes) -> bytes:
    """The canonical form of a block that does not end in CR."""
    if b"\0" in block:
        block = block.replace(b"\0", b" ")
    if b"\r" in block:
        if not (_STRAY_CR.search(block) or _STRAY_LF.search(block)):
            return block
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    return block.replace(b"\n", b"\r\n")


class DotStuffer:
    """Doubles the dot that begins a line (RFC 5321 section 4.5.2). Expects canonical octets."""

    def __init__(self) -> None:
        self._at_line_start = True

    def feed(self, block: bytes) -> bytes:
        """Return `block` with dots doubled: `block` itself if there were none to double."""
        if not block:
            return block
        stuffed = block.replace(b"\n.", b"\n..")
        if self._at_line_start and block.startswith(b"."):
            stuffed = b"." + stuffed
        self._at_line_start = block.endswith(b"\n")
        return stuffed

    def passed(self, block: bytes) -> None:
        """Take note of a block that did not go through feed(), having no dots to be doubled."""
        self._at_line_start = block.endswith(b"\n")

    @property
    def at_line_start(self) -> bool:
        """A dot would have to be doubled if it came next."""
        return self._at_line_start

    def finish(self) -> bytes:
        """Return the end of data: the final dot, after a line end if the content lacked one."""
        return END_OF_DATA if self._at_line_start else b"\r\n" + END_OF_DATA


class DataEncoder:
    """From stored octets to those sent between the 354 and the reply to the final dot.

    Whatever is fed, the octets returned up to and including finish() hold CRLF.CRLF exactly once,
    at the end (an empty message is the lone final dot, its CRLF being the one after DATA), and no
    other line end is followed by a dot that is not doubled.

    `vouched`: the content was written by a ContentScanner, so nothing but dots is expected to
    change. To look at every line end costs more than to send it; so in each block only the first
    line end and the last octets are looked at, in case somebody has saved the file with an editor,
    and every dot, if there are any: without one behind a CR or LF no server finds an end of data in
    the block, whatever it takes for a line end. A block in which something is found is looked at as
    if nobody had vouched for it.
    """

    def __init__(self, *, vouched: bool = False) -> None:
        self._canonicaliser = Canonicaliser()
        self._stuffer = DotStuffer()
        self._vouched = vouched

    def feed(self, block: bytes) -> bytes:
        """Return what to send for `block`: `block` itself if it is fit to be sent as it is."""
        if self._is_fit(block):
            self._canonicaliser.passed(block)
            self._stuffer.passed(block)
            return block
        return self._stuffer.feed(self._canonicaliser.feed(block))

    def finish(self) -> bytes:
        """Return the last octets to send; they end with the final dot."""
        return self._stuffer.feed(self._canonicaliser.finish()) + self._stuffer.finish()

    def _is_fit(self, block: bytes) -> bool:
        """The block can be sent as it is, after all that was fed before. May err towards False."""
        if not block or self._canonicaliser.cr_pending:
            return False
        if block.startswith(b".") and self._stuffer.at_line_start:
            return False
        return _seems_fit(block) if self._vouched else _is_fit(block)


def _is_fit(block: bytes) -> bool:
    """Nothing in the block has to change, whatever comes next; its first octet is not judged."""
    if b"\0" in block:
        return False
    fault = _STRAY_CR_OR_DOT.search(block)
    if fault and not (fault.start() == len(block) - 2 and block.endswith(b"\r\n")):
        return False
    return not _STRAY_LF.search(block)


def _seems_fit(block: bytes) -> bool:
    """As _is_fit(); of line ends, only those first, last and before a dot are looked at."""
    cr, lf = block.find(b"\r"), block.find(b"\n")
    if lf != (cr + 1 if cr >= 0 else -1):
        return False
    if block.endswith((b"\r", b"\n")) and not block.endswith(b"\r\n"):
        return False
    return b"\0" not in block and not (b"." in block and _DOT_AT_LINE_START.search(block))


def encode(content: bytes) -> bytes:
    """What to send for a whole content, the final dot included: as a DataEncoder's in one piece."""
    if content.endswith(b"\r\n") and not content.startswith(b".") and _is_fit(content):
        return content + END_OF_DATA  # most mail
    encoder = DataEncoder()
    return encoder.feed(content) + encoder.finish()


@dataclass(frozen=True, slots=True)
class ContentFacts:
    """What a queue wants to know of a content. All of the canonical form, before dot-stuffing."""

    octets: int  # with CRLF line ends: RequestSize of RFC 1870
    eight_bit: bool  # some octet is not ASCII

    @property
    def encoding(self) -> str:
        """The facts in the words of DeliveryRequest.encoding."""
        return "8bit" if self.eight_bit else "7bit"


class ContentScanner:
    """A Canonicaliser that also gathers facts, in the same pass."""

    def __init__(self) -> None:
        self._canonicaliser = Canonicaliser()
        self._octets = 0
        self._eight_bit = False

    def feed(self, block: bytes) -> bytes:
        """Return the canonical form of `block`, as Canonicaliser.feed()."""
        return self._note(self._canonicaliser.feed(block))

    def finish(self) -> bytes:
        """Return the rest, as Canonicaliser.finish(). The facts are complete from now on."""
        return self._note(self._canonicaliser.finish())

    @property
    def facts(self) -> ContentFacts:
        """The facts of everything returned so far."""
        return ContentFacts(self._octets, self._eight_bit)

    def _note(self, block: bytes) -> bytes:
        if block:
            self._octets += len(block)
            self._eight_bit = self._eight_bit or not block.isascii()
        return block


def scan(content: bytes) -> tuple[bytes, ContentFacts]:
    """Return a whole content in canonical form, and its facts."""
    scanner = ContentScanner()
    canonical = scanner.feed(content) + scanner.finish()
    return canonical, scanner.facts
