"""One listener's state, shared by its sessions: behaviour, memory of clients, counters. No I/O."""

import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from bench.sink.auth import MECHANISMS
from bench.sink.behaviour import Behaviour, Phase
from bench.sink.certificate import server_context
from bench.sink.count import CountFile
from bench.sink.counters import Counters
from bench.sink.limits import ClientCounts, Greylist
from bench.sink.record import Take


@dataclass(slots=True)
class Gauge:
    """Connections of all listeners of a process."""

    open: int = 0
    most: int = 0


@dataclass(slots=True, kw_only=True)
class Sink:
    """One listener's state. `behaviour` may be changed: later sessions are treated like that."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    name: str = "sink"
    take: Take | None = None  # None: contents are not even digested
    count: CountFile | None = None  # for who watches
    keep: bool = False  # hand the content to `take`, not only its digest
    clock: Callable[[], float] = time.monotonic  # seconds; trio's in the lane that waits by it
    random: Random = field(default_factory=Random)
    counters: Counters = field(default_factory=Counters)
    gauge: Gauge = field(default_factory=Gauge)
    greylist: Greylist = field(default_factory=Greylist)
    came: ClientCounts = field(default_factory=ClientCounts)  # connections by client
    brought: ClientCounts = field(default_factory=ClientCounts)  # messages by client
    clients: Counter[str] = field(default_factory=Counter)  # open connections by client
    _phrases: "Phrases | None" = None

    @property
    def phrases(self) -> "Phrases":
        """What is said again and again, for the behaviour as it is now."""
        phrases = self._phrases
        if phrases is None or phrases.behaviour is not self.behaviour:
            phrases = self._phrases = Phrases(self.behaviour)
        return phrases

    @property
    def context(self) -> ssl.SSLContext | None:
        """For handshakes; None without TLS. Raises as server_context()."""
        return server_context(self.behaviour)

    def open(self, client: str) -> tuple[int, str]:
        """A connection begins: its number, and the refusal that it gets, empty for none."""
        number = self.counters.open_one()
        self.clients[client] += 1
        self.gauge.open += 1
        self.gauge.most = max(self.gauge.most, self.gauge.open)
        behaviour = self.behaviour
        if behaviour.connections and self.counters.open > behaviour.connections:
            return number, f"421 4.3.2 {behaviour.hostname} too many connections"
        if behaviour.client_connections and self.clients[client] > behaviour.client_connections:
            return number, f"421 4.7.0 {behaviour.hostname} too many connections from you"
        rate = behaviour.connection_rate
        if rate is not None and self.came.exceeds(client, rate, self.clock()):
            return number, f"421 4.7.0 {behaviour.hostname} you connect too often"
        return number, ""

    def close(self, client: str) -> None:
        """A connection ended."""
        self.counters.open -= 1
        self.gauge.open -= 1
        self.clients[client] -= 1
        if not self.clients[client]:
            del self.clients[client]


class Phrases:
    """Octets of the replies that depend on the behaviour alone, made once for it."""

    __slots__ = ("behaviour", "bye", "ehlo", "greeting", "helo", "secured_ehlo", "special")

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.special: frozenset[Phase] = behaviour.special_phases
        self.greeting = f"220 {behaviour.hostname} ESMTP sink\r\n".encode()
        self.helo = f"250 {behaviour.hostname}\r\n".encode()
        self.bye = f"221 2.0.0 {behaviour.hostname} bye\r\n".encode()
        names = [
            f"SIZE {behaviour.size_limit}" if keyword == "SIZE" else keyword
            for keyword in behaviour.keywords
        ]
        if behaviour.auth:
            names.append(f"AUTH {' '.join(MECHANISMS)}")
        self.secured_ehlo = _lines([behaviour.hostname, *names, *behaviour.announced])
        if behaviour.starttls:
            names.append("STARTTLS")
        self.ehlo = _lines([behaviour.hostname, *names, *behaviour.announced])


def _lines(texts: Sequence[str]) -> bytes:
    """A reply of several lines to EHLO."""
    *lines, last = texts
    return "".join([*(f"250-{line}\r\n" for line in lines), f"250 {last}\r\n"]).encode()
