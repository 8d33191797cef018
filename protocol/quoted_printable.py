"""Octets as quoted-printable text (RFC 2045 section 6.7), in a stream.

Of lines with CRLF ends: those are kept, everything else that is not printable ASCII or a tab
becomes `=XX`, and so does white space before a line end. Lines come out at most 76 octets long,
with soft breaks (`=` at the end of a line).

Where soft breaks go is binascii's choice, and not the one of Postfix: both decode to the same. To
move them costs three times as much as all the rest of the encoding.
"""

import binascii
from typing import Final

from protocol.line_length import has_longer_line

# A line of which there is more than this is encoded in pieces of this size (octets): memory is
# bounded whatever comes, and the result does not depend on how the stream was cut.
PIECE: Final = 65_536

_SOFT_BREAK: Final = b"=\r\n"


class QuotedPrintableEncoder:
    """Encodes canonical octets. What comes out does not depend on how they are cut."""

    def __init__(self) -> None:
        self._line = b""  # the beginning of a line whose end has not come yet

    def feed(self, block: bytes) -> bytes:
        """Return what can be said of the lines so far. At most PIECE octets are kept."""
        data = self._line + block if self._line else block
        end = data.rfind(b"\r\n") + 2
        if end < 2:
            end = 0
        whole, rest = data[:end], data[end:]
        out = [_encode_lines(whole)] if whole else []
        # A CR at the end is half of a line end, and must not be all that is left of a line.
        while len(rest) - rest.endswith(b"\r") > PIECE:
            out.append(_encode_piece(rest[:PIECE]) + _SOFT_BREAK)
            rest = rest[PIECE:]
        self._line = rest
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the rest: a line without its end. The next octet begins a new line."""
        line, self._line = self._line, b""
        return _encode_line(line)


def _encode_lines(lines: bytes) -> bytes:
    """Whole lines, with their ends."""
    if not has_longer_line(lines, PIECE):
        return binascii.b2a_qp(lines)
    # Rare: each line as if it had come alone.
    return b"".join([_encode_line(line) + b"\r\n" for line in lines[:-2].split(b"\r\n")])


def _encode_line(line: bytes) -> bytes:
    """A line without its end."""
    pieces = [line[at : at + PIECE] for at in range(0, len(line), PIECE)]
    return _SOFT_BREAK.join(map(_encode_piece, pieces))


def _encode_piece(piece: bytes) -> bytes:
    """A part of a line. Without a line end to see, binascii breaks with LF alone."""
    return binascii.b2a_qp(piece).replace(b"\n", b"\r\n")
