"""In-doubt marks before a request is sent, many slots' in one call of the store.

Everything that asks in the same tick of the loop goes together; the next tick does not wait for the
commit of this one, because the store groups commits by itself. If a group fails, each of its
members is tried alone: one unreadable content must not stop the others.
"""

from typing import Final

import trio

from worker.content import Content
from worker.queue.active import Entry
from worker.queue.store import Store, StoreError
from worker.status.events import Emit, Warned

PAUSES: Final = (1.0, 4.0, 16.0)  # seconds before the attempts of one that failed


class _Ask:
    """One slot's question, and its answer."""

    __slots__ = ("abandoned", "answer", "entries", "error", "task")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.answer: list[Content | None] = []
        self.error: StoreError | None = None
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.abandoned = False

    async def answered(self) -> None:
        """Wait for the answer or the error. No trio.Event: this happens for every message."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """It is answered."""
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None


class Begins:
    """Collects what the slots of one scheduler ask."""

    def __init__(self, store: Store, emit: Emit) -> None:
        self._store = store
        self._emit = emit
        self._asks: list[_Ask] = []
        self._asked = trio.Event()

    async def begin(self, entries: list[Entry]) -> list[Content | None]:
        """Mark entries in doubt, durably; their contents, which the caller closes.

        None: the store has no content for it. Raises StoreError when it keeps failing.
        """
        ask = _Ask(entries)
        self._asks.append(ask)
        self._asked.set()
        try:
            await ask.answered()
        except BaseException:  # cancelled: whoever holds the contents closes them
            ask.abandoned = True
            _close(ask.answer)
            raise
        if ask.error is not None:
            raise ask.error
        return ask.answer

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._asked.wait()
                asks, self._asks = self._asks, []
                self._asked = trio.Event()
                nursery.start_soon(self._answer, asks, nursery)

    async def _answer(self, asks: list[_Ask], nursery: trio.Nursery) -> None:
        error = await self._try(asks)
        if error is not None:
            self._emit(Warned(f"queue: {error}"))
            for ask in asks:
                nursery.start_soon(self._answer_alone, ask)

    async def _answer_alone(self, ask: _Ask) -> None:
        for pause in PAUSES:
            await trio.sleep(pause)
            ask.error = await self._try([ask])
            if ask.error is None:
                return
        ask.wake()

    async def _try(self, asks: list[_Ask]) -> StoreError | None:
        """Answer all of them, or none and return why."""
        attempts = [entry.attempt() for ask in asks for entry in ask.entries]
        try:
            contents = await self._store.begin(attempts)
        except StoreError as exc:
            return exc
        except Exception as exc:  # noqa: BLE001 - nothing is lost by trying again
            error = StoreError(f"cannot begin an attempt: {exc!r}")
            error.__cause__ = exc
            return error
        # From here to the end there is no await: each content has exactly one owner.
        place = 0
        for ask in asks:
            end = place + len(ask.entries)
            if ask.abandoned:
                _close(contents[place:end])
            else:
                ask.answer = contents[place:end]
                ask.wake()
            place = end
        return None


def _close(contents: list[Content | None]) -> None:
    for content in contents:
        if content is not None:
            content.close()
