"""Debian's smtp-sink in a directory of its own, dumping what it takes: a peer that is not ours."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.postfix_instance import free_port
from tests.integration.peers import find_program

ATTEMPTS: Final = 100_000  # to connect while it starts; each takes some 20 microseconds
# It ends a dumped message with an empty line of its own.
SEPARATOR: Final = b"\n"


class SmtpSink:
    """One smtp-sink, from entering the context to leaving it. `options`: -L for LMTP."""

    def __init__(self, *options: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="smtp-sink-"))
        self.port = free_port()
        self._options: Sequence[str] = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def received(self) -> dict[str, bytes]:
        """The messages by their first recipient's local part, contents with LF line ends."""
        found = {}
        for path in self.directory.iterdir():
            head, content = split_dump(path.read_bytes())
            recipient = head.partition(b"X-Rcpt-Args: <")[2].partition(b"@")[0].decode()
            assert recipient not in found
            found[recipient] = content
        return found

    def _start(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.directory, "nobody")
        program = find_program("smtp-sink") or "smtp-sink"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        dump = ["-d", str(self.directory / "m.")]
        self._process = subprocess.Popen(
            [program, *user, *dump, *self._options, f"127.0.0.1:{self.port}", "100"],
            stdin=subprocess.DEVNULL,
        )
        for _ in range(ATTEMPTS):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                continue
            return
        raise ConnectionRefusedError("smtp-sink does not answer")

    def _leave(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def split_dump(dump: bytes) -> tuple[bytes, bytes]:
    """What smtp-sink put in front (up to a Received: of three lines), and the message."""
    begin = dump.index(b"\nReceived: ") + 1
    end = begin
    for _ in range(3):
        end = dump.index(b"\n", end) + 1
    assert dump.endswith(SEPARATOR)
    return dump[:end], dump[end : -len(SEPARATOR)]
