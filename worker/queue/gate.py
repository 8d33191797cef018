"""How many deliveries one transport may have at a time, whatever their destinations.

default_transport_rate_delay: one at a time, and a pause behind each. default_process_limit: so
many at a time, where main.cf sets it; else only postrio_slot_limit counts. Destinations that have
to wait here take turns, first come, first served.

Nothing here waits, and time is passed in: `now` is wall-clock seconds.
"""

from typing import TYPE_CHECKING

from worker.queue.settings import TransportSettings

if TYPE_CHECKING:
    from worker.queue.destinations import Destination


class TransportGate:
    """One transport's. `busy` counts its slots, those being opened included."""

    def __init__(self, limits: TransportSettings) -> None:
        self.limits = limits  # a reload changes them
        self.busy = 0
        self.not_before = 0.0  # no delivery before this time
        self.waiting: dict[Destination, None] = {}  # in their order; those that may open a slot

    @property
    def paced(self) -> bool:
        """There is a pause between deliveries: a slot takes one, and then ends."""
        return self.limits.transport_rate_delay > 0

    @property
    def limited(self) -> bool:
        """Its slots are counted."""
        return self.paced or self.limits.process_limit > 0

    def room(self, now: float) -> int:
        """How many more slots may be opened; 1 at least means one, more may be very many."""
        if self.paced:
            return int(not self.busy and self.not_before <= now)
        limit = self.limits.process_limit
        return max(0, limit - self.busy) if limit else 1_000_000

    def wanted_by_others(self, holder: "Destination") -> bool:
        """Somebody else than `holder` waits for a slot."""
        return len(self.waiting) > (holder in self.waiting)

    def ended(self, now: float) -> None:
        """One of its slots was given up."""
        self.busy -= 1
        if self.paced:
            self.not_before = now + self.limits.transport_rate_delay
