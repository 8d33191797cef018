"""What a sink remembers of its clients: first tries and how often they came. Bounded, no I/O."""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from bench.sink.behaviour import Rate

MOST: Final = 100_000  # entries of each memory; then the oldest is forgotten


@dataclass(slots=True)
class Greylist:
    """When each pair of sender and recipient was first seen."""

    seen: dict[bytes, float] = field(default_factory=dict)

    def waiting(self, sender: str, recipient: str, wait: float, now: float) -> bool:
        """Whether this pair was first seen less than `wait` seconds ago, or never."""
        # Digests, because addresses are as long as a client likes.
        pair = f"{sender}\0{recipient}".encode("utf-8", "surrogateescape")
        key = blake2b(pair, digest_size=16).digest()
        first = self.seen.get(key)
        if first is None:
            if len(self.seen) >= MOST:
                del self.seen[next(iter(self.seen))]
            self.seen[key] = now
            return True
        return now - first < wait


@dataclass(slots=True)
class ClientCounts:
    """How often each client came in its current interval, which begins with its first coming."""

    counts: dict[str, tuple[float, int]] = field(default_factory=dict)

    def exceeds(self, client: str, rate: Rate, now: float) -> bool:
        """Count one more; whether that is more than the rate allows."""
        began, count = self.counts.get(client, (now, 0))
        if now - began >= rate.interval:
            began, count = now, 0
        elif not count and len(self.counts) >= MOST:
            del self.counts[next(iter(self.counts))]
        self.counts[client] = began, count + 1
        return count + 1 > rate.limit
