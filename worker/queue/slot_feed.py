"""One slot's life: entries of one destination go in, results come out, a few under way.

The first request of a session goes alone: nobody knows yet whether there will be a session. While
the session is kept, the worker always has the next requests before it has finished the last, so
that transactions follow each other without an idle round trip.

An entry is in exactly one place: in the destination's queue, `in_hand` (taken, not sent),
`in_flight` (sent, or perhaps sent), or `untried` (sent to a worker that ends). Whatever ends the
slot, what is in hand or untried goes back, in its order. When the worker is gone, only the oldest
in flight may have been delivered and is reported as lost; those behind it were not begun (see
slot.py) and go back, too. When the worker lives but makes no sense, all in flight are reported as
lost. Only cancellation leaves what is in flight as it is, marked in doubt in the store.
"""

import traceback
from typing import Final, Protocol

import trio

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.outcome import DeliveryResult
from worker.queue.active import Entry
from worker.queue.begins import Begins
from worker.queue.destinations import Destination
from worker.queue.slot import MOST_UNANSWERED, Slot, SlotOpener, WorkerLost
from worker.queue.store import StoreError

OPEN_PAUSE: Final = 1.0  # seconds between attempts to get a slot: workers come back soon
CLOSE_LIMIT: Final = 5.0  # seconds for a slot to close
# Requests under way in a slot with a session: one is being answered, the next one's envelope
# travels with its final dot, and a third must be there when that one's dot is sent.
WARM_DEPTH: Final = 3
# At a fast destination that many are kept at least, and more are sent when fewer are left: one mark
# of doubt, one wake-up and one read are then paid for several requests.
FAST_DEPTH: Final = MOST_UNANSWERED
# Requests after which a slot looks whether another worker has much less to do: a new slot costs a
# new session, a worker that idles after its restart costs a processor.
SETTLED_AFTER: Final = 20


class NoWorker(Exception):
    """No slot could be had for transport_retry_time."""


class Owner(Protocol):
    """What a slot asks of the scheduler and tells it. Nothing here waits, except the last."""

    def next_entry(self, destination: Destination, served: int) -> Entry | None:
        """More work for a slot that has served so many; None: it should end."""

    def delivered(
        self, destination: Destination, entry: Entry, result: DeliveryResult
    ) -> Entry | None:
        """A request was answered, with one outcome per recipient.

        Returns what an ending worker did not try of it, which goes back.
        """

    def lost(self, destination: Destination, entries: list[Entry], reason: str) -> None:
        """These may or may not have been sent, and the destination is not to blame."""

    def unsendable(self, entries: list[Entry], reason: str) -> None:
        """The store cannot give these out; none of them was sent."""

    def unexpected(
        self, destination: Destination, entries: list[Entry], reason: str, trace: str
    ) -> None:
        """A mistake of ours; none of these was sent, as far as we know."""

    def open_limit(self) -> float:
        """Seconds to wait for a slot (transport_retry_time); 0: we are stopping."""

    def opened(self) -> None:
        """A worker serves the slot from now on."""

    def closed(self) -> None:
        """It does no longer."""

    async def without_content(self, entry: Entry) -> None:
        """The store has no content for it."""


