"""Lines that are too long for the wire, and where they are broken (smtp_line_length_limit, S070).

A line of more octets than the limit goes on in the next line, after a space. That changes the
content: it breaks DKIM signatures and characters of several octets. RFC 5321 section 4.5.3.1.6
allows 998 octets, and servers are known that cut or refuse what is longer.
"""

import re
from functools import lru_cache
from typing import Final

MANY: Final = 10  # times the limit: octets worth another way of searching

_FOLD: Final = b"\r\n "


def has_longer_line(block: bytes, limit: int, column: int = 0) -> bool:
    """Whether a line of `block` has more than `limit` octets, its line end not counted.

    `column`: how many octets of its first line came before it. A line end is CRLF, and a CR at the
    end of the block is taken for half of one. The last line may go on after the block.
    """
    size, at, room = len(block), 0, limit - column
    look = 0  # where to try strides again: they pay for many short lines
    while size - at > room:
        if at >= look and size - at > MANY * limit and room == limit:
            strides = _strides(limit).match(block, at)
            at = strides.end() if strides is not None else at
            look = at + MANY * limit
            continue
        end = block.rfind(b"\n", at, at + room + 2)
        if end < 0:
            return not (size - at == room + 1 and block.endswith(b"\r"))
        at, room = end + 1, limit
    return False


@lru_cache(8)
def _strides(limit: int) -> re.Pattern[bytes]:
    """From line start to line start, nine tenths of the limit at a time without a look at them.

    Where a line end stands soon after that, no line on the way was too long. Of everything in the
    library this costs least, a quarter of a search backwards for each stride: content that is sent
    as it is has to pass here, too.
    """
    blind = limit * 9 // 10
    return re.compile(rb"(?:(?s:.{%d})[^\n]{0,%d}+\n)*+" % (blind, limit - blind))


class LineFolder:
    """Breaks the lines of canonical octets that are longer than `limit` octets (2 at least)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._column = 0  # octets of the line that is being written
        self._cr = b""  # fed last: half of a line end
        self.folded = False  # some line was broken

    def feed(self, block: bytes) -> bytes:
        """Return the octets with long lines broken: `block` itself if there are none."""
        if self._cr:
            block, self._cr = self._cr + block, b""
        if block.endswith(b"\r"):
            block, self._cr = block[:-1], b"\r"
        if not block:
            return b""
        if has_longer_line(block, self._limit, self._column):
            self.folded = True
            return self._fold(block)
        end = block.rfind(b"\n") + 1
        self._column = len(block) - end if end else self._column + len(block)
        return block

    def finish(self) -> bytes:
        """Return what was kept."""
        rest, self._cr = self._cr, b""
        return rest

    def _fold(self, block: bytes) -> bytes:
        lines = block.split(b"\r\n")
        for number, line in enumerate(lines):
            if number:
                self._column = 0
            lines[number] = self._fold_line(line)
        return b"\r\n".join(lines)

    def _fold_line(self, line: bytes) -> bytes:
        room = self._limit - self._column
        if len(line) <= room:
            self._column += len(line)
            return line
        pieces = [line[:room]]
        step = self._limit - len(b" ")
        pieces += [line[at : at + step] for at in range(room, len(line), step)]
        self._column = len(pieces[-1]) + len(b" ")
        return _FOLD.join(pieces)
