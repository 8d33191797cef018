"""The books: outcomes become durable, then public, and a run is closed when its last one came.

Outcomes are handed in without waiting, from anywhere in the loop; a fixed number of bookkeepers
puts them into the store. All of one message go through one bookkeeper at a time, in order, so that
the end of its run is written last.

Runs that end with their first outcomes, and well, are the bulk of all work and need no bookkeeper:
whatever of them has gathered is one call of the store, and the next ones gather meanwhile.

When the scheduler ends, also by cancellation, what was handed in is still written: the bookkeepers
run behind a shield, whose deadline is set when no more will come.
"""

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.outcome import Action, RecipientOutcome
from protocol.request import Protocol
from worker.queue.active import ActiveMessage
from worker.queue.conclusion import (
    Decision,
    RunEnd,
    conclude,
    concluded,
    finish_of,
    is_reported,
    softened,
    write_notices,
)
from worker.queue.patience import patiently
from worker.queue.records import Finish, NoticeDraft
from worker.queue.routing import Delivery, Router
from worker.queue.settings import QueueSettings
from worker.queue.store import Settlement, Store, StoreError
from worker.status.events import (
    Emit,
    MessageRemoved,
    NoticeQueued,
    RecipientProbed,
    RecipientSettled,
    UnexpectedError,
    Warned,
)

# More than the commits that fit into the time of one: each waits for its group.
BOOKKEEPERS: Final = 200
FINISH_LIMIT: Final = 500  # runs ended in one call: bounds how long the loop is busy with them

ROUTE_LIMIT: Final = 1.0  # seconds for tables to say by which protocol a message was delivered

News = list[tuple[str, RecipientOutcome]]  # (program, outcome)


