"""What a sink took, and the file that it is written to."""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Received:
    """One message as the sink took it; what a line of the record file holds."""

    listener: str
    protocol: str
    helo: str
    sender: str
    recipients: list[str]  # those that the sink took responsibility for
    mail_parameters: str
    rcpt_parameters: list[str]
    connection: int  # which connection to this listener in this process, from 1
    transaction: int  # which message on that connection, from 1
    tls: str = ""  # version of TLS, e.g. "TLSv1.3"; empty: in the clear
    user: str = ""  # who authenticated
    message_id: str = ""
    size: int = 0  # octets of content
    sha256: str = ""
    content: bytes | None = None  # only with `keep`


Take = Callable[[Received], None]  # called before the reply to the final dot is sent


class RecordFile:
    """Appends one JSON line per message, in one write, so that readers never see half a line.

    No fsync: the file has to survive the death of a client, not of the machine.
    """

    def __init__(self, path: Path, *, wall: Callable[[], float]) -> None:
        """Open it. Raises OSError."""
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self._wall = wall
        self.process = 0  # which of the sink's processes this is

    def __call__(self, received: Received) -> None:
        """Record one message. Raises OSError, which names the file."""
        fields: dict[str, object] = {
            name: getattr(received, name) for name in Received.__slots__ if name != "content"
        }
        if received.content is not None:
            fields["content"] = base64.b64encode(received.content).decode()
        fields["process"] = self.process
        fields["time"] = self._wall()
        line = json.dumps(fields).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            if written != len(line):  # a full disk: the next write says so itself
                os.write(self._fd, line[written:])
        except OSError as exc:
            raise OSError(exc.errno, f"cannot record: {exc.strerror}", str(self._path)) from exc

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
