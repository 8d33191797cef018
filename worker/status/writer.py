"""The log of one process: takes events without waiting, writes them in batches from a thread.

`LogWriter.emit` is the process's subscriber of events: it appends to a bounded buffer and returns.
`LogWriter.run`, a task, renders and writes what has gathered, so a loop that emits a hundred
events between two turns costs one system call. Rendering stays in the loop (a thread busy in
Python would make every delivery wait for the interpreter), writing goes to a thread (a pipe nobody
reads, or a dead file system, blocks). A full buffer or a failing sink loses lines, never time; how
many were lost is logged as soon as lines can be written again.
"""

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import trio

from worker.status.events import Emit, Event
from worker.status.log import LogLine, Severity, render, to_json
from worker.status.sinks import LogFormat, LogSettings, Record, Sink

BUFFER_LIMIT: Final = 50_000  # events: tens of megabytes, and seconds of a busy node
BATCH_LIMIT: Final = 500  # events rendered in one turn of the loop: about 5 ms
GATHER_TIME: Final = 0.02  # seconds between batches
FINAL_LIMIT: Final = 2.0  # seconds to write what is left when the process ends


class LogWriter:
    """See the module. One per process; every method but one is for the loop's thread."""

    def __init__(
        self,
        sink: Sink,
        settings: LogSettings,
        *,
        wall: Callable[[], float] = time.time,
        buffer_limit: int = BUFFER_LIMIT,
    ) -> None:
        """Takes over `sink`, which close() closes. `wall` gives the time of a line."""
        self._sink = sink
        self._settings = settings
        self._wall = wall
        self._buffer_limit = buffer_limit
        self._buffer: list[tuple[float, Event]] = []
        self._lost = 0  # records; not yet reported in the log
        self._ready = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._stopping = False
        self._written = -inf  # trio's time of the last batch
        self._reopen = False
        self._retired: list[Sink] = []  # replaced, to be closed where nothing can be using them
        self._abandoned = False  # a thread hangs in the sink: it is not ours any more

    @property
    def lost(self) -> int:
        """How many records were lost and not yet reported."""
        return self._lost

    def emit(self, event: Event) -> None:
        """Take an event. Never blocks, never raises: a full buffer counts a loss."""
        if len(self._buffer) >= self._buffer_limit:
            self._lost += 1
            return
        self._buffer.append((self._wall(), event))
        if len(self._buffer) == 1:
            self._ready.set()

    def write_through(self, event: Event) -> None:
        """Write an event at once, from another thread: the loop may never turn again.

        A batch of the log's own thread may be on its way at the same time; each is one write.
        """
        self._sink.write(self._records(self._wall(), event))

    def configure(self, settings: LogSettings, sink: Sink | None = None) -> None:
        """Follow a new configuration; `sink`, if given, replaces the old one, which is closed."""
        self._settings = settings
        if sink is not None:
            self._retired.append(self._sink)
            self._sink = sink

    def reopen(self) -> None:
        """The file may have been renamed (SIGHUP): the next batch goes to one of that name."""
        self._reopen = True

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, then write what is left, for at most FINAL_LIMIT seconds.

        Cancellation never cuts a batch: the thread that writes it could not be stopped, and a
        second one would write into its lines.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_batches)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._stopping = True
                self._scope.deadline = trio.current_time() + FINAL_LIMIT
                self._ready.set()

    def flush(self) -> None:
        """Write everything now, blocking: for commands without a loop, and at the very end."""
        while self._buffer:
            self._write(*self._take())
        if self._lost:  # once: a sink that failed may fail again
            self._write(*self._take())

    def close(self) -> None:
        """Write what is left and close the sink."""
        if self._abandoned:
            return
        self.flush()
        for sink in (*self._retired, self._sink):
            sink.close()
        self._retired.clear()

    async def _write_batches(self) -> None:
        limiter = trio.CapacityLimiter(1)  # own: reads of contents must not use up the log's thread
        with self._scope:
            while not self._stopping or self._buffer:
                await self._ready.wait()
                # A line that comes alone is written at once; in a stream of them it waits for
                # company, because each batch is a thread woken and the interpreter handed over.
                if not self._stopping and len(self._buffer) < BATCH_LIMIT:
                    await trio.sleep_until(self._written + GATHER_TIME)
                records, reported = self._take()
                self._abandoned = True
                await trio.to_thread.run_sync(
                    self._write, records, reported, abandon_on_cancel=True, limiter=limiter
                )
                self._abandoned = False
                self._written = trio.current_time()

    def _write(self, records: Sequence[Record], reported: int) -> None:
        """Write one batch, counting what is lost of it; in the thread, or without a loop."""
        while self._retired:
            self._retired.pop().close()
        sink = self._sink
        if self._reopen:
            self._reopen = False
            sink.reopen()
        lost = sink.write(records)
        # Losses are at the end of a batch, and so is the line that reports earlier ones.
        if lost and reported:
            lost -= 1
            self._lost += reported
        self._lost += lost

    def _take(self) -> tuple[list[Record], int]:
        """The next batch, rendered, and how many lost records its last line reports."""
        batch, self._buffer = self._buffer[:BATCH_LIMIT], self._buffer[BATCH_LIMIT:]
        if not self._buffer and not self._stopping:
            self._ready = trio.Event()
        records = [record for when, event in batch for record in self._records(when, event)]
        reported, self._lost = self._lost, 0
        if reported:
            text = f"warning: {reported} log records were lost: the log was full or failed"
            records.append(Record(self._wall(), LogLine("postrio", Severity.WARNING, text)))
        return records, reported

    def _records(self, when: float, event: Event) -> Sequence[Record]:
        lines = render(event, self._settings.resolution)
        if self._settings.format is LogFormat.TEXT:
            return [Record(when, line) for line in lines]
        first = lines[0] if lines else LogLine("postrio", Severity.INFO, "")
        return [Record(when, first, to_json(event))]


def fan_out(*subscribers: Emit) -> Emit:
    """One subscriber that passes every event on to all of these, in order."""

    def emit(event: Event) -> None:
        for subscriber in subscribers:
            subscriber(event)

    return emit