class Books:
    """Writes down what became of recipients.

    `forget` is called for every run that has ended, with the time when that leaves something to be
    claimed (0: at once; None: nothing).
    """

    def __init__(
        self,
        store: Store,
        emit: Emit,
        wall: Callable[[], float],
        settings: QueueSettings,
        router: Router,
        forget: Callable[[ActiveMessage, float | None], None],
    ) -> None:
        self._store = store
        self._emit = emit
        self._wall = wall
        self._forget = forget
        self.settings = settings
        self.router = router
        self._queue: deque[ActiveMessage] = deque()
        self._well: list[ActiveMessage] = []  # whose runs have ended well
        self._ended = trio.Event()  # one has, or we are closing
        self._idle = trio.lowlevel.ParkingLot()
        self._shield = trio.CancelScope(shield=True)
        self._closing = False

    # --- in ------------------------------------------------------------------------------------

    def hand_in(
        self, active: ActiveMessage, program: str, outcomes: Sequence[RecipientOutcome]
    ) -> None:
        """Outcomes of one request, one per recipient; they will be durable, then logged."""
        if active.message.probe:
            outcomes = [concluded(outcome) for outcome in outcomes]
        elif self.settings.soft_bounce:
            outcomes = [softened(outcome) for outcome in outcomes]
        active.inbox += [(program, outcome) for outcome in outcomes]
        active.undecided -= len(outcomes)
        if not active.undecided and not active.waiting and _all_is_well(active, self.settings):
            active.waiting = True
            self._well.append(active)
            self._ended.set()
        else:
            self._queue_up(active)

    def hand_in_stopped(
        self, active: ActiveMessage, program: str, outcomes: Sequence[RecipientOutcome]
    ) -> None:
        """Outcomes of a request that our shutdown cut short: the deferred were not really tried.

        They are written down, which clears their mark of doubt, but they end no run: the message
        stays claimed, and so is due at once when the queue is opened again.
        """
        untried = [outcome for outcome in outcomes if outcome.action is Action.DEFERRED]
        active.inbox += [(program, outcome) for outcome in untried]
        self.hand_in(active, program, [item for item in outcomes if item not in untried])

    def hand_in_gone(self, active: ActiveMessage, recipients: int) -> None:
        """The message was deleted; so many of its recipients need no outcome any more."""
        active.gone = True
        active.undecided -= recipients
        self._queue_up(active)

    def hand_in_empty(self, active: ActiveMessage) -> None:
        """A message without recipients to try: only its notices are missing."""
        self._queue_up(active)

    def _queue_up(self, active: ActiveMessage) -> None:
        if not active.waiting:
            active.waiting = True
            self._queue.append(active)
            self._idle.unpark()

    # --- the bookkeepers -----------------------------------------------------------------------

    async def run(self) -> None:
        """Write until close(); then until all is written, or the limit given there."""
        with self._shield:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._finish_runs, nursery)
                for _ in range(BOOKKEEPERS):
                    nursery.start_soon(self._bookkeeper)

    def close(self, limit: float) -> None:
        """No more will be handed in; what was has `limit` seconds to become durable.

        What does not is still marked in doubt in the store.
        """
        self._closing = True
        self._shield.deadline = trio.current_time() + limit
        self._idle.unpark_all()
        self._ended.set()

    async def _finish_runs(self, nursery: trio.Nursery) -> None:
        """End the runs that went well."""
        while not self._closing or self._well:
            if not self._well:
                self._ended = trio.Event()
                await self._ended.wait()
                continue
            runs, self._well = self._well[:FINISH_LIMIT], self._well[FINISH_LIMIT:]
            try:
                kept = await self._store.finish([_finished(active) for active in runs])
            except Exception:  # noqa: BLE001 - one may be the cause: alone, it is said of which
                for active in runs:
                    nursery.start_soon(self._write_down, active)
                continue
            for active in runs:
                self._publish(active, active.inbox)
                if active.message.id in kept:  # a run that was cut short has left something
                    self._forget(active, 0.0)
                else:
                    self._emit(MessageRemoved(active.message.queue_id))
                    self._forget(active, None)

    async def _bookkeeper(self) -> None:
        while True:
            if self._queue:
                await self._write_down(self._queue.popleft())
            elif self._closing:
                return
            else:
                await self._idle.park()

    async def _write_down(self, active: ActiveMessage) -> None:
        while active.inbox or not active.undecided:
            news, active.inbox = active.inbox, []
            if not active.undecided:
                self._forget(active, await self._end_run(active, news))
                return
            await self._settle(active, news)
        active.waiting = False

    async def _settle(self, active: ActiveMessage, news: News) -> None:
        """Outcomes of a run that goes on."""
        message = active.message
        settlements = [
            Settlement(item, is_reported(message, item, self.settings)) for _, item in news
        ]
        await patiently(lambda: self._store.settle(message.id, settlements), self._emit)
        self._publish(active, news)
        _sort(active, news, self.settings)

    def _publish(self, active: ActiveMessage, news: News) -> None:
        probe = active.message.probe
        for program, outcome in news:
            # A deferred probe was cut short by our shutdown: nothing was found out.
            found = probe and outcome.action is not Action.DEFERRED
            kind = RecipientProbed if found else RecipientSettled
            self._emit(kind(active.message.queue_id, program, outcome))

    # --- the end of a run ----------------------------------------------------------------------

    async def _end_run(self, active: ActiveMessage, news: News) -> float | None:
        """The last outcomes, and all that follows from the run, in one commit. Returns `due`."""
        message = active.message
        if active.gone:
            self._publish(active, news)
            return None
        settlements = [
            Settlement(item, is_reported(message, item, self.settings)) for _, item in news
        ]
        _sort(active, news, self.settings)
        end = RunEnd(
            message=message,
            failed=active.failed,
            confirm=active.confirm,
            deferred=active.deferred,
            now=self._wall(),
            interrupted=active.interrupted,
        )
        decision, finish = await self._decide(end)
        settlements += [
            Settlement(item, is_reported(message, item, self.settings)) for item in decision.expired
        ]
        notice_ids = await patiently(
            lambda: self._store.settle(message.id, settlements, finish), self._emit
        )
        self._publish(active, news)
        # Not strict: a message that was deleted meanwhile reports nothing, and has no notices.
        for draft, notice_id in zip(finish.notices, notice_ids, strict=False):
            self._emit(NoticeQueued(message.queue_id, draft.kind, notice_id))
        due = 0.0 if active.partial or notice_ids else finish.next_attempt
        for event in decision.events:
            if not isinstance(event, MessageRemoved):
                self._emit(event)
            elif await self._anything_left(event.queue_id):
                due = 0.0
            else:
                self._emit(event)
                due = 0.0 if notice_ids else None
        return due

    async def _anything_left(self, queue_id: str) -> bool:
        """This run left nothing; others may have, that took other recipients or were cut short."""
        return bool(await patiently(lambda: self._store.summaries([queue_id]), self._emit))

    async def _decide(self, end: RunEnd) -> tuple[Decision, Finish]:
        """What follows from a run. A mistake of ours in it must neither lose nor stop anything."""
        try:
            decision = conclude(end, self.settings)
            drafts = await self._drafts(decision, end)
        except Exception:  # noqa: BLE001 - one message's trouble; the outcomes must be kept
            what = "writing notices"
            self._emit(UnexpectedError(what, traceback.format_exc(), end.message.queue_id))
            # Unreported outcomes stay in the store, and the message comes back for its notices.
            later = end.now + self.settings.maximal_backoff
            return Decision(), Finish(message_id=end.message.id, next_attempt=later)
        return decision, finish_of(decision, drafts, end.message.id)

    async def _drafts(self, decision: Decision, end: RunEnd) -> list[NoticeDraft]:
        if not decision.notices:
            return []
        head, size = b"", decision.head_size
        if size:
            try:
                head = await self._store.content_head(end.message.id, size)
            except (
                StoreError,
                OSError,
            ) as exc:  # better a notice without it than none
                self._emit(Warned(f"notice without original: {exc}", end.message.queue_id))
        protocols = await self._protocols(end) if self.settings.notices.assume_final else []
        return write_notices(decision, end, head, self.settings, protocols)

    async def _protocols(self, end: RunEnd) -> list[Protocol]:
        """By which protocol confirmed recipients were reached; of the first ones, if it takes long.

        Asked again, not remembered: the outcomes may be from before a restart. They wait for this.
        """
        protocols: list[Protocol] = []
        with trio.move_on_after(ROUTE_LIMIT):
            for item in () if end.message.probe else end.confirm:
                route = await self.router.route(item.recipient.address)
                protocols.append(route.protocol if isinstance(route, Delivery) else Protocol.SMTP)
        return protocols


def _all_is_well(active: ActiveMessage, settings: QueueSettings) -> bool:
    """The end of the run needs neither notice nor another attempt: the usual case."""
    if active.failed or active.confirm or active.deferred or active.partial or active.gone:
        return False
    for _, outcome in active.inbox:
        if outcome.action is Action.DEFERRED or is_reported(active.message, outcome, settings):
            return False
    return True


def _finished(active: ActiveMessage) -> tuple[int, list[int]]:
    """As Store.finish() takes it: message id, recipient keys."""
    return active.message.id, [outcome.recipient.key for _, outcome in active.inbox]


def _sort(active: ActiveMessage, news: News, settings: QueueSettings) -> None:
    """Keep what the end of the run must know."""
    for _, outcome in news:
        if outcome.action is Action.DEFERRED:
            active.deferred.append(outcome)
        elif is_reported(active.message, outcome, settings):
            (active.confirm if outcome.action is Action.SENT else active.failed).append(outcome)
