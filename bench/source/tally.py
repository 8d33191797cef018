"""What came of a load: times, replies, failures. Its size does not grow with the load."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from typing import Final

from bench.source.load import Phase
from protocol.reply import Reply

LONGEST: Final = 3_600_000_000  # microseconds that a histogram can hold: an hour
DIGITS: Final = 3  # that are significant
SAMPLE_LENGTH: Final = 200  # characters of a reply that are kept as an example
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


class Trouble(Enum):
    """How a connection can fail, other than by a reply."""

    UNREACHABLE = "not connected"
    TIMEOUT = "timed out"
    LOST = "connection lost"
    NONSENSE = "protocol error"
    SECURITY = "TLS or AUTH failed"


class Outcome(Enum):
    """What became of a message."""

    ACCEPTED = "accepted"  # for every recipient
    PARTLY = "partly accepted"
    DEFERRED = "deferred"  # for all, at least one of them with 4xx
    REFUSED = "refused"  # for all, with 5xx
    FAILED = "failed"  # the connection did, before there was an answer


def missing_library() -> str:
    """What must be installed before anything can be tallied, for people; empty if nothing."""
    return "" if find_spec("hdrh") else "hdrhistogram (pip install 'postrio[bench]')"


class Latencies:
    """Seconds, in a histogram: 1 microsecond to an hour, three digits, 200 kB."""

    def __init__(self) -> None:
        from hdrh.histogram import HdrHistogram  # of an extra: see missing_library()

        self._histogram = HdrHistogram(1, LONGEST, DIGITS)
        self.longest = 0.0  # to the digit

    def add(self, seconds: float) -> None:
        """Record one."""
        self._histogram.record_value(min(max(1, round(seconds * 1e6)), LONGEST))
        self.longest = max(self.longest, seconds)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._histogram.get_total_count())

    @property
    def mean(self) -> float:
        """Seconds; 0 if there are none."""
        return float(self._histogram.get_mean_value()) / 1e6

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of them, rounded to a whole number, do not exceed; three digits.

        0 if there are none.
        """
        return min(float(self._histogram.get_value_at_percentile(percent)) / 1e6, self.longest)

    def encoded(self) -> str:
        """The whole histogram (microseconds) in HdrHistogram's portable form, in base64."""
        return bytes(self._histogram.encode()).decode("ascii")


@dataclass(slots=True)
class Sampled:
    """How often something was seen, and what the first one said."""

    sample: str
    count: int = 0


@dataclass(slots=True)
class Tally:
    """Counts of one run."""

    messages: Counter[Outcome] = field(default_factory=Counter)
    recipients: Counter[Outcome] = field(default_factory=Counter)  # accepted, deferred, refused
    replies: dict[tuple[Phase, int], Sampled] = field(default_factory=dict)
    failures: dict[tuple[Phase, Trouble], Sampled] = field(default_factory=dict)
    latencies: dict[Phase, Latencies] = field(default_factory=dict)
    begun: int = 0  # messages; those that are not among `messages` were cut off with the run
    connections: int = 0  # established
    octets: int = 0  # of accepted contents, before dot-stuffing
    # Connections that ended between two messages: found by the next one, which took another.
    stale: int = 0
    unopened: int = 0  # connections in a row that led to no session
    gave_up: str = ""  # why the run was ended before its time
    seconds: float = 0.0  # that the run took
    cpu: float = 0.0  # CPU seconds of the source
    queued: float = 0.0  # seconds that the source was ready to run, but others had the processors

    def took(self, phase: Phase, seconds: float) -> None:
        """`phase` was over after `seconds`."""
        latencies = self.latencies.get(phase)
        if latencies is None:
            latencies = self.latencies[phase] = Latencies()
        latencies.add(seconds)

    def reply(self, phase: Phase, reply: Reply) -> None:
        """The server answered."""
        seen = self.replies.get((phase, reply.code))
        if seen is None:
            seen = self.replies[phase, reply.code] = Sampled(reply.text[:SAMPLE_LENGTH])
        seen.count += 1

    def failure(self, phase: Phase, trouble: Trouble, text: str) -> None:
        """A connection failed."""
        seen = self.failures.setdefault((phase, trouble), Sampled(text[:SAMPLE_LENGTH]))
        seen.count += 1

    def timed(self) -> Iterator[tuple[Phase, Latencies]]:
        """What was timed at all, in the order of a dialogue."""
        for phase in Phase:
            if phase in self.latencies:
                yield phase, self.latencies[phase]

    @property
    def accepted(self) -> int:
        """Messages that the server took for one recipient at least."""
        return self.messages[Outcome.ACCEPTED] + self.messages[Outcome.PARTLY]

    @property
    def rate(self) -> float:
        """Accepted messages per second."""
        return self.accepted / self.seconds if self.seconds else 0.0
