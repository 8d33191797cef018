"""Where content ends, from the server's side: dots unstuffed, to the octet. No I/O."""

from typing import Final

END_OF_DATA: Final = b"\r\n.\r\n"


class ContentReceiver:
    """Splits what follows the 354 into content and what comes after it. No I/O.

    Only CRLF.CRLF ends the content (RFC 5321 section 4.1.1.4): a client that lets a bare LF
    out must not find a lenient server here. Memory: one read.
    """

    def __init__(self) -> None:
        self._held = b"\r\n"  # DATA's own line end, so that a first line "." needs no special case
        self._started = False
        self.finished = False
        self.rest = b""  # what the client pipelined behind the final dot, once finished

    def receive_data(self, data: bytes | bytearray) -> bytes:
        """The next octets of the content, dots unstuffed; may be empty."""
        buffer = self._held + data
        # A line that begins with a dot is rare, and mostly it is the last: one search finds both.
        dot = buffer.find(b"\r\n.")
        end = dot if buffer.startswith(END_OF_DATA, dot) else buffer.find(END_OF_DATA, dot)
        if dot < 0 or end < 0:
            cut = len(buffer) - _held_back(buffer)
            self._held = buffer[cut:]
        else:
            self.finished = True
            self.rest = buffer[end + len(END_OF_DATA) :]
            cut = end + 2
        piece = buffer[:cut]
        if dot >= 0 and dot != end:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if not self._started and piece:
            self._started = True
            return piece[2:]
        return piece


def _held_back(buffer: bytes) -> int:
    """How many last octets of `buffer` may be the beginning of the end of data."""
    for length in range(len(END_OF_DATA) - 1, 0, -1):
        if buffer.endswith(END_OF_DATA[:length]):
            return length
    return 0
