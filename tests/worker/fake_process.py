"""Processes that live as long as a test wants: a `worker.pool.child.Start` without any process."""

import itertools
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from worker.pool.child import READY


class FakeProcess:
    """One life. `lifeline` is its end, `listener` its listening socket."""

    def __init__(self, pid: int, listener: int, lifeline: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.signals: list[signal.Signals] = []
        self.deaf = False  # to SIGTERM
        self.listener = socket.socket(fileno=os.dup(listener))
        self.path = Path(self.listener.getsockname())
        self.lifeline = socket.socket(fileno=os.dup(lifeline))
        self.lifeline.settimeout(0)  # what was said is there
        self._ended = trio.Event()

    def say(self, word: bytes) -> None:
        """Speak on the lifeline."""
        self.lifeline.send(word)

    def end(self, status: int = 0) -> None:
        """It ends by itself."""
        if self.returncode is None:
            self.returncode = status
            self.listener.close()
            self.lifeline.close()
            self._ended.set()

    async def wait(self) -> int:
        """See Process."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: signal.Signals) -> None:
        """See Process; SIGTERM and SIGKILL end it at once."""
        self.signals.append(sig)
        if sig == signal.SIGKILL or (sig == signal.SIGTERM and not self.deaf):
            self.end(0 if sig == signal.SIGTERM else -sig)


class FakeProcesses:
    """Starts them; each lives `life` seconds (None: until something ends it), then `status`."""

    def __init__(self, life: float | None = None, status: int = 1) -> None:
        self.life = life
        self.status = status
        self.ready = True  # whether they say so at once
        self.refuses: OSError | None = None  # what starting one raises
        self.held_up: trio.Event | None = None  # starting one waits for this
        self.started: list[FakeProcess] = []
        self.times: list[float] = []
        self.arguments: list[Sequence[str]] = []
        self._pids = itertools.count(1001)

    async def __call__(self, arguments: Sequence[str], listener: int, lifeline: int) -> FakeProcess:
        """See Start."""
        await trio.lowlevel.checkpoint()
        if self.held_up is not None:
            await self.held_up.wait()
        self.times.append(trio.current_time())
        self.arguments.append(arguments)
        if self.refuses is not None:
            raise self.refuses
        process = FakeProcess(next(self._pids), listener, lifeline)
        self.started.append(process)
        if self.ready:
            process.say(READY)
        if self.life is not None:
            trio.lowlevel.spawn_system_task(self._end_later, process, self.life)
        return process

    async def _end_later(self, process: FakeProcess, life: float) -> None:
        await trio.sleep(life)
        process.end(self.status)