class SlotFeed:
    """Serves `destination` through one slot, beginning with `first`."""

    def __init__(
        self,
        owner: Owner,
        workers: SlotOpener,
        begins: Begins,
        destination: Destination,
        first: Entry,
    ) -> None:
        self._owner = owner
        self._workers = workers
        self._begins = begins
        self._destination = destination
        # Lists: a deque takes 700 octets, and thousands of slots have three entries at most.
        self._in_hand = [first]
        self._in_flight: list[Entry] = []
        self._untried: list[Entry] = []  # came back from a worker that ends, oldest first
        self._served = 0

    async def run(self) -> None:
        """Feed the slot until there is nothing for it. Raises NoWorker."""
        try:
            slot = await self._open()
            if slot is None:
                return
            self._owner.opened()
            try:
                await self._feed(slot)
            finally:
                self._owner.closed()
                with trio.move_on_after(CLOSE_LIMIT, shield=True):
                    await slot.aclose()
        except (WorkerLost, RemoteProtocolError) as exc:
            # A worker that talks nonsense is not gone: it goes on with all that it has.
            begun = 1 if isinstance(exc, WorkerLost) else len(self._in_flight)
            doubtful = self._in_flight[:begun]
            self._in_hand[:0] = self._in_flight[begun:]
            self._put_back()
            self._owner.lost(self._destination, doubtful, str(exc))
            if not self._served:  # whatever is wrong there: no slot after slot without a pause
                await trio.sleep(OPEN_PAUSE)
        except StoreError as exc:
            self._owner.unsendable(self._drop_in_hand(), str(exc))
        except NoWorker:
            raise
        except Exception:  # noqa: BLE001 - around one slot: a bug defers its mail, the rest lives
            if self._in_flight:  # they may have been sent
                self._owner.lost(self._destination, list(self._in_flight), "internal error")
            # These were not sent, but one of them may be the cause.
            entries = self._drop_in_hand()
            trace = traceback.format_exc()
            self._owner.unexpected(self._destination, entries, "internal error", trace)
        finally:
            self._put_back()

    def _put_back(self) -> None:
        for entries in (self._in_hand, self._untried):  # the latter are older
            while entries:
                self._destination.queue.put_back(entries.pop())

    def _drop_in_hand(self) -> list[Entry]:
        entries = list(self._in_hand)
        self._in_hand.clear()
        return entries

    async def _open(self) -> Slot | None:
        """A slot, patiently; None: we are stopping."""
        waited = 0.0
        while limit := self._owner.open_limit():
            try:
                return await self._workers.open_slot(self._destination.key)
            except WorkerLost as exc:
                if waited >= limit:
                    raise NoWorker(str(exc)) from exc
            await trio.sleep(OPEN_PAUSE)
            waited += OPEN_PAUSE
        return None

    async def _feed(self, slot: Slot) -> None:
        least, depth, leaving = 1, 1, False
        while True:
            if len(self._in_flight) < least:
                self._take(depth - len(self._in_flight))
            if self._in_hand:
                await self._send(slot)
            elif not self._in_flight:
                return
            if self._in_flight:
                result = await self._receive(slot)
                leaving |= result.stopped or (self._served % SETTLED_AFTER == 0 and slot.misplaced)
                if leaving:
                    least = depth = 0
                elif not result.session_kept:
                    least = depth = 1
                elif self._destination.fast:
                    least, depth = WARM_DEPTH, FAST_DEPTH
                else:
                    least = depth = WARM_DEPTH

    def _take(self, count: int) -> None:
        """Have so many entries in hand, or as many as there are."""
        while len(self._in_hand) < count:
            entry = self._owner.next_entry(self._destination, self._served)
            if entry is None:
                break
            self._in_hand.append(entry)

    async def _receive(self, slot: Slot) -> DeliveryResult:
        """The result of the oldest in flight, handed in. Raises WorkerLost, RemoteProtocolError."""
        result = await slot.receive()
        _check(self._in_flight[0], result)  # it stays in flight if that fails
        untried = self._owner.delivered(self._destination, self._in_flight.pop(0), result)
        if untried is not None:
            self._untried.append(untried)
        self._served += 1
        return result

    async def _receive_all(self, slot: Slot) -> None:
        """The results of all in flight. Raises WorkerLost, RemoteProtocolError."""
        while self._in_flight:
            await self._receive(slot)

    async def _send(self, slot: Slot) -> None:
        """Send what is in hand, marked in doubt first.

        Raises WorkerLost, StoreError, and as _receive() when either makes that necessary.
        """
        try:
            contents = await self._begins.begin(list(self._in_hand))
        except StoreError:
            await self._receive_all(slot)  # the worker goes on with what it has
            raise
        route = self._destination.route
        try:
            while contents:
                content = contents.pop(0)
                entry = self._in_hand[0]
                if content is None:
                    await self._owner.without_content(entry)
                    self._in_hand.pop(0)
                    continue
                self._in_hand.pop(0)
                self._in_flight.append(entry)  # before it is sent: a cut send is in doubt
                flags = self._destination.reuse_flags(trio.current_time())
                request = entry.request(route.transport, route.protocol, route.nexthop, flags)
                try:
                    await slot.send(request, content)
                except LocalProtocolError as exc:  # it was not sent, and the slot is as it was
                    reason = f"the message cannot be handed to a worker: {exc}"
                    refused = [self._in_flight.pop()]
                    trace = traceback.format_exc()
                    self._owner.unexpected(self._destination, refused, reason, trace)
                except WorkerLost:
                    self._in_hand.insert(0, self._in_flight.pop())  # it did not arrive whole
                    await self._receive_all(slot)  # but results may have left before the end
                    raise
        finally:
            for left in contents:
                if left is not None:
                    left.close()


def _check(entry: Entry, result: DeliveryResult) -> None:
    """Raise ValueError unless there is one outcome per recipient, in their order."""
    answered = [outcome.recipient.key for outcome in result.outcomes]
    if answered != [recipient.key for recipient in entry.recipients]:
        raise ValueError(f"a result of {len(answered)} outcomes does not fit its request")
