"""A postrio of our own in one directory: `postrio run` as a child, and a queue filled beforehand.

Answers for the same things as `postfix_instance.py` does for the other side. Synchronous, but for
`fill_queue` and `submit_concurrently`, which are trio programs of their own.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from bench.harness.scenario import LoadError
from bench.harness.trees import remove_tree
from bench.load import message
from protocol.request import Recipient
from worker.queue.client import connect_submit
from worker.queue.records import Submission
from worker.queue.service import SUBMIT_SOCKET
from worker.queue.sqlite import open_store

START_LIMIT: Final = 60.0  # seconds until the queue process must take submissions
STOP_LIMIT: Final = 30.0  # seconds for SIGTERM to work
POLL: Final = 0.005  # seconds
FILLERS: Final = 200  # submissions at one time while a queue is filled: they share commits


class PostrioError(LoadError):
    """postrio did not start: why, with the end of its log."""


class PostrioInstance:
    """One `postrio run`, from `start()` to `stop()`; also a context manager that does both.

    directory: None for a temporary one that goes with the instance. main_cf: parameters on top of
    the few that make it independent of the machine.
    """

    def __init__(
        self, directory: Path | None = None, *, main_cf: Mapping[str, str] | None = None
    ) -> None:
        self._temporary = directory is None
        self.directory = (
            Path(tempfile.mkdtemp(prefix="postrio-")) if directory is None else directory
        )
        self.queue_directory = self.directory / "queue"
        self.main_cf = self.directory / "main.cf"
        self.log_file = self.directory / "log"
        parameters = {
            "myhostname": "bench.example",
            "queue_directory": str(self.queue_directory),
            "inet_protocols": "ipv4",
            **(main_cf or {}),
        }
        self.directory.mkdir(exist_ok=True)
        text = "".join(f"{name} = {value}\n" for name, value in parameters.items())
        self.main_cf.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0  # octets of the log that were looked at
        self._removed = 0  # messages that left, according to those

    def start(self) -> float:
        """Run it; returns the seconds until it took submissions. Raises PostrioError."""
        with self.log_file.open("ab") as log:
            began = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", "-c", str(self.main_cf)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._process, began + START_LIMIT)
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self._answers():
            if process.poll() is not None:
                raise PostrioError(f"postrio run ended{self._log_tail()}")
            if time.monotonic() > deadline:
                raise PostrioError(f"postrio run does not answer{self._log_tail()}")
            time.sleep(POLL)

    def stop(self) -> None:
        """End it, and what it started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT)
        finally:
            # What did not listen. The group is ours: the queue process was its leader.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def pid(self) -> int:
        """Process id of the queue process. Raises PostrioError when stopped."""
        if self._process is None:
            raise PostrioError("not running")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            self.remove()

    def remove(self) -> None:
        """Forget everything on disk, if the directory was our own."""
        if self._temporary:
            remove_tree(self.directory)

    def removed(self) -> int:
        """How many messages its log says have left the queue. Reads only what is new in it."""
        if self.log_file.exists():
            with self.log_file.open("rb") as log:
                log.seek(self._read)
                for line in log:
                    if line.endswith(b"\n"):  # one without an end is still being written
                        self._read += len(line)
                        self._removed += line.endswith(b": removed\n")
        return self._removed

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.queue_directory / SUBMIT_SOCKET))
            return True
        return False

    def _log_tail(self) -> str:
        if not self.log_file.exists():
            return ""
        lines = self.log_file.read_text(errors="replace").splitlines()[-10:]
        return "".join(f"\n  {line}" for line in lines)


def _submission(domain: str) -> Submission:
    return Submission(
        sender="load@source.example", recipients=(Recipient(address=f"user@{domain}"),)
    )


async def fill_queue(queue_directory: Path, count: int, domains: Sequence[str], size: int) -> None:
    """Queue `count` messages of `size` octets, for each domain in turn, with nobody delivering.

    Raises StoreError, e.g. while a queue process runs.
    """
    numbers = iter(range(count))

    async with await open_store(queue_directory) as store, trio.open_nursery() as nursery:

        async def fill() -> None:
            for number in numbers:
                spool = store.spool()
                try:
                    await spool.write(message(number, size))
                    submission = _submission(domains[number % len(domains)])
                    await store.submit(submission, spool, time.time())
                finally:
                    await spool.aclose()

        for _ in range(FILLERS):
            nursery.start_soon(fill)


async def submit_concurrently(
    queue_directory: Path, count: int, submitters: int, domains: Sequence[str], size: int
) -> float:
    """Durable submissions per second over the socket of a running queue process.

    Each submitter waits for "accepted" before its next message. Raises StoreError.
    """
    numbers = iter(range(count))

    async def submit() -> None:
        client = await connect_submit(queue_directory)
        if client is None:
            raise PostrioError("no queue process is running")
        async with client:
            for number in numbers:
                submission = _submission(domains[number % len(domains)])
                await client.submit(submission, _one_block(message(number, size)))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(submitters):
            nursery.start_soon(submit)
    return count / (trio.current_time() - began)


async def _one_block(content: bytes) -> AsyncIterator[bytes]:
    yield content
