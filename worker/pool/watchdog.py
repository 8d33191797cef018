"""The watchdog of a process (S165): an event loop that does not turn is reported, then abandoned.

A task bumps a counter once a second; a thread looks at it. A loop that has not turned for a while
is a mistake of ours, or of something it called: the log says once where it is stuck. After
daemon_timeout the log gets the stacks of all threads and tasks, and the process ends, so that
whoever started it starts another one. One delivery that takes too long does not come here: the
worker cancels it (delivery/deliver.py).

Some code never lets another Python thread run (a regular expression that backtracks without end).
Then the interpreter's own watcher (faulthandler) writes the stacks of the threads to standard error
and ends the process, a little later and with status 1.

Between the signs of life the task measures how late its timers fire (lateness.py): a loop that
turns, but slowly, shows there. The process tells when it ends.
"""

import faulthandler
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePath
from types import FrameType
from typing import Final

import trio

from worker.pool.lateness import Lateness
from worker.status.events import Emit, Warned

BEAT: Final = 1.0  # seconds between two signs of life, and between two looks
TIMERS: Final = 5  # in each beat: enough for a percentile of a minute, and few for an idle node
WARN_AFTER: Final = 10.0  # seconds without a turn that are worth a line
SHORTEST: Final = 3.0  # seconds: with less, a busy machine would end a sound process
DUMP_LIMIT: Final = 10.0  # seconds for the stacks to be written; a full pipe must not keep us
FRAMES_SHOWN: Final = 25  # of one stack, the innermost ones
STANDARD_ERROR: Final = 2


class Stall:
    """Counts looks without a sign of life between them. No clock.

    Not the time between two looks: a process that was stopped (SIGSTOP) has not been stuck.
    """

    def __init__(self) -> None:
        self._seen = -1
        self.looks = 0  # in a row that found no new sign

    def look(self, beats: int) -> int:
        """Returns how many looks in a row have found this number."""
        if beats != self._seen:
            self._seen, self.looks = beats, 0
        else:
            self.looks += 1
        return self.looks


class Watchdog:
    """Watches the loop that run() runs in. `limit` (seconds, daemon_timeout) may be changed."""

    def __init__(
        self,
        limit: float,
        write: Emit,
        *,
        end: Callable[[int], None] = os._exit,  # the only way out of a stuck loop
    ) -> None:
        """`write` takes an event from another thread and writes it at once; `end` gets a status."""
        self.limit = limit
        self.lateness = Lateness()  # of this loop since run()
        self._write = write
        self._end = end
        self._beats = 0
        self._stopped = threading.Event()
        self._root: trio.lowlevel.Task | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        self._root = trio.lowlevel.current_root_task()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            while True:
                self._beats += 1
                later = max(self.limit, SHORTEST) + 2 * BEAT + DUMP_LIMIT  # after our own thread
                faulthandler.dump_traceback_later(later, exit=True, file=STANDARD_ERROR)
                for _ in range(TIMERS):
                    due = trio.current_time() + BEAT / TIMERS
                    await trio.sleep_until(due)
                    self.lateness.note(trio.current_time() - due)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._stopped.set()

    def _watch(self) -> None:
        stall = Stall()
        warned = False
        while not self._stopped.wait(BEAT):
            seconds = stall.look(self._beats) * BEAT
            limit = max(self.limit, SHORTEST)
            if not seconds:
                warned = False
            elif seconds >= limit:
                self._give_up(seconds)
                return
            elif seconds >= min(WARN_AFTER, limit / 2) and not warned:
                warned = True
                self._write(Warned(f"the event loop has not turned for {seconds:.0f} s: {_here()}"))

    def _give_up(self, seconds: float) -> None:
        dump = threading.Thread(target=self._dump, args=(seconds,), daemon=True)
        dump.start()
        dump.join(DUMP_LIMIT)
        self._end(os.EX_SOFTWARE)

    def _dump(self, seconds: float) -> None:
        text = f"watchdog: the event loop has not turned for {seconds:.0f} s (daemon_timeout)"
        self._write(Warned(f"{text}: the process ends; its stacks:"))
        for line in thread_stacks():
            self._write(Warned(f"watchdog: {line}"))
        if self._root is not None:
            for line in task_stacks(self._root):
                self._write(Warned(f"watchdog: {line}"))


def _here() -> str:
    """Where the main thread is, which runs the loop."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    return "" if frame is None else _stack(frame)


def thread_stacks() -> list[str]:
    """One line for each thread of the process, the innermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001  # as its documentation says, for this purpose
    return [f"thread {names.get(ident, ident)}: {_stack(f)}" for ident, f in frames.items()]


def task_stacks(root: trio.lowlevel.Task) -> list[str]:
    """One line for each different stack below `root`, with the number of tasks that have it.

    May be called from another thread while the loop stands still.
    """
    stacks: Counter[str] = Counter()
    for task in _tasks(root):
        places = [_place(frame, line) for frame, line in task.iter_await_frames()]
        stacks[f"{task.name}: {_joined(places[::-1])}"] += 1
    return [f"{count} x task {stack}" for stack, count in stacks.most_common()]


def _tasks(root: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    waiting = [root]
    while waiting:
        task = waiting.pop()
        yield task
        with suppress(RuntimeError):  # it turned after all, and the set changed under us
            for nursery in task.child_nurseries:
                waiting += list(nursery.child_tasks)


def _stack(frame: FrameType | None) -> str:
    places = []
    while frame is not None:
        places.append(_place(frame, frame.f_lineno))
        frame = frame.f_back
    return _joined(places)


def _joined(places: list[str]) -> str:
    return " < ".join(places[:FRAMES_SHOWN])


def _place(frame: FrameType, line: int) -> str:
    """Without source text: reading files is nothing for a process in trouble."""
    path = "/".join(PurePath(frame.f_code.co_filename).parts[-2:])
    return f"{frame.f_code.co_name} ({path}:{line})"
