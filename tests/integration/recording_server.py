"""A server that keeps what it is sent to the octet, and announces only what it is told to.

Threads and blocking sockets: real Postfix and our own commands talk to it from other processes.
"""

import re
import socketserver
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

_PATH = re.compile(rb"<([^>]*)>")


class _Server(socketserver.ThreadingTCPServer):
    """Takes many clients at once: with the backlog of 5 some would be left waiting for minutes."""

    request_queue_size = 128
    daemon_threads = True


class RecordingServer:
    """An ESMTP server on a loopback port, from entering the context to leaving it.

    `keywords`: its EHLO keywords. `greeting`: its first line. `refusals`: replies to RCPT that are
    not "250 ok", by the local part of the recipient. `contents`: what stood between the 354 and the
    final dot, with stuffed dots, by the local part of the recipient; `mails`: the MAIL lines, by
    the same.
    """

    def __init__(
        self,
        *keywords: str,
        greeting: str = "220 recorder.example ESMTP",
        refusals: Mapping[str, str] | None = None,
    ) -> None:
        self.keywords = keywords
        self.greeting = greeting
        self.refusals = dict(refusals or {})
        self.contents: dict[str, bytes] = {}
        self.mails: dict[str, str] = {}
        self.rcpts: dict[str, list[str]] = {}
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            daemon=True, target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        recorder = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                recorder.converse(self)

        return Handler

    def converse(self, link: socketserver.StreamRequestHandler) -> None:
        """One client, until it leaves."""
        mail = b""
        rcpts: list[bytes] = []
        link.wfile.write(f"{self.greeting}\r\n".encode())
        while line := link.rfile.readline():
            verb = line[:4].upper()
            answer = b"250 ok"
            if verb == b"EHLO":
                names = ["recorder.example", *self.keywords]
                answer = "\r\n".join(
                    [*(f"250-{name}" for name in names[:-1]), f"250 {names[-1]}"]
                ).encode()
            elif verb == b"MAIL":
                mail, rcpts = line, []
            elif verb == b"RCPT":
                rcpts.append(line)
                answer = self.refusals.get(_local_part(line), "250 ok").encode()
            elif verb == b"DATA":
                link.wfile.write(b"354 go on\r\n")
                content = bytearray()
                while (line := link.rfile.readline()) != b".\r\n":
                    if not line:
                        return  # cut off: not a message
                    content += line
                self._note(mail, rcpts, bytes(content))
            elif verb == b"QUIT":
                link.wfile.write(b"221 bye\r\n")
                return
            link.wfile.write(answer + b"\r\n")

    def _note(self, mail: bytes, rcpts: list[bytes], content: bytes) -> None:
        name = _local_part(rcpts[0])
        self.contents[name] = content
        self.mails[name] = mail.decode().strip()
        self.rcpts[name] = [rcpt.decode().strip() for rcpt in rcpts]


def _local_part(line: bytes) -> str:
    path = _PATH.search(line)
    assert path is not None
    return path[1].rpartition(b"@")[0].decode()
