"""Servers that get plain treatment for a while: no envelope travels with another message's dot.

A server that closed the session, or lost track, after such a flight is remembered here. Nothing was
lost by it, but each time costs a new connection. If it was the dot that was not answered, that
message is in doubt, and it must not come to that again when it is tried again: the server is
remembered for longer than any message waits (maximal_backoff_time).
"""

from collections import OrderedDict
from typing import Final

from worker.network.address import Endpoint

PLAIN_FOR: Final = 600.0  # seconds; servers are restarted and mended, too
PLAIN_FOR_DOUBT: Final = 14_400.0  # seconds, if a dot was not answered
LIMIT: Final = 10_000  # servers remembered at one time: the oldest is forgotten first


class PlainPeers:
    """Endpoints and until when they are treated so. `now`: seconds of one clock."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, int], float] = OrderedDict()

    def note(self, endpoint: Endpoint, now: float, *, doubt: bool) -> None:
        """It did not bear what came ahead; `doubt`: it did not answer the dot."""
        key = (endpoint.address, endpoint.port)
        until = now + (PLAIN_FOR_DOUBT if doubt else PLAIN_FOR)
        self._until[key] = max(until, self._until.get(key, until))
        self._until.move_to_end(key)
        if len(self._until) > LIMIT:
            self._until.popitem(last=False)

    def holds(self, endpoint: Endpoint, now: float) -> bool:
        """Whether it is to be treated plainly."""
        if not self._until:
            return False
        until = self._until.get((endpoint.address, endpoint.port))
        return until is not None and now < until
