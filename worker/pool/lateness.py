"""How late the timers of an event loop fire: as long has everything waited that was ready.

Answers for counting and for the sentence about it; the watchdog measures.
"""

from collections import Counter
from math import ceil
from typing import Final

LONGEST: Final = 10_000  # milliseconds; what is later counts as this


class Lateness:
    """A distribution in steps of a millisecond, of bounded size."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # milliseconds, rounded up -> timers

    def note(self, seconds: float) -> None:
        """A timer fired so much too late."""
        self._counts[min(LONGEST, max(0, ceil(seconds * 1000)))] += 1

    def of_share(self, share: float) -> int:
        """Milliseconds by which this share (0 to 1) of the timers was late at most; 0 of none."""
        wanted = share * self._counts.total()
        seen = 0
        for milliseconds in sorted(self._counts):
            seen += self._counts[milliseconds]
            if seen >= wanted:
                return milliseconds
        return 0

    def __str__(self) -> str:
        """A sentence for the log."""
        half, most, all_of_them = (self.of_share(share) for share in (0.5, 0.99, 1.0))
        return (
            f"event loop: {self._counts.total()} timers, half of them at most {half} ms late,"
            f" 99% at most {most} ms, the latest {all_of_them} ms"
        )
