"""How sure a median is: the interval that holds it, and what is noise.

Answers for the one rule that every verdict of the harness rests on.

The interval is that of the sign test: with no difference at all, each turn is as likely to lie
above the true median as below, so the chance that the k smallest of n values all lie above it is a
binomial sum. We take the largest k that leaves at least 90 % between the k-th value and the k-th
from the top. It asks nothing of the distribution, which on a shared machine has a long tail: of
five turns it is smallest to largest (94 %), of eight the second to the seventh (93 %). The
interquartile range would be the shorter word, but of five turns it is the second to the fourth,
and two equal contenders would "differ" in three runs of eight.

Fewer than five turns have no interval of 90 %: they are told apart, as too few to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb
from statistics import median
from typing import Final

CONFIDENCE: Final = 0.9
ENOUGH: Final = 5  # turns: the fewest whose smallest and largest value leave 90 % between them


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some turns, and the interval that holds the true one in 90 % of runs."""

    median: float
    low: float
    high: float
    turns: int

    def covers(self, bound: float) -> bool:
        """Whether the true median may be on either side of `bound`, as far as these turns tell."""
        return self.low <= bound <= self.high

    @property
    def enough(self) -> bool:
        """Whether there were turns enough to say anything."""
        return self.turns >= ENOUGH

    def doubt(self, bound: float) -> str:
        """Why nothing is certain about which side of `bound` it is on; empty: it is."""
        if not self.enough:
            return "too few turns"
        return "noise" if self.covers(bound) else ""


def spread_of(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    ordered = sorted(values)
    cut = _cut(len(ordered))
    return Spread(median(ordered), ordered[cut], ordered[-1 - cut], len(ordered))


def _cut(turns: int) -> int:
    """How many values to leave out at either end."""
    tails = accumulate(comb(turns, k) / float(2**turns) for k in range(turns // 2))
    return max(0, sum(1 - 2 * tail >= CONFIDENCE for tail in tails) - 1)
