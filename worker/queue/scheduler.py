"""The queue manager: due messages become delivery requests, as many at a time as each place bears.

The main path, top to bottom: `run` opens the nursery and ends it; `_claim_due` brings due messages
into the active set, `_take_up_all` routes their recipients, `_activate` queues them at
destinations; `_give_turns` opens slots, one destination after the other; `slot_feed.py` serves one
slot. What became of recipients goes to the books (books.py), which make it durable and end each
message's run.

Postfix's nouns and parameters, see qmgr(8): active set, destination concurrency, dead destination,
back-off. Memory is bounded by the active set; contents are read when their turn comes.
"""

import heapq
import itertools
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from protocol.outcome import Action, Delays, DeliveryResult, RecipientOutcome
from protocol.request import Recipient
from worker.queue.active import ActiveMessage, Entry, Share
from worker.queue.begins import Begins
from worker.queue.books import Books
from worker.queue.destinations import SOON, Destination, Destinations, Feedback
from worker.queue.patience import patiently
from worker.queue.ramp import Ramp
from worker.queue.records import QueuedMessage
from worker.queue.routing import UNAVAILABLE, Route, Router, Verdict
from worker.queue.settings import QueueSettings
from worker.queue.slot import SlotOpener
from worker.queue.slot_feed import NoWorker, SlotFeed
from worker.queue.store import Store
from worker.queue.transcript_notices import TranscriptNotices
from worker.status.events import (
    DeliveryInDoubt,
    DestinationSuspended,
    Emit,
    MessageActive,
    UnexpectedError,
    Warned,
)

CLAIM_LIMIT: Final = 500  # messages of one claim: bounds how long the loop is busy with them
_REFILL: Final = 0.75  # of the active set: it is filled again when it is down to this
_SWEEP_INTERVAL: Final = 60.0  # seconds between looks for destinations to forget
_FIRST_CLAIM: Final = 50  # nothing is known yet of how many recipients messages have
SETTLE_TIMEOUT: Final = 10.0  # seconds for outcomes to become durable when we end
# Seconds after which messages whose routes are known do not wait for the others of their claim.
ROUTING_PATIENCE: Final = 0.1
ROUTING_LIMIT: Final = 1000  # messages that are being routed at a time: each is a task
TOO_MANY_HOPS: Final = "too many hops"
DEFERRED_TRANSPORT: Final = "deferred transport"
QUANTUM: Final = 20  # requests a slot takes while another destination needs it more


