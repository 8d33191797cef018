"""A process that the queue process keeps running: started, watched, told things, started again.

It serves a UNIX socket that is bound, and kept, here: what connects while the process is replaced
waits in the socket's backlog. The process inherits that socket, and as its standard input one end
of a socket pair, the lifeline: the end of file there tells it that we are gone. A worker says on it
when it takes slots (READY) and when it takes no more (STOPPING); we ask on it for a RELOAD, because
a signal that finds no handler yet would end the process.

When to start it again, and what to say about its end, is decided in `restarts.py`.
"""

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import trio

from worker.pool.restarts import Restarts
from worker.queue.listening import socket_address
from worker.status.events import Emit, Noted, Warned

RELOAD: Final = b"L"  # from us: read the configuration again
READY: Final = b"R"  # from a worker: it accepts slots
STOPPING: Final = b"S"  # from a worker: it accepts no more, and will end
KILL_TIMEOUT: Final = 5.0  # seconds to wait for what was killed: a dead disk may hold it longer
BACKLOG: Final = 1024  # clients that may wait while it is busy or being replaced


class Process(Protocol):
    """A running process, as trio has it."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """Its exit status once that is known; negative for a signal."""

    async def wait(self) -> int:
        """Wait for its end; its exit status, negative for a signal."""

    def send_signal(self, sig: signal.Signals) -> None:
        """Send a signal, unless it has ended."""


# (arguments, its listening socket, its standard input) -> the process. Raises OSError.
Start = Callable[[Sequence[str], int, int], Awaitable[Process]]


async def start_process(arguments: Sequence[str], listener: int, lifeline: int) -> Process:
    """Start a process of our own rights (a `Start`)."""
    return await trio.lowlevel.open_process(
        [*arguments, "--listen-fd", str(listener)], stdin=lifeline, pass_fds=[listener]
    )


def _nothing() -> None:
    """Nobody wants to know."""


class Child:
    """One such process. `ready`: it has said that it takes work, and has not ended since.

    `fresh`: its first life has come neither to that nor to its end. `refused`: that life ended
    before, because of the configuration.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        arguments: Sequence[str],
        emit: Emit,
        *,
        start: Start = start_process,
        changed: Callable[[], None] = _nothing,
    ) -> None:
        """Bind its socket. Raises OSError. `changed` is called whenever `ready` may differ."""
        self.name = name  # for people: "worker process 0"
        self.path = path
        self.ready = False
        self.fresh = True
        self.refused = False
        self._arguments = arguments
        self._emit = emit
        self._start = start
        self._changed = changed
        self._process: Process | None = None
        self._lifeline: socket.socket | None = None
        self._stop = trio.Event()
        self._replaced = False  # its end was asked for, and another one is wanted
        self._asked: Process | None = None  # whose end was asked for
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)  # noqa: FBT003  # its parameters have no names
        with socket_address(path) as address:
            self._listener.bind(address)
        path.chmod(0o600)
        self._listener.listen(BACKLOG)

    @property
    def pid(self) -> int:
        """Its process id; 0: it does not run."""
        return 0 if self._process is None else self._process.pid

    async def supervise(self) -> None:
        """Keep the process running until stop(); close the socket on the way out."""
        restarts = Restarts()
        try:
            while not self._stop.is_set():
                started = trio.current_time()
                try:
                    status = await self._run_once()
                except OSError as exc:  # no memory, too many processes: that may pass
                    self._emit(Warned(f"{self.name} cannot be started: {exc.strerror}"))
                    status = os.EX_OSERR
                if self._stop.is_set():
                    return
                if self._replaced:
                    self._replaced = False
                    continue
                now = trio.current_time()
                pause = restarts.ended(started, now)
                self._emit(Warned(restarts.describe(self.name, status, pause, now)))
                if pause:
                    self._turn_away()
                    with trio.move_on_after(pause):
                        await self._stop.wait()
        finally:
            self._listener.close()
            self.path.unlink(missing_ok=True)

    async def _run_once(self) -> int:
        """From start to end of one process; its exit status. Raises OSError."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)  # noqa: FBT003
            self._lifeline = ours
            try:
                with theirs:
                    process = await self._start(
                        self._arguments, self._listener.fileno(), theirs.fileno()
                    )
                self._process = process
                if self._stop.is_set() or self._replaced:  # while it was being started
                    self._ask_to_end()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen_to, ours)
                    status = await self._wait(process)
                    nursery.cancel_scope.cancel()
                if self.fresh:
                    self.refused = status == os.EX_CONFIG
            finally:
                self._process = self._lifeline = None
                self.fresh = False
                self._set_ready(ready=False)
        return status

    async def _wait(self, process: Process) -> int:
        try:
            return await process.wait()
        except BaseException:
            # Cancelled: nobody will record its outcomes any more.
            process.send_signal(signal.SIGKILL)
            with trio.move_on_after(KILL_TIMEOUT, shield=True):
                await process.wait()
            raise

    async def _listen_to(self, lifeline: socket.socket) -> None:
        """Follow what it says of itself; whatever it is, it has no further power here."""
        with suppress(OSError):
            while said := await self._hear(lifeline):
                before = self.ready
                self._set_ready(ready=said.endswith(READY))
                if self.ready and not before:
                    self._emit(Noted(f"{self.name} is ready, process {self.pid}"))

    async def _hear(self, lifeline: socket.socket) -> bytes:
        await trio.lowlevel.wait_readable(lifeline)
        return lifeline.recv(64)

    def _set_ready(self, *, ready: bool) -> None:
        self.ready = ready
        self.fresh = self.fresh and not ready
        self._changed()

    def _turn_away(self) -> None:
        """Let nobody wait for a process that will not be there for a while."""
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()

    def stop(self) -> None:
        """Ask it to finish (SIGTERM); supervise() returns when it has."""
        self._stop.set()
        self._ask_to_end()

    def reload(self) -> None:
        """Ask it, if it runs, to read the configuration again; also while it is starting."""
        if self._lifeline is not None:
            with suppress(OSError):  # it has just ended, or has thousands of requests unread
                self._lifeline.send(RELOAD)

    def replace(self) -> None:
        """Ask it to finish (SIGTERM), and start another one when it has; for that it is no end."""
        if self._lifeline is not None:
            self._replaced = True
            self._set_ready(ready=False)
            self._ask_to_end()

    def _ask_to_end(self) -> None:
        """SIGTERM, once: a second one may find its handler gone, and its last words unwritten."""
        if self._asked is not self._process:
            self._asked = self._process
            self.send_signal(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal if the process runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
