"""Keys, and when the time of each is up: kept in order without a heap.

Times to live are whole seconds from a small range, so keys with the same one expire in the order
in which they were set. One queue for each ttl in use: setting and removing cost the same however
many keys there are, and nothing is left behind of a key that was removed (a heap would keep it
until its time). Pure: `now` is passed in, in seconds of a clock that never steps back.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")

NEVER = float("inf")


class Deadlines(Generic[K]):
    """When keys expire. A key is in here at most once."""

    def __init__(self) -> None:
        self._queues: dict[int, OrderedDict[K, float]] = {}

    def set(self, key: K, ttl: int, now: float) -> float:
        """Let `key`, which is not in here, expire `ttl` seconds from now; returns that moment."""
        queue = self._queues.get(ttl)
        if queue is None:
            queue = self._queues[ttl] = OrderedDict()
        queue[key] = now + ttl
        return now + ttl

    def remove(self, key: K, ttl: int) -> None:
        """Forget `key`, which was set with `ttl`."""
        queue = self._queues[ttl]
        del queue[key]
        if not queue:
            del self._queues[ttl]

    @property
    def next(self) -> float:
        """When the first key expires; NEVER: there is none."""
        return min((next(iter(queue.values())) for queue in self._queues.values()), default=NEVER)

    def due(self, now: float) -> list[K]:
        """The keys whose time is up, in no particular order. They stay in here."""
        found: list[K] = []
        for queue in self._queues.values():
            for key, expires in queue.items():
                if expires > now:
                    break
                found.append(key)
        return found
