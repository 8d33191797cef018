"""How many hosts a message has passed: the Received fields of its header.

RFC 5321 section 6.3: a message with very many of them goes round in circles.
"""

from typing import Final

_FIELD: Final = b"\r\nreceived:"
_HEADER_END: Final = b"\r\n\r\n"


class HopCounter:
    """Counts them in a canonical content (CRLF), fed in blocks cut anywhere."""

    __slots__ = ("_ended", "_tail", "count")

    def __init__(self) -> None:
        self.count = 0
        self._tail = b"\r\n"  # what a match may begin in: a header begins at a line's start
        self._ended = False

    def feed(self, block: bytes) -> None:
        """Take the next octets."""
        if self._ended:
            return
        octets = self._tail + block
        end = octets.find(_HEADER_END)
        self._ended = end >= 0
        header = octets[:end] if self._ended else octets
        self.count += header.lower().count(_FIELD)
        self._tail = octets[1 - len(_FIELD) :]  # shorter than a match: none counts twice
