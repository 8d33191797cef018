"""The cache daemon as a process of its own, for tests."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.cache_wire import (
    ANNOUNCEMENT_WIRE,
    DUMMY_WIRE,
    FindEndpoint,
    Reply,
    SaveEndpoint,
    Status,
)

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 20.0  # seconds; a test that needs them has failed
STARTED: Final = "connection cache started"


class CacheProcess:
    """A daemon with these options, from entering the context to leaving it; logs into a file."""

    def __init__(
        self, *options: str, command: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> None:
        """`command`: instead of `python -m scache`."""
        self.directory = Path(tempfile.mkdtemp(prefix="scache-"))
        self.log = self.directory / "log"
        self._command = [*(command or (sys.executable, "-P", "-m", "scache")), *options]
        self._pass_fds = pass_fds
        self.process: subprocess.Popen[bytes] | None = None
        self._last_words = ""

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        try:
            self.wait_for(STARTED)
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

    def _leave(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._last_words = self.said()
        shutil.rmtree(self.directory)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else self._last_words

    def wait_for(self, text: str, count: int = 1) -> None:
        """Return when the log has `text`, `count` times."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while self.said().count(text) < count:
            assert self.process.poll() is None, f"the daemon ended: {self.said()}"
            assert time.monotonic() < deadline, f"no {text!r} in {self.said()}"
            time.sleep(0.005)

    def end(self, number: int) -> int:
        """Send a signal that ends it; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


class BlockingClient:
    """A client that waits: for tests without a loop."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(path))

    def __enter__(self) -> Self:
        self.expect(ANNOUNCEMENT_WIRE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sock.close()

    def expect(self, octets: bytes) -> None:
        assert self.sock.recv(65_536) == octets

    def save(self, label: str, connection: socket.socket, ttl: int = 60) -> bytes:
        """Returns the answer."""
        self.sock.send(SaveEndpoint(ttl, label, "text").encode())
        self.expect(DUMMY_WIRE)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [connection.fileno()]))]
        self.sock.sendmsg([b"\0"], rights)
        return self.sock.recv(65_536)

    def find(self, label: str) -> socket.socket:
        self.sock.send(FindEndpoint(label).encode())
        self.expect(Reply(Status.OK, ("text",)).encode())
        self.sock.send(DUMMY_WIRE)
        _, fds, _, _ = socket.recv_fds(self.sock, 1, 1)
        self.sock.send(DUMMY_WIRE)
        return socket.socket(fileno=fds[0])
