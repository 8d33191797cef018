"""The worker processes as the queue process has them: started, watched, restarted, given slots.

Each listens on a socket in `private/` that is made, and kept, here: a slot opened while a worker
restarts waits in the socket's backlog instead of failing. A worker that ends by itself is started
again, after a pause that doubles with every early end, so that a crash loop is reported and does
not spin.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from protocol.outcome import DeliveryResult
from protocol.request import DeliveryRequest
from worker.content import Content
from worker.queue.listening import socket_address
from worker.slots import StreamSlot
from worker.status.events import Emit, Noted, Warned

RELOAD: Final = b"R"  # on the lifeline (worker.py)
BACKLOG: Final = 1024  # slots that may be opened while a worker is busy or restarting
FIRST_PAUSE: Final = 1.0  # seconds before a worker that ended early is started again
LONGEST_PAUSE: Final = 60.0
HEALTHY_AFTER: Final = 60.0  # seconds of life after which an end is not "early" any more


class WorkerProcess:
    """One worker: its socket, its process, and how many slots it serves."""

    def __init__(self, path: Path, command: Sequence[str], emit: Emit) -> None:
        """`command`: arguments of a worker, to which the socket's descriptor is added."""
        self.path = path
        self.open_slots = 0
        self._command = command
        self._emit = emit
        self._process: trio.Process | None = None
        self._lifeline = -1  # our end of its standard input: closed, it knows that we are gone
        self._stop = trio.Event()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(path) as address:
            self._listener.bind(address)
        path.chmod(0o600)
        self._listener.listen(BACKLOG)

    async def supervise(self) -> None:
        """Keep the process running until stop(); close the socket on the way out."""
        pause = FIRST_PAUSE
        try:
            while not self._stop.is_set():
                started = trio.current_time()
                status = await self._run_once()
                if self._stop.is_set():
                    return
                if trio.current_time() - started > HEALTHY_AFTER:
                    pause = FIRST_PAUSE
                self._emit(Warned(f"{self._describe(status)} -- restarting in {pause:.0f}s"))
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            self._listener.close()
            self.path.unlink(missing_ok=True)

    async def _run_once(self) -> int:
        """From start to end of one process; its exit status."""
        descriptor = self._listener.fileno()
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            try:
                self._process = await trio.lowlevel.open_process(
                    [*self._command, "--listen-fd", str(descriptor)],
                    stdin=lifeline,
                    pass_fds=[descriptor],
                )
            finally:
                os.close(lifeline)
            return await self._wait(self._process)
        finally:
            self._process = None
            os.close(self._lifeline)
            self._lifeline = -1

    async def _wait(self, process: trio.Process) -> int:
        try:
            return await process.wait()
        except BaseException:
            # Cancelled: nobody will record its outcomes any more.
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            raise

    def _describe(self, status: int) -> str:
        if status < 0:
            return f"worker process was killed by signal {signal.Signals(-status).name}"
        return f"worker process ended with status {status}"

    def stop(self) -> None:
        """Ask it to finish (SIGTERM); supervise() returns when it has."""
        self._stop.set()
        self.send_signal(signal.SIGTERM)

    def reload(self) -> None:
        """Ask it, if it runs, to read the configuration again; also while it is starting."""
        if self._lifeline >= 0:
            with suppress(OSError):  # it has just ended, or has thousands of requests unread
                os.write(self._lifeline, RELOAD)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal if the process runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


class Workers:
    """All worker processes of this node; gives out slots (`worker.queue.slot.SlotOpener`)."""

    def __init__(self, directory: Path, count: int, command: Sequence[str], emit: Emit) -> None:
        """Make the sockets `worker.0`, `worker.1`, ... in `directory`. Raises OSError."""
        self._emit = emit
        self._processes = [
            WorkerProcess(directory / f"worker.{number}", command, emit) for number in range(count)
        ]

    async def run(self) -> None:
        """Keep them all running until stop() and their ends."""
        async with trio.open_nursery() as nursery:
            for process in self._processes:
                nursery.start_soon(process.supervise)
        self._emit(Noted("worker processes ended"))

    def stop(self) -> None:
        """Ask all of them to finish."""
        for process in self._processes:
            process.stop()

    def reload(self) -> None:
        """Have all of them read the configuration again."""
        for process in self._processes:
            process.reload()

    async def open_slot(self) -> "CountedSlot":
        """A slot at the worker that serves the fewest. Raises WorkerLost."""
        process = min(self._processes, key=lambda worker: worker.open_slots)
        process.open_slots += 1
        try:
            return CountedSlot(await StreamSlot.connect(process.path), process)
        except BaseException:
            process.open_slots -= 1
            raise


class CountedSlot:
    """A slot that its worker's count knows of until it is closed."""

    def __init__(self, slot: StreamSlot, process: WorkerProcess) -> None:
        self._slot = slot
        self._process: WorkerProcess | None = process

    async def send(self, request: DeliveryRequest, content: Content) -> None:
        """See `Slot.send`."""
        await self._slot.send(request, content)

    async def receive(self) -> DeliveryResult:
        """See `Slot.receive`."""
        return await self._slot.receive()

    async def aclose(self) -> None:
        """See `Slot.aclose`."""
        if self._process is not None:
            self._process.open_slots -= 1
            self._process = None
        await self._slot.aclose()


def worker_command(arguments: Sequence[str]) -> list[str]:
    """How a worker process is started: this interpreter, this package, `postrio worker`."""
    return [sys.executable, "-m", "worker", "worker", *arguments]
