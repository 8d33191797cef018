"""What a scenario is: a load, contenders that take turns under it, and what each turn measures.

Answers for the terms only. A scenario is a small file in `bench/scenarios/` that builds one of
these; how it is run, shown, kept and compared is the harness's part and the same for all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# One turn of one contender: name of each figure -> its value. Raises LoadError.
Turn = Callable[[], Mapping[str, float]]


class LoadError(Exception):
    """A measurement cannot be made: why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Something that a turn measures. The first of a scenario is the one it is about."""

    name: str  # a word, also in the JSON: "rate"
    unit: str  # as people read it: "messages/s"
    more_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What we demand of our own figure: a bound for the median, or for the ratio to a peer's.

    A ratio is taken turn by turn, and the median of those is what counts: a busy minute of the
    machine slows both down.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    contender: str = "postrio"
    against: str | None = None  # a contender; None: the figure itself is bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that is needed to run one. Contenders take turns in the order of the mapping."""

    name: str  # as on the command line
    about: str  # one sentence: what is done to whom
    figures: Sequence[Figure]
    contenders: Mapping[str, Turn]
    missing: Mapping[str, str] = field(default_factory=dict)  # contender -> why it is left out
    targets: Sequence[Target] = ()
    base: str = "postrio"  # the table's ratios are to this contender
