"""The worker processes as the scheduler has them: which one gets a slot.

A slot goes to a worker that runs and has said that it takes slots; if none does, it waits, and the
mail with it. Among those, a destination goes back to the worker that served it last, if that was a
moment ago: it may still hold a warm session. Otherwise the one with the fewest slots gets it, and
warmth does not count where a worker has clearly more of them than another.

How a process is kept running is in `child.py`.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from protocol.outcome import DeliveryResult
from protocol.request import DeliveryRequest
from worker.content import Content
from worker.pool.child import Child, Start, start_process
from worker.pool.occupancy import SATURATED, Occupancy, Read, occupied_seconds
from worker.pool.slots import StreamSlot
from worker.queue.slot import DestinationKey, WorkerLost
from worker.status.events import Emit, Noted

# Seconds for which a session may be warm after its slot ended: that of the default
# smtp_connection_cache_time_limit. A wrong guess costs nothing but an uneven spread.
WARM_FOR: Final = 2.0
# Seconds for which the first slots wait for all workers, or the first to be ready gets them all.
FIRST_STARTS: Final = 2.0
SPREAD: Final = 2  # slots that a worker may have more than another, at least
SPREAD_SHARE: Final = 4  # and a fourth of what the other one has


def _nothing() -> None:
    """Nobody wants to know."""


class Worker:
    """One worker process, how many slots it serves, and how much time it has."""

    def __init__(self, child: Child, read: Read) -> None:
        self.child = child
        self.open_slots = 0
        self.occupancy = Occupancy(read)


class Workers:
    """All worker processes of this node; gives out slots (`worker.queue.slot.SlotOpener`)."""

    def __init__(
        self,
        directory: Path,
        count: int,
        command: Sequence[str],
        emit: Emit,
        *,
        start: Start = start_process,
        occupied: Read = occupied_seconds,
        refused: Callable[[], None] = _nothing,
    ) -> None:
        """Make the sockets `worker.0`, `worker.1`, ... in `directory`. Raises OSError.

        `refused` is called if none of them can live with the configuration from the start.
        """
        self._refused = refused
        self._emit = emit
        self._occupancy = Occupancy(occupied)  # of this process
        self._changed = trio.Event()  # a worker came or went, or we stop
        self._started = trio.Event()  # slots may be given out
        self._stopping = False
        # By destination: who served it last, until when that counts. In the order of time, so that
        # what is over goes first: it holds only what ended in the last WARM_FOR seconds.
        self._warm: OrderedDict[DestinationKey, tuple[Worker, float]] = OrderedDict()
        self._workers = [
            Worker(
                Child(
                    f"worker process {number}",
                    directory / f"worker.{number}",
                    command,
                    emit,
                    start=start,
                    changed=self._look_again,
                ),
                occupied,
            )
            for number in range(count)
        ]

    async def run(self) -> None:
        """Keep them all running until stop() and their ends."""
        async with trio.open_nursery() as nursery:
            for worker in self._workers:
                nursery.start_soon(worker.child.supervise)
            nursery.start_soon(self._watch_first_lives)
            with trio.move_on_after(FIRST_STARTS):
                while any(worker.child.fresh for worker in self._workers):
                    await self._changed.wait()
            self._started.set()
        self._emit(Noted("worker processes ended"))

    async def _watch_first_lives(self) -> None:
        while not self._stopping and any(worker.child.fresh for worker in self._workers):
            await self._changed.wait()
        if all(worker.child.refused for worker in self._workers):
            self._refused()

    def stop(self) -> None:
        """Ask all of them to finish."""
        self._stopping = True
        self._started.set()
        self._look_again()
        for worker in self._workers:
            worker.child.stop()

    def reload(self) -> None:
        """Have all of them read the configuration again."""
        for worker in self._workers:
            worker.child.reload()

    def replace(self) -> None:
        """Have all of them end in good order, and others start: they see what is new, too."""
        for worker in self._workers:
            worker.child.replace()

    async def open_slot(self, destination: DestinationKey) -> "CountedSlot":
        """A slot at a worker that runs; waits until there is one. Raises WorkerLost.

        A worker that runs and cannot be reached (its socket was removed) is passed over.
        """
        await self._started.wait()
        unreachable: list[Worker] = []
        while True:
            while (worker := self._choose(destination, unreachable)) is None:
                if self._stopping:
                    raise WorkerLost("no worker runs, and none will be started")
                await self._changed.wait()
            try:
                return await self._open_at(worker, destination)
            except WorkerLost:
                unreachable.append(worker)
                if self._least(unreachable) is None:
                    raise

    async def _open_at(self, worker: Worker, destination: DestinationKey) -> "CountedSlot":
        worker.open_slots += 1
        try:
            slot = await StreamSlot.connect(worker.child.path)
        except OSError as exc:  # no descriptor is left, for one
            worker.open_slots -= 1
            raise WorkerLost(f"cannot open a slot: {exc.strerror}") from exc
        except BaseException:
            worker.open_slots -= 1
            raise
        return CountedSlot(slot, self, worker, destination)

    def _choose(self, destination: DestinationKey, unreachable: list[Worker]) -> Worker | None:
        """The worker for a new slot; None: none runs."""
        least = self._least(unreachable)
        if least is None:
            return None
        warm, until = self._warm.get(destination, (least, 0.0))
        usable = warm.child.ready and warm not in unreachable
        if usable and trio.current_time() <= until and not _crowded(warm, least):
            return warm
        return least

    def _least(self, unreachable: Sequence[Worker] = ()) -> Worker | None:
        """The running worker with the fewest slots; None: none runs, or none can be reached."""
        running = [w for w in self._workers if w.child.ready and w not in unreachable]
        return min(running, key=lambda worker: worker.open_slots, default=None)

    def crowded(self, worker: Worker) -> bool:
        """It has clearly more slots than another, or takes no more: a slot there is misplaced.

        Where no worker has time for more, a slot is as well placed as anywhere, and keeps its
        session.
        """
        least = self._least()
        return least is not None and (
            not worker.child.ready or (_crowded(worker, least) and not self.saturated())
        )

    def saturated(self) -> bool:
        """See `SlotOpener.saturated`: all workers are occupied all the time, or this process is."""
        now = trio.current_time()
        shares = [w.occupancy.share(w.child.pid, now) for w in self._workers if w.child.ready]
        own = self._occupancy.share(os.getpid(), now)
        return own >= SATURATED or min(shares, default=0.0) >= SATURATED

    def closed(self, worker: Worker, destination: DestinationKey) -> None:
        """A slot has ended."""
        worker.open_slots -= 1
        now = trio.current_time()
        self._warm[destination] = (worker, now + WARM_FOR)
        self._warm.move_to_end(destination)
        while (oldest := next(iter(self._warm.items())))[1][1] < now:
            del self._warm[oldest[0]]

    def _look_again(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _crowded(worker: Worker, least: Worker) -> bool:
    room = max(SPREAD, least.open_slots // SPREAD_SHARE)
    return worker.open_slots > least.open_slots + room


class CountedSlot:
    """A slot that its worker's count knows of until it is closed."""

    def __init__(
        self, slot: StreamSlot, workers: Workers, worker: Worker, destination: DestinationKey
    ) -> None:
        self._slot = slot
        self._workers = workers
        self._worker = worker
        self._destination = destination
        self._open = True

    @property
    def misplaced(self) -> bool:
        """See `Slot.misplaced`."""
        return self._workers.crowded(self._worker)

    async def send(self, request: DeliveryRequest, content: Content) -> None:
        """See `Slot.send`."""
        await self._slot.send(request, content)

    async def receive(self) -> DeliveryResult:
        """See `Slot.receive`."""
        return await self._slot.receive()

    async def aclose(self) -> None:
        """See `Slot.aclose`."""
        if self._open:
            self._open = False
            self._workers.closed(self._worker, self._destination)
        await self._slot.aclose()


def worker_command(arguments: Sequence[str]) -> list[str]:
    """How a worker process is started: this interpreter, this package, `postrio worker`."""
    # -P: what lies in the current directory is not the program. The starter runs it as root.
    return [sys.executable, "-P", "-m", "worker", "worker", *arguments]
