"""What sinks count, how counts of several processes are added, and the report made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self


@dataclass(slots=True)
class Counters:
    """What one sink did so far. Times are those of the monotonic clock, one for all processes."""

    connections: int = 0
    open: int = 0  # connections at this moment
    open_most: int = 0  # and the most that there were
    messages: int = 0
    recipients: int = 0
    refused: int = 0  # replies 4xx and 5xx
    octets: int = 0  # of content
    tls: int = 0  # handshakes that were finished
    resumed: int = 0  # of these, how many went on with an earlier session
    authenticated: int = 0  # AUTH that succeeded
    first: float = 0.0  # seconds: when the first message was taken; 0: none was
    last: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)  # of refusals: reply code -> how many

    def open_one(self) -> int:
        """A connection more; its number, from 1."""
        self.connections += 1
        self.open += 1
        self.open_most = max(self.open_most, self.open)
        return self.connections

    def refuse(self, code: str) -> None:
        """A reply 4xx or 5xx more."""
        self.refused += 1
        self.codes[code] = self.codes.get(code, 0) + 1

    def take(self, recipients: int, octets: int, now: float) -> None:
        """A message more."""
        if not self.messages:
            self.first = now
        self.last = now
        self.messages += 1
        self.recipients += recipients
        self.octets += octets

    @property
    def rate(self) -> float:
        """Messages in a second, from the first to the last; 0 when that is no time."""
        took = self.last - self.first
        return (self.messages - 1) / took if took > 0 else 0.0

    def line(self) -> str:
        """For people, and for those who cut it up."""
        tls = f" tls={self.tls} resumed={self.resumed}" if self.tls else ""
        return (
            f"connections={self.connections} messages={self.messages} "
            f"recipients={self.recipients} refused={self.refused} octets={self.octets} "
            f"open_most={self.open_most} rate={self.rate:.1f}/s{tls}"
        )

    def to_json(self) -> dict[str, object]:
        """As in the report."""
        fields = asdict(self)
        del fields["open"]
        return {**fields, "seconds": self.last - self.first, "rate": self.rate}

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """The sum. `open_most` is the sum of the parts', so at least what there was at once."""
        total = cls()
        for part in parts:
            total.connections += part.connections
            total.open += part.open
            total.open_most += part.open_most
            total.refused += part.refused
            total.recipients += part.recipients
            total.octets += part.octets
            total.tls += part.tls
            total.resumed += part.resumed
            total.authenticated += part.authenticated
            if part.messages:
                total.first = min(total.first, part.first) if total.messages else part.first
                total.last = max(total.last, part.last)
            total.messages += part.messages
            for code, count in part.codes.items():
                total.codes[code] = total.codes.get(code, 0) + count
        return total


def report(
    names: Sequence[str], counted: Sequence[Sequence[Counters]], open_most: Sequence[int]
) -> Mapping[str, object]:
    """The final report, ready for JSON.

    `counted`: for each process one Counters for each of `names`; `open_most`: for each process its
    connections at most at once, on all listeners.
    """
    listeners = [Counters.total(parts) for parts in zip(*counted, strict=True)]
    total = Counters.total(listeners)
    total.open_most = sum(open_most)
    return {
        "processes": len(counted),
        "total": total.to_json(),
        "listeners": [
            {"name": name, **counters.to_json()}
            for name, counters in zip(names, listeners, strict=True)
        ],
    }
