"""Destinations: how many deliveries each may have at a time, whose turn it is, and which are dead.

A destination is a transport and a nexthop (and a recipient, where the recipient limit is 1). Its
concurrency window follows what happens there, with Postfix's parameters and arithmetic:

- Each delivery that reached the site adds `positive_feedback` to a sum; a whole one opens the
  window by one, up to the limit, and never more than the initial concurrency beyond what is used:
  an idle destination must not earn a window that it was never seen to bear.
- Each site failure takes `negative_feedback` off another sum; a whole one closes the window by one,
  down to one. The sum starts half full, so that a small feedback does not swing at once.
- Each site failure is also 1/window of a cohort; `failed_cohort_limit` cohorts with no success in
  between, and the destination is dead until a time.

Whether requests may use the connection cache follows from what happens there, too: see
`Destination.reuse_flags`.

Nothing here waits, and time is passed in: `now` is wall-clock seconds where nothing else is said.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final

from protocol.request import RequestFlags
from worker.queue.active import Entry, FairQueue
from worker.queue.gate import TransportGate
from worker.queue.routing import Delivery
from worker.queue.settings import TransportSettings
from worker.status.events import ConcurrencyChanged

Key = tuple[str, str, str]  # transport, nexthop, recipient or ""
_ROUNDING: Final = 1e-9  # ten times 0.1 is one
# Seconds after the end of a delivery within which another one follows it "back to back" (qmgr(8)).
BACK_TO_BACK: Final = 1.0
# Seconds in which what waits at a destination will be gone anyhow, at the pace of those under way:
# a further slot would cost a session of its own for a message or two.
SOON: Final = 0.5
# Seconds for one delivery in one slot up to which a destination is fast.
FAST: Final = 0.25
_PACE_TIME: Final = 0.05  # seconds over which ends are counted, at least: they come in bursts
_SAVE_AND_LOAD: Final = RequestFlags.CACHE_LOAD | RequestFlags.CACHE_SAVE


class Feedback(Enum):
    """What a result changed about its destination."""

    NONE = "none"
    DEAD = "dead"  # it was declared dead by this result


class Destination:
    """One destination; created when it first has mail, forgotten when it has nothing to remember.

    `busy` counts slots, those being opened included.
    """

    __slots__ = (
        "_counted_since",
        "_done",
        "_failure",
        "_interval",
        "_last_done",
        "_limits",
        "_reuse",
        "_success",
        "busy",
        "cohorts",
        "dead_until",
        "dsn",
        "gate",
        "key",
        "not_before",
        "paused",
        "program",
        "queue",
        "reason",
        "route",
        "window",
    )  # fmt: skip

    def __init__(
        self,
        key: Key,
        route: Delivery,
        limits: TransportSettings,
        gate: TransportGate | None = None,
    ) -> None:
        self.key = key
        self.gate = gate or TransportGate(limits)  # of its transport
        self.route = route
        self.program = route.protocol.value  # who says in the log what became of a delivery
        self._limits = limits
        self.queue = FairQueue()
        self.busy = 0
        self.window = self._initial()
        self._success = 0.0
        self._failure = 0.5
        self.cohorts = 0.0
        self.dead_until = 0.0  # wall; 0: alive
        self.dsn = ""  # of the failure that made it dead
        self.reason = ""
        self.paused = False  # on the list of those that are looked at again at some time
        self.not_before = 0.0  # destination_rate_delay: no delivery before this time
        self._reuse = RequestFlags.NONE
        self._interval = math.inf  # seconds between the ends of deliveries, of late; inf: not known
        self._counted_since = 0.0
        self._done = 0  # ends of deliveries since then
        self._last_done = -math.inf  # a delivery ended then; seconds of a clock nobody sets

    # --- limits --------------------------------------------------------------------------------

    @property
    def limits(self) -> TransportSettings:
        """The settings of its transport."""
        return self._limits

    @limits.setter
    def limits(self, limits: TransportSettings) -> None:
        self._limits = limits
        if (ceiling := self._ceiling()) and self.window > ceiling:
            self.window = ceiling

    def _ceiling(self) -> int:
        # With a rate delay, deliveries come one at a time: else the pause would mean nothing.
        return 1 if self._limits.rate_delay > 0 else self._limits.concurrency_limit

    def _initial(self) -> int:
        ceiling = self._ceiling()
        initial = self._limits.initial_concurrency
        return min(initial, ceiling) if ceiling else initial

    # --- work ----------------------------------------------------------------------------------

    def take(self) -> Entry:
        """The next entry of its queue. IndexError: none."""
        return self.queue.take(self._limits.request_limit)

    def may_open(self, now: float) -> bool:
        """There is work, and room for another slot."""
        return (
            self.busy < self.window
            and bool(self.queue)
            and not self.dead_until
            and self.not_before <= now
        )

    def may_go_on(self) -> bool:
        """There is work, and a slot that is open here may take it."""
        return self.busy <= self.window and bool(self.queue) and not self.dead_until

    # --- connection cache ----------------------------------------------------------------------

    def reuse_flags(self, now: float) -> RequestFlags:
        """What the request that is sent now may do with the cache: qmgr(8)'s on-demand rule (S138).

        Saving and loading begin when a delivery follows another one back to back; mere parallelism
        is not enough. Saving ends when deliveries are neither parallel nor back to back; loading
        goes on, to use up what was saved. `now`: as for delivered().
        """
        back_to_back = now - self._last_done <= BACK_TO_BACK
        if back_to_back:
            self._reuse = _SAVE_AND_LOAD
        elif self.busy <= 1:
            self._reuse &= RequestFlags.CACHE_LOAD
        return self._reuse

    def delivered(self, now: float) -> None:
        """A delivery has ended; `now` in seconds of a clock that nobody sets."""
        self._done += 1
        elapsed = now - self._counted_since
        if now - self._last_done > BACK_TO_BACK:
            self._interval = math.inf
            self._counted_since, self._done = now, 0
        elif elapsed >= _PACE_TIME:
            self._interval = elapsed / self._done
            self._counted_since, self._done = now, 0
        self._last_done = now

    @property
    def fast(self) -> bool:
        """Each of its slots has done a delivery in a moment, of late."""
        return self._interval * self.busy <= FAST

    def clears_soon(self, now: float) -> bool:
        """The slots that it has will do what waits here within SOON. `now`: as for delivered().

        If nothing more ends there, this is no longer true after a while: it must be asked again.
        """
        if not self.busy:
            return False
        return len(self.queue) * max(self._interval, now - self._last_done) < SOON

    # --- feedback ------------------------------------------------------------------------------

    def succeeded(self) -> None:
        """A delivery reached the site, whatever it said about the recipients."""
        self.cohorts = 0.0
        if self.dead_until:  # one that began earlier got through: it is alive after all
            self.revive()
            return
        ceiling = self._ceiling()
        if (ceiling and self.window >= ceiling) or (
            self.window >= self.busy + self._limits.initial_concurrency
        ):
            return
        self._success += self._limits.positive_feedback.at(self.window)
        while self._success + _ROUNDING >= 1.0:
            self._success -= 1.0
            self.window += 1
            self._failure = 0.5
        if ceiling:
            self.window = min(self.window, ceiling)

    def failed(self, dsn: str, reason: str, until: float) -> Feedback:
        """A delivery failed because of the site. DEAD: it is dead now, until `until`."""
        if self.dead_until:
            return Feedback.NONE
        self.cohorts += 1.0 / self.window
        limit = self._limits.failed_cohort_limit
        if limit and self.cohorts + _ROUNDING >= limit:
            self.suspend(dsn, reason, until)
            return Feedback.DEAD
        self._failure -= self._limits.negative_feedback.at(self.window)
        while self._failure < -_ROUNDING:
            self._failure += 1.0
            self.window -= 1
            self._success = 0.0
        self.window = max(self.window, 1)
        return Feedback.NONE

    def suspend(self, dsn: str, reason: str, until: float) -> None:
        """It is dead until a time, in seconds; what waits here should be deferred."""
        self.dead_until = until
        self.dsn = f"4{dsn[1:]}"
        self.reason = reason

    def state(self, *, throttled: bool) -> ConcurrencyChanged:
        """Where the feedback stands after a success, or a failure: `throttled`."""
        return ConcurrencyChanged(
            transport=self.route.transport,
            nexthop=self.route.nexthop,
            throttled=throttled,
            limit=self._ceiling(),
            window=0 if self.dead_until else self.window,
            success=self._success,
            failure=self._failure,
            cohorts=self.cohorts,
        )

    def revive(self) -> None:
        """It is alive, and starts again at the initial concurrency."""
        self.dead_until = 0.0
        self.window = self._initial()
        self.cohorts = self._success = 0.0
        self._failure = 0.5

    def is_dead(self, now: float) -> bool:
        """Mail for it is to be deferred at once. Its time being over, it revives here."""
        if self.dead_until and now >= self.dead_until:
            self.revive()
        return self.dead_until > 0

    def forgettable(self, now: float) -> bool:
        """Nothing waits, is under way, or must be remembered."""
        return not (self.busy or self.queue or self.not_before > now or self.is_dead(now))


class Destinations:
    """All destinations that have mail or a memory, and the order in which they get slots."""

    def __init__(self) -> None:
        self._all: dict[Key, Destination] = {}
        self._ring: deque[Destination] = deque()  # may open a slot; they take turns
        self._in_ring: set[Destination] = set()
        self._gates: dict[str, TransportGate] = {}  # by transport

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Destination]:
        return iter(list(self._all.values()))

    def find(self, route: Delivery, address: str, limits: TransportSettings) -> Destination:
        """The destination of a recipient, new or known."""
        nexthop = route.nexthop if route.nexthop.startswith("unix:") else route.nexthop.lower()
        key = (route.transport, nexthop, address if limits.recipient_limit == 1 else "")
        destination = self._all.get(key)
        if destination is None:
            gate = self._gates.get(route.transport)
            if gate is None:
                gate = self._gates[route.transport] = TransportGate(limits)
            destination = self._all[key] = Destination(key, route, limits, gate)
        return destination

    def offer(self, destination: Destination, now: float) -> bool:
        """Put a destination in the ring if it may open a slot; True if it is there.

        Where its transport has limits, it waits for that first, behind others; see admit().
        """
        if not destination.may_open(now):
            return False
        if destination.gate.limited:
            destination.gate.waiting.setdefault(destination)
        else:
            self._enter(destination)
        return True

    def _enter(self, destination: Destination) -> None:
        if destination not in self._in_ring:
            self._in_ring.add(destination)
            self._ring.append(destination)

    def admit(self, now: float) -> None:
        """Put those who wait for their transport in the ring, as many as it has room for."""
        for gate in self._gates.values():
            room = gate.room(now) if gate.waiting else 0
            while room and gate.waiting:
                destination = next(iter(gate.waiting))
                del gate.waiting[destination]
                if destination.may_open(now):
                    self._enter(destination)
                    room -= 1

    def next_turn(self, now: float) -> Destination | None:
        """The destination that gets the next slot; it goes to the end of the ring. None: none."""
        while self._ring:
            destination = self._ring.popleft()
            self._in_ring.discard(destination)
            if not destination.may_open(now):
                continue
            if destination.gate.room(now):
                return destination
            destination.gate.waiting.setdefault(destination)  # its limits have just come
        return None

    def next_admission(self, now: float) -> float:
        """When the pause of a transport that others wait for is over (wall); inf: none waits."""
        return min(
            (
                gate.not_before
                for gate in self._gates.values()
                if gate.waiting and not gate.busy and gate.not_before > now
            ),
            default=math.inf,
        )

    def reload(self, transports: Mapping[str, TransportSettings]) -> None:
        """New limits, by transport."""
        for name, gate in self._gates.items():
            gate.limits = transports.get(name, gate.limits)

    def next_needs_it_more(self, holder: Destination) -> bool:
        """Whether a slot of `holder` would be better placed at the destination that is next.

        That is if the next one has none at all, or still has fewer when the slot has changed hands:
        else both would be as far as before, at the price of a session. One that does not need it
        goes to the end, so that it hides nobody from whoever asks next.
        """
        if not self._ring:
            return False
        next_one = self._ring[0]
        if not next_one.busy or next_one.busy + 1 < holder.busy:
            return True
        self._ring.rotate(-1)
        return False

    @property
    def waiting(self) -> bool:
        """Some destination may be waiting for a slot."""
        return bool(self._ring)

    def tidy(self, destination: Destination, now: float) -> None:
        """Forget a destination that has nothing to remember, as Postfix does."""
        if destination.forgettable(now):
            self._all.pop(destination.key, None)

    def sweep(self, now: float) -> None:
        """Forget all that have nothing to remember: the dead of long ago."""
        for destination in self:
            self.tidy(destination, now)
