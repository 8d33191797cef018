"""Sinks as processes of their own: smtp-sink for speed, and our own a round-trip time away.

Answers for their lives and for what is read off them: how many messages, in what time, at what
cost. Watching the sink, and not one peer's log or queue, is the same effort for every peer.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.harness.costs import process_cpu
from bench.harness.scenario import LoadError
from bench.harness.trees import remove_tree
from bench.postfix_instance import free_port
from bench.sink.count import read_count

SMTP_SINK: Final = "/usr/sbin/smtp-sink"
POLL: Final = 0.005  # seconds between two looks at a counter
SINK_SESSIONS: Final = 2_000  # at a time; with its usual 256, more would wait for those
START_LIMIT: Final = 10.0  # seconds until a sink must take connections
COUNT_TAIL: Final = 200  # octets at the end of smtp-sink's output that hold its last count


class SinkProcess(ABC):
    """A sink on every address of 127.0.0.0/8; a context manager.

    It listens on the wildcard address, for want of a way to name fifty; the peers dial loopback.
    """

    def __init__(self) -> None:
        self.port = free_port("0.0.0.0")
        self._directory = Path(tempfile.mkdtemp(prefix="sink-"))
        self._output = self._directory / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Return when it takes connections: a peer that is refused would come back much later."""
        try:
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=output
                )
            self._wait_until_listening(self._process)
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

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What to run. Raises LoadError when it is not there."""

    @abstractmethod
    def count(self) -> int:
        """Messages taken since the start."""

    def cpu(self) -> float:
        """CPU seconds that it has used. Raises LoadError when it does not run."""
        if self._process is None:
            raise LoadError("the sink does not run")
        return process_cpu(self._process.pid)

    def wait_for(self, count: int, deadline: float) -> None:
        """Return when it took `count` messages. Raises LoadError at `deadline` (monotonic)."""
        while (seen := self.count()) < count:
            if time.monotonic() > deadline:
                raise LoadError(f"the sink has {seen} of {count} messages, and time is up")
            time.sleep(POLL)

    def _wait_until_listening(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_LIMIT
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), START_LIMIT).close()
                return
            time.sleep(POLL)
        raise LoadError(f"the sink does not listen on port {self.port}")

    def _leave(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        remove_tree(self._directory)


class CountingSink(SinkProcess):
    """Debian's smtp-sink, which costs next to nothing."""

    def _command(self) -> Sequence[str]:
        if not Path(SMTP_SINK).exists():
            raise LoadError("smtp-sink is missing: install the Debian package postfix")
        # As root it would refuse to run; as anybody else it must not be told who to be.
        rights = ["-u", "nobody"] if os.geteuid() == 0 else []
        sessions = ["-m", str(SINK_SESSIONS)]
        return [SMTP_SINK, *rights, "-4", "-c", *sessions, f":{self.port}", "1024"]

    def count(self) -> int:
        """Messages taken since the start."""
        with self._output.open("rb") as output:
            size = output.seek(0, 2)
            output.seek(max(0, size - COUNT_TAIL))
            counts = output.read().split(b"mesg=")[1:]
        digits = counts[-1].split(maxsplit=1)[:1] if counts else []
        return int(digits[0]) if digits else 0


class OurSink(SinkProcess):
    """Our own sink with such a behaviour, which knows its connections."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self._words = words
        self._count = self._directory / "count"

    def _command(self) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "bench.sink", "--count", str(self._count)),
            *("--listen", shlex.join([f"0.0.0.0:{self.port}", *self._words])),
        ]

    def count(self) -> int:
        """Messages taken since the start; each counts before its reply leaves."""
        return read_count(self._count)[0]

    def connections(self) -> int:
        """How many connections brought a message."""
        return read_count(self._count)[1]


class FarSink(OurSink):
    """Our own sink, a round-trip time away (`sink/far_lane.py`)."""

    def __init__(self, rtt: float) -> None:
        """`rtt`: seconds."""
        super().__init__(f"rtt={rtt}")