class Scheduler:
    """One queue's manager. run() works until stop(); the other methods may be called meanwhile.

    `workers` gives out slots, `emit` gets every event, `wall` tells wall-clock seconds. The store
    stays the caller's, who closes it after run() has returned.
    """

    def __init__(
        self,
        store: Store,
        workers: SlotOpener,
        settings: QueueSettings,
        router: Router,
        emit: Emit,
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._workers = workers
        self._settings = settings
        self._router = router
        self._emit = emit
        self._wall = wall
        self._books = Books(store, emit, wall, settings, router, self._forget)
        self._begins = Begins(store, emit)
        self._transcripts = TranscriptNotices(store, emit, wall, settings.notices, self.wake)
        self._destinations = Destinations()
        self._delayed: list[tuple[float, int, Destination]] = []  # heap, by time (wall)
        self._serial = itertools.count()
        self._messages = 0  # the active set
        self._recipients = 0  # theirs
        self._typical = 0.0  # recipients per message, in the last claim; 0: not known
        self._partial: set[int] = set()  # messages with more recipients than one run takes
        self._routing = trio.Semaphore(ROUTING_LIMIT)
        self._flushed = 0.0  # wall: what was due by then also goes by defer_transports
        self._full = False  # the active set: nothing is claimed until it has room again
        self._next_look = 0.0  # wall: when the store is looked at again without wake(); 0: now
        self._next_sweep = 0.0  # wall
        self._slots = 0
        self._ramp = Ramp(workers.saturated)
        self._due = trio.Event()  # there may be something to claim, and room for it
        self._turn = trio.Event()  # a destination may be given a slot
        self._no_slots = trio.Event()
        self._stopping = trio.Event()

    # --- from outside --------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Manage the queue until stop(), or until cancelled.

        After stop() nothing new is claimed or sent; deliveries under way have
        postrio_shutdown_timeout to finish. Whatever is not settled then is simply still queued,
        and marked in doubt if it was under way.
        """
        for queue_id, recipient in await patiently(self._store.in_doubt, self._emit):
            self._emit(DeliveryInDoubt(queue_id, recipient))
        async with trio.open_nursery() as outer:
            outer.start_soon(self._books.run)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._begins.run)
                    nursery.start_soon(self._transcripts.run)
                    nursery.start_soon(self._claim_due, nursery)
                    nursery.start_soon(self._give_turns, nursery)
                    task_status.started()
                    await self._stopping.wait()
                    await self._drain()
                    nursery.cancel_scope.cancel()
            finally:
                self._books.close(SETTLE_TIMEOUT)

    def stop(self) -> None:
        """End run() in an orderly way (SIGTERM). Returns at once."""
        self._stopping.set()

    def wake(self) -> None:
        """Something was submitted, released or made due. Cheap."""
        self._due.set()

    def flush(self) -> None:
        """Try again at once, dead destinations too (postqueue -f); around Store.make_due().

        What is due now goes even by the transports in defer_transports, this once.
        """
        now = self._flushed = self._wall()
        for destination in self._destinations:
            if destination.is_dead(now):
                destination.revive()
            self._offer(destination, now)
        self.wake()

    def reload(self, settings: QueueSettings, router: Router) -> None:
        """A new configuration, for messages claimed and requests made from now on (SIGHUP)."""
        self._settings = self._books.settings = settings
        self._transcripts.settings = settings.notices
        self._router = self._books.router = router
        self._destinations.reload(settings.transports)
        for destination in self._destinations:
            limits = settings.transports.get(destination.route.transport)
            if limits is not None:
                destination.limits = limits
            self._offer(destination, self._wall())
        self.wake()

    @property
    def active_messages(self) -> int:
        """Messages in the active set."""
        return self._messages

    @property
    def open_slots(self) -> int:
        """Slots in use or being opened."""
        return self._slots

    # --- messages in ---------------------------------------------------------------------------

    async def _claim_due(self, nursery: trio.Nursery) -> None:
        """Keep the active set filled with what is due. `nursery`: for routing that takes time."""
        while not self._stopping.is_set():
            self._due = trio.Event()
            limit = self._room()
            self._full = not limit
            if limit:
                messages = await patiently(partial(self._claim, limit), self._emit)
                if messages:
                    self._typical = sum(len(m.recipients) for m in messages) / len(messages)
                await self._take_up_all(messages, nursery)
                if len(messages) == limit:
                    continue
            await self._until_due()

    async def _claim(self, limit: int) -> list[QueuedMessage]:
        most = self._settings.recipient_limit
        return await self._store.claim(self._wall(), limit, recipient_limit=most)

    def _room(self) -> int:
        """How many messages to claim now."""
        settings = self._settings
        room = min(settings.active_limit - self._messages, CLAIM_LIMIT)
        recipients = settings.recipient_limit - self._recipients
        if room <= 0 or recipients <= 0:
            return 0
        if not self._typical:
            return min(room, _FIRST_CLAIM)
        return min(room, max(1, int(recipients / max(1.0, self._typical))))

    async def _until_due(self) -> None:
        """Wait for wake(), for room, or for the next message to become due.

        queue_run_delay bounds the wait: the wall clock may be set while we sleep.
        """
        now = self._wall()
        wait = self._settings.queue_run_delay
        if not self._full:
            due = await patiently(self._store.next_due, self._emit)
            if due is not None:
                wait = min(wait, max(0.0, due - now))
        self._next_look = now + wait
        with trio.move_on_after(wait):
            await self._due.wait()
        self._next_look = 0.0  # we look anyhow
        if (now := self._wall()) >= self._next_sweep:
            self._next_sweep = now + _SWEEP_INTERVAL
            self._destinations.sweep(now)

    async def _take_up_all(self, messages: Sequence[QueuedMessage], nursery: trio.Nursery) -> None:
        """Make claimed messages active, and queue them at their destinations, in their order.

        A table may be on a server that hangs. So each message is routed by a task of its own, and
        who is not done after ROUTING_PATIENCE comes when it is, and holds up nobody.
        """
        taken = [active for message in messages if (active := self._take_up(message))]
        if not self._router.may_wait:  # then a task for each would be for nothing
            for active in taken:
                self._activate(active, await self._routes(active))
            return
        left = deque(taken)
        while left:
            await self._routing.acquire()  # here, where nobody waits for his turn
            batch = _Batch(left)
            with trio.move_on_after(ROUTING_PATIENCE):
                while True:
                    nursery.start_soon(self._route_beside, left.popleft(), batch)
                    if not left:
                        break
                    await self._routing.acquire()
                await batch.complete()
            for active, routes in batch.close():
                self._activate(active, routes)

    def _take_up(self, message: QueuedMessage) -> ActiveMessage | None:
        """Make a claimed message active; None: there is nothing to be routed."""
        recipients = message.recipients
        if len(recipients) + len(message.settled) >= self._settings.recipient_limit:
            self._partial.add(message.id)
        active = ActiveMessage(message, self._wall(), partial=message.id in self._partial)
        self._messages += 1
        self._recipients += len(recipients)
        self._emit(MessageActive(message.queue_id, message.sender, message.size, len(recipients)))
        if not recipients:
            self._books.hand_in_empty(active)
            return None
        if message.hops >= self._settings.hopcount_limit:
            outcomes = [
                self._own_outcome(active, recipient, Action.BOUNCED, "5.4.0", TOO_MANY_HOPS)
                for recipient in recipients
            ]
            self._books.hand_in(active, "cleanup", outcomes)  # it says so in Postfix
            return None
        return active

    async def _routes(self, active: ActiveMessage) -> Sequence[Route]:
        """The routes of all recipients. A mistake of ours defers them, and nothing else."""
        router, recipients = self._router, active.message.recipients
        try:
            return [await router.route(recipient.address) for recipient in recipients]
        except Exception:  # noqa: BLE001 - one message's trouble
            what = "routing a message"
            self._emit(UnexpectedError(what, traceback.format_exc(), active.message.queue_id))
            reason = "internal error while routing"
            return [Verdict("error", Action.DEFERRED, "4.3.0", reason)] * len(recipients)

    async def _route_beside(self, active: ActiveMessage, batch: "_Batch") -> None:
        """Route one message, while others are routed and delivered."""
        try:
            routes = await self._routes(active)
        finally:
            self._routing.release()
        if not batch.add(active, routes):
            self._activate(active, routes)

    def _activate(self, active: ActiveMessage, routes: Sequence[Route]) -> None:
        """Queue a message's recipients at their destinations."""
        # No await in here: a destination found must not be forgotten before it has its work.
        shares: dict[Destination, list[Recipient]] = {}
        now = self._wall()  # its routes may have taken long
        flushed = active.message.due <= self._flushed
        deferred = frozenset[str]() if flushed else self._settings.defer_transports
        for recipient, route in zip(active.message.recipients, routes, strict=True):
            if isinstance(route, Verdict):
                outcome = self._own_outcome(
                    active, recipient, route.action, route.dsn, route.reason
                )
                self._books.hand_in(active, route.program, [outcome])
                continue
            if route.transport in deferred:
                reason = DEFERRED_TRANSPORT
                outcome = self._own_outcome(active, recipient, Action.DEFERRED, "4.3.2", reason)
                self._books.hand_in(active, "error", [outcome])
                continue
            limits = self._settings.transports[route.transport]
            destination = self._destinations.find(route, recipient.address, limits)
            shares.setdefault(destination, []).append(recipient)
        for destination, recipients in shares.items():
            if destination.is_dead(now):
                self._suspend_entry(destination, Entry(active, tuple(recipients)))
            else:
                destination.queue.add(Share(active, recipients))
                self._offer(destination, now)

    def _forget(self, active: ActiveMessage, due: float | None) -> None:
        """A run has ended (called by the books). `due`: when it left something to be claimed."""
        self._messages -= 1
        self._recipients -= len(active.message.recipients)
        if due is None:
            self._partial.discard(active.message.id)
        settings = self._settings
        room = (
            self._messages <= settings.active_limit * _REFILL
            and self._recipients <= settings.recipient_limit * _REFILL
        )
        if (self._full and room) or (due is not None and due < self._next_look):
            self.wake()

    # --- slots ---------------------------------------------------------------------------------

    async def _give_turns(self, nursery: trio.Nursery) -> None:
        """Open slots where there is work and room, one destination after the other."""
        while not self._stopping.is_set():
            self._turn = trio.Event()
            now = self._wall()
            while self._delayed and self._delayed[0][0] <= now:
                destination = heapq.heappop(self._delayed)[2]
                destination.paused = False
                self._offer(destination, now)
            self._destinations.admit(now)
            ticks = trio.current_time()  # the wall clock may be set back, and the ramp would wait
            while self._destinations.waiting and self._ramp.allows(
                self._slots, self._settings.slot_limit, ticks
            ):
                chosen = self._destinations.next_turn(now)
                if chosen is None:
                    break
                if chosen.clears_soon(ticks):  # it did not when it was offered
                    self._postpone(chosen, now + SOON)  # not _offer(): its time is a later one,
                    continue  # which may put the place back, and so without end
                chosen.busy += 1
                chosen.gate.busy += 1
                self._slots += 1
                nursery.start_soon(self._serve, chosen, chosen.take())
                self._offer(chosen, now)  # at the end of the ring
            pause = self._destinations.next_admission(now) - now
            if self._delayed:
                pause = min(pause, self._delayed[0][0] - now)
            if self._destinations.waiting and self._ramp.rises_at is not None:
                pause = min(pause, max(0.0, self._ramp.rises_at - ticks))
            with trio.move_on_after(pause):
                await self._turn.wait()

    async def _serve(self, destination: Destination, first: Entry) -> None:
        """One slot, from its first entry to its end."""
        try:
            await SlotFeed(self, self._workers, self._begins, destination, first).run()
        except NoWorker as exc:
            if not destination.is_dead(self._wall()):  # another slot may have said so already
                until = self._wall() + self._settings.transport_retry
                destination.suspend("4.3.0", f"{UNAVAILABLE}: {exc}", until)
                self._suspended(destination)
        finally:
            destination.busy -= 1
            self._slots -= 1
            self._ramp.released(self._slots)
            now = self._wall()
            destination.gate.ended(now)
            if destination.is_dead(now):  # what the slot put back
                self._empty(destination)
            self._offer(destination, now)
            self._destinations.tidy(destination, now)
            if self._destinations.waiting or destination.gate.waiting:
                self._turn.set()
            if not self._slots:
                self._no_slots.set()

    def _offer(self, destination: Destination, now: float) -> None:
        """Let it have a turn if it may open a slot, or at the time when that must be asked again.

        A destination that clears soon is looked at again: it may have come to a stop.
        """
        if not destination.queue:
            return
        if destination.clears_soon(trio.current_time()):
            self._postpone(destination, now + SOON)
        elif self._destinations.offer(destination, now):
            self._turn.set()
        elif destination.not_before > now:
            self._postpone(destination, destination.not_before)

    def _postpone(self, destination: Destination, until: float) -> None:
        """Offer it again then; if that is too early, it will be postponed once more."""
        if not destination.paused:
            destination.paused = True
            heapq.heappush(self._delayed, (until, next(self._serial), destination))
            self._turn.set()

    async def _drain(self) -> None:
        """Let deliveries under way finish, within postrio_shutdown_timeout, and what they lead to.

        What becomes of recipients is seen to by the books.
        """
        with trio.move_on_after(self._settings.shutdown_timeout):
            while self._slots:
                self._no_slots = trio.Event()
                await self._no_slots.wait()
            await self._transcripts.drain()

    # --- what slots ask and tell (slot_feed.Owner) ---------------------------------------------

    def next_entry(self, destination: Destination, served: int) -> Entry | None:
        """See Owner."""
        if self._stopping.is_set() or not destination.may_go_on():
            return None
        gate = destination.gate
        if served and (gate.paced or (served >= QUANTUM and gate.wanted_by_others(destination))):
            return None  # another one's turn, or time for a pause
        if (
            served >= QUANTUM
            and self._ramp.at_ceiling(self._slots, self._settings.slot_limit)
            and self._destinations.next_needs_it_more(destination)
        ):
            return None  # another has waited long enough
        if destination.not_before and destination.not_before > self._wall():
            return None
        return destination.take()

    def open_limit(self) -> float:
        """See Owner."""
        return 0.0 if self._stopping.is_set() else max(1.0, self._settings.transport_retry)

    def opened(self) -> None:
        """See Owner."""
        self._ramp.opened(trio.current_time())

    def closed(self) -> None:
        """See Owner."""
        self._ramp.closed()

    def delivered(
        self, destination: Destination, entry: Entry, result: DeliveryResult
    ) -> Entry | None:
        """See Owner."""
        program = destination.program
        if result.transcripts:
            self._transcripts.hand_in(entry.active.message.queue_id, result.transcripts)
        if result.stopped:  # by us: that says nothing about the destination
            if self._stopping.is_set():
                self._books.hand_in_stopped(entry.active, program, result.outcomes)
                return None
            return self._untried(entry, program, result)
        self._books.hand_in(entry.active, program, result.outcomes)
        destination.delivered(trio.current_time())
        self._ramp.answered()
        failure = result.site_failure
        if failure is None:
            destination.succeeded()
        else:
            until = self._wall() + self._settings.minimal_backoff
            if destination.failed(failure.dsn, failure.reason, until) is Feedback.DEAD:
                self._suspended(destination)
        if self._settings.feedback_debug:
            self._emit(destination.state(throttled=failure is not None))
        if destination.limits.rate_delay:
            destination.not_before = self._wall() + destination.limits.rate_delay
        if destination.busy < destination.window:
            self._offer(destination, self._wall())
        return None

    def _untried(self, entry: Entry, program: str, result: DeliveryResult) -> Entry | None:
        """A worker that ends has cut a request short: what it did not try waits for another."""
        decided, untried = [], []
        for outcome in result.outcomes:
            if outcome.action is Action.DEFERRED and not outcome.in_doubt:
                untried.append(outcome.recipient)
            else:
                decided.append(outcome)
        if decided:
            self._books.hand_in(entry.active, program, decided)
        return Entry(entry.active, tuple(untried)) if untried else None

    def lost(self, destination: Destination, entries: list[Entry], reason: str) -> None:
        """See Owner."""
        if not entries:
            self._emit(Warned(f"slot for {destination.route.nexthop}: {reason}"))
        program = destination.route.protocol.value
        for entry in entries:
            doubt = not entry.active.message.probe  # which sends nothing
            text = f"delivery interrupted ({reason})"
            if doubt:
                text += "; the message may be sent more than once"
            outcomes = [
                replace(
                    self._own_outcome(entry.active, recipient, Action.DEFERRED, "4.3.0", text),
                    in_doubt=doubt,
                )
                for recipient in entry.recipients
            ]
            entry.active.interrupted = True
            self._books.hand_in(entry.active, program, outcomes)

    def unsendable(self, entries: list[Entry], reason: str) -> None:
        """See Owner."""
        for entry in entries:
            self._defer(entry.active, entry.recipients, "4.3.0", reason)

    def unexpected(
        self, destination: Destination, entries: list[Entry], reason: str, trace: str
    ) -> None:
        """See Owner."""
        what = f"feeding a slot for {destination.route.nexthop}"
        self._emit(UnexpectedError(what, trace))
        for entry in entries:
            self._defer(entry.active, entry.recipients, "4.3.0", reason)

    async def without_content(self, entry: Entry) -> None:
        """See Owner."""
        active, queue_id = entry.active, entry.active.message.queue_id
        if await patiently(partial(self._store.summaries, [queue_id]), self._emit):
            self._emit(Warned("content is missing in the queue", queue_id))
            self._defer(active, entry.recipients, "4.3.0", "content is missing in the queue")
        else:  # an operator deleted it
            self._books.hand_in_gone(active, len(entry.recipients))

    # --- outcomes of our own -------------------------------------------------------------------

    def _suspended(self, destination: Destination) -> None:
        """A destination has just been declared dead."""
        route, until = destination.route, destination.dead_until
        self._emit(DestinationSuspended(route.transport, route.nexthop, destination.reason, until))
        self._empty(destination)

    def _empty(self, destination: Destination) -> None:
        for entry in destination.queue.take_all():
            self._suspend_entry(destination, entry)

    def _suspend_entry(self, destination: Destination, entry: Entry) -> None:
        reason = f"delivery temporarily suspended: {destination.reason}"
        self._defer(entry.active, entry.recipients, destination.dsn, reason)

    def _defer(
        self, active: ActiveMessage, recipients: Sequence[Recipient], dsn: str, reason: str
    ) -> None:
        """Put off recipients without an attempt. The log names error(8), as in Postfix."""
        self._books.hand_in(
            active,
            "error",
            [
                self._own_outcome(active, recipient, Action.DEFERRED, dsn, reason)
                for recipient in recipients
            ],
        )

    def _own_outcome(
        self, active: ActiveMessage, recipient: Recipient, action: Action, dsn: str, reason: str
    ) -> RecipientOutcome:
        delays = Delays(
            before_active=max(0.0, active.since - active.message.arrival),
            active=max(0.0, self._wall() - active.since),
        )
        return RecipientOutcome(
            recipient=recipient, action=action, dsn=dsn, reason=reason, delays=delays
        )


class _Batch:
    """Messages that are routed at the same time, and are to be activated in their order."""

    def __init__(self, messages: Iterable[ActiveMessage]) -> None:
        """`messages`: in their order; those for whom add() is never called do not matter."""
        self._order = list(messages)
        self._routes: dict[ActiveMessage, Sequence[Route]] = {}
        self._complete = trio.Event()
        self._closed = False

    def add(self, active: ActiveMessage, routes: Sequence[Route]) -> bool:
        """Its routes are known; False: too late, it was not waited for."""
        if not self._closed:
            self._routes[active] = routes
            if len(self._routes) == len(self._order):
                self._complete.set()
        return not self._closed

    async def complete(self) -> None:
        """Wait until the routes of all are known."""
        await self._complete.wait()

    def close(self) -> list[tuple[ActiveMessage, Sequence[Route]]]:
        """Wait for nobody any more; those whose routes are known, in their order.

        Who is late still has this batch: it must not keep all the others in memory.
        """
        self._closed = True
        known = [(each, self._routes[each]) for each in self._order if each in self._routes]
        self._order.clear()
        self._routes.clear()
        return known
