"""A server of ours as a process of its own, e.g. `python -m bench.dns`, ready when it is entered.

Answers for its life, from the line by which it says that it listens to its end.
"""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from bench.harness.scenario import LoadError

READY: Final = "listening on "
START_LIMIT: Final = 20.0  # seconds until it must listen
STOP_LIMIT: Final = 10.0  # seconds for SIGTERM to work


class ServerProcess:
    """`python -m MODULE ARGUMENTS`, a context manager. Raises LoadError if it does not listen."""

    def __init__(self, module: str, arguments: Sequence[str], *, listeners: int = 1) -> None:
        """`listeners`: how many lines `listening on ADDRESS:PORT` it prints when it is ready."""
        self.addresses: list[str] = []  # as printed
        self._command = [sys.executable, "-m", module, *arguments]
        self._module = module
        self._listeners = listeners
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # closed in _leave()

    @property
    def pid(self) -> int:
        """Raises LoadError when it does not run."""
        if self._process is None:
            raise LoadError(f"{self._module} does not run")
        return self._process.pid

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
        )
        try:
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

    def _wait_until_listening(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        deadline = time.monotonic() + START_LIMIT
        said = b""
        while said.count(b"\n") < self._listeners:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise LoadError(f"{self._module} does not listen after {START_LIMIT:.0f} s")
            more = os.read(process.stdout.fileno(), 65_536)
            if not more:
                self._complaints.seek(0)
                complaint = self._complaints.read().decode(errors="replace").strip()
                raise LoadError(f"{self._module} ended: {complaint.splitlines()[-1:]}")
            said += more
        lines = said.decode().splitlines()
        self.addresses = [line.removeprefix(READY) for line in lines if line.startswith(READY)]

    def _leave(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._complaints.close()
