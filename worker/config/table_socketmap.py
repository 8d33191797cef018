"""The type socketmap: a server that speaks sendmail's protocol (socketmap_table(5)).

A request is the netstring "name key", a reply the netstring "OK text", "NOTFOUND " or one of TEMP,
TIMEOUT and PERM with a reason. Netstrings are read here: it takes fewer lines than a library's
errors and limits to be mapped.
"""

import re
from typing import Final

from worker.config.table import Table, TableConfigError
from worker.config.table_served import (
    BadReplyError,
    RefusedError,
    ServedTable,
    Server,
    TcpServer,
    UnixServer,
)

REPLY_LIMIT: Final = 100_000  # octets inside the netstring, as in Postfix

_LENGTH = re.compile(rb"([0-9]{1,7}):")
_BEGUN = re.compile(rb"[0-9]{0,7}")  # a length that is not yet complete


class Socketmap(ServedTable):
    """`socketmap:inet:host:port:name`, `socketmap:unix:/path:name`."""

    def __init__(self, spec: str, server: Server, name: str) -> None:
        super().__init__(spec, server)
        self._name = name.encode("utf-8", "surrogateescape")

    def _request(self, key: bytes) -> bytes:
        inside = self._name + b" " + key
        return b"%d:%b," % (len(inside), inside)

    def _end(self, received: bytearray) -> int | None:
        match = _LENGTH.match(received)
        if match is None:
            if _BEGUN.fullmatch(received):
                return None
            raise BadReplyError("not a netstring")
        length = int(match[1])
        if length > REPLY_LIMIT:
            raise BadReplyError(f"{length} octets, over {REPLY_LIMIT}")
        end = match.end() + length + 1
        if len(received) < end:
            return None
        if received[end - 1] != ord(","):
            raise BadReplyError("a netstring without a comma at its end")
        return end

    def _read(self, reply: bytes) -> str | None:
        inside = reply[reply.index(b":") + 1 : -1].decode("utf-8")
        status, _, text = inside.partition(" ")
        match status:
            case "OK":
                return text
            case "NOTFOUND":
                return None
            case "TEMP" | "TIMEOUT" | "PERM":
                raise RefusedError(text)
        raise BadReplyError(f'the status "{status[:40]}"')


def open_socketmap(spec: str, name: str) -> Table:
    """The table of `name`, all that follows `socketmap:`. Raises TableConfigError."""
    family, _, rest = name.partition(":")
    address, colon, map_name = rest.rpartition(":")
    if family not in {"inet", "unix"} or not colon or not map_name:
        raise TableConfigError(
            f'"{name}" names no server and map', "inet:host:port:name or unix:/path:name"
        )
    server = TcpServer(address) if family == "inet" else UnixServer(address)
    return Socketmap(spec, server, map_name)
