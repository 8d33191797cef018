"""One sink in several processes: they share its listening sockets, and end together.

Answers for their lives. Each child serves, and writes its report into a pipe when it stops; the
parent adds nothing but waiting. Whichever of them gets a signal, or ends, all end; and none
outlives its parent, because a pipe that only the parent holds tells them.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Final, Self

STOP_LIMIT: Final = 10.0  # seconds for a child to end after it was told to

# Serves until one of these descriptors is ready; returns what goes into JSON.
Serve = Callable[[int, Sequence[int]], object]


class ProcessError(Exception):
    """A process of the sink did not end well: which, and how."""


class StopSignals:
    """SIGTERM and SIGINT make a descriptor ready, for this process and those that it forks."""

    def __enter__(self) -> Self:
        """From now on they end nothing by themselves. In the main thread only."""
        self.descriptor, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        # A wait in the kernel must notice a signal that came just before it.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._write)

    def leave_to_trio(self) -> None:
        """Let trio.run() have the wakeup descriptor, of which there is one in a process."""
        signal.set_wakeup_fd(-1)

    def stop(self) -> None:
        """As if a signal had come."""
        self._stop(signal.SIGTERM, None)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        with suppress(BlockingIOError):  # full of them already
            os.write(self._write, b"\0")


@dataclass(slots=True)
class _Child:
    pid: int
    pipe: int  # its report, then end of file


def serve_in_processes(
    count: int, serve: Serve, signals: StopSignals, started: Callable[[], None]
) -> list[Any]:
    """`serve(number, stop)` in `count` processes until told to stop; what each returned.

    `started` is called when all are there. With one, it is this process. Raises ProcessError when
    a child fails, after ending the others.
    """
    if count == 1:
        started()
        return [serve(0, [signals.descriptor])]
    sys.stdout.flush()
    sys.stderr.flush()
    alive, held = os.pipe2(os.O_CLOEXEC)  # held: by the parent alone
    children: list[_Child] = []
    try:
        for number in range(count):
            children.append(_fork(number, serve, signals, alive, held))  # noqa: PERF401
        started()
        poll = select.poll()
        for fd in (signals.descriptor, *(child.pipe for child in children)):
            poll.register(fd, select.POLLIN)
        poll.poll()
    finally:
        signals.stop()
        os.close(held)
        os.close(alive)
        deadline = time.monotonic() + STOP_LIMIT
        ended = [_collect(child, deadline) for child in children]
    for number, (status, report) in enumerate(ended, 1):
        if status or not report:
            raise ProcessError(f"process {number} of {count} ended with {_ending(status)}")
    return [json.loads(report) for _, report in ended]


def _fork(number: int, serve: Serve, signals: StopSignals, alive: int, held: int) -> _Child:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Child(pid, reading)
    status = os.EX_SOFTWARE
    try:
        os.close(held)
        os.close(reading)
        report = serve(number, [signals.descriptor, alive])
        with os.fdopen(writing, "w") as pipe:
            json.dump(report, pipe)
        status = os.EX_OK
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        sys.stderr.write(f"sink: {where}{exc.strerror or exc}\n")
        status = os.EX_OSERR
    except BaseException as exc:  # noqa: BLE001 - nothing may run on as a second parent
        sys.stderr.write(f"sink: {exc!r}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)  # not the parent's clean-up a second time


def _collect(child: _Child, deadline: float) -> tuple[int, bytes]:
    """The wait status and the report of a child that was told to stop; SIGKILL at `deadline`."""
    report = bytearray()
    poll = select.poll()
    poll.register(child.pipe, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
        if not (data := os.read(child.pipe, 65_536)):
            break
        report += data
    else:
        os.kill(child.pid, signal.SIGKILL)
    os.close(child.pipe)
    return os.waitpid(child.pid, 0)[1], bytes(report)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"status {code}, without a report"
