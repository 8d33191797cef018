"""The type tcp: a server that answers line by line (tcp_table(5)).

"get key" is answered by "200 text", "500 not found" or "400 try again". In keys and texts a percent
sign, white space and what cannot be printed are written as %XX.
"""

import re
from typing import Final

from worker.config.table import Table
from worker.config.table_served import BadReplyError, RefusedError, ServedTable, TcpServer

LINE_LIMIT: Final = 4_096  # octets of a reply, its newline included

_PLAIN = frozenset(range(0x21, 0x7F)) - {ord("%")}  # what is sent as it is
_ENCODED = re.compile(rb"%(..?)?", re.DOTALL)


class Tcp(ServedTable):
    """`tcp:host:port`."""

    def _request(self, key: bytes) -> bytes:
        return b"get %b\n" % b"".join(
            bytes([octet]) if octet in _PLAIN else b"%%%02X" % octet for octet in key
        )

    def _end(self, received: bytearray) -> int | None:
        end = received.find(b"\n", 0, LINE_LIMIT) + 1
        if end == 0 and len(received) >= LINE_LIMIT:
            raise BadReplyError(f"a line of over {LINE_LIMIT} octets")
        return end or None

    def _read(self, reply: bytes) -> str | None:
        match = re.fullmatch(rb"([0-9]{3})[ \t]+(.*)", reply.rstrip(b"\r\n"), re.DOTALL)
        if match is None:
            raise BadReplyError('no "200 text", "400 text" or "500 text"')
        text = _ENCODED.sub(_decoded, match[2]).decode("utf-8")
        match match[1]:
            case b"200":
                return text
            case b"400":
                raise RefusedError(text)
            case b"500":
                return None
        raise BadReplyError(f"the status {match[1].decode()}")


def _decoded(match: re.Match[bytes]) -> bytes:
    if match[1] is None or not re.fullmatch(rb"[0-9A-Fa-f]{2}", match[1]):
        raise BadReplyError("% without two hexadecimal digits")
    return bytes([int(match[1], 16)])


def open_tcp(spec: str, name: str) -> Table:
    """The table of `name`, `host:port`. Raises TableConfigError."""
    return Tcp(spec, TcpServer(name))
