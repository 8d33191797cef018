"""How one listener of the sink treats its clients: plain data.

Answers for what a sink does instead of accepting everything. The words for it are in `words.py`,
the dialogue that obeys it in `session.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from bench.sink.delay import Delay


class Phase(Enum):
    """The places of a session where a sink can misbehave; the values are the words for them."""

    CONNECT = "connect"  # the greeting
    EHLO = "ehlo"  # EHLO, HELO, LHLO
    STARTTLS = "starttls"  # the command
    HANDSHAKE = "handshake"  # of TLS; it has no reply
    AUTH = "auth"  # the verdict in the end
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the command
    CONTENT = "content"  # while content arrives, before the final dot; it has no reply
    END = "end"  # the final dot
    RSET = "rset"
    QUIT = "quit"


KEYWORDS: Final = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")


class BehaviourError(ValueError):
    """What was written spells no behaviour; the text says where, why, and what is known."""


@dataclass(frozen=True, slots=True)
class Chance:
    """A reply that only some get."""

    share: float  # of all, over 0 and up to 1
    reply: str


@dataclass(frozen=True, slots=True)
class Rate:
    """So many of something in so much time."""

    limit: int
    interval: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One listener's manners. The default: an ESMTP server that accepts everything at once.

    Replies are texts of one line, without the line end; a "4xx" or "5xx" greeting is followed by
    closing the connection, and a "421" anywhere too. A limit of 0 is none.
    """

    lmtp: bool = False
    hostname: str = "sink.example"
    keywords: Sequence[str] = KEYWORDS  # announced after EHLO/LHLO; SIZE gets its number
    announced: Sequence[str] = ()  # announced as well, and nothing follows from it
    size_limit: int = 0  # octets of content
    recipient_limit: int = 10_000  # of one message; never 0, they are kept in memory
    # --- TLS and AUTH
    starttls: bool = False  # announced and done
    wrapper: bool = False  # TLS from the first octet
    certificate: str = ""  # PEM file; empty: one that the sink makes itself
    key: str = ""  # PEM file; empty: the key is in `certificate`
    auth: bool = False  # AUTH PLAIN and LOGIN are announced and done
    users: Mapping[str, str] = field(default_factory=dict, repr=False)  # passwords; none: anybody
    # --- replies
    replies: Mapping[Phase, str] = field(default_factory=dict)  # in place of the usual reply
    errors: Mapping[Phase, Sequence[Chance]] = field(default_factory=dict)  # before `replies`
    recipients: Mapping[str, str] = field(default_factory=dict)  # at RCPT: address -> reply
    mailboxes: Mapping[str, str] = field(default_factory=dict)  # after the dot, LMTP: same shape
    greylist: float | None = None  # seconds from first sight to acceptance; None: no greylisting
    # --- limits
    message_limit: int = 0  # of one connection; the next MAIL gets 421
    connections: int = 0  # at once; one more gets 421 at once
    client_connections: int = 0  # the same, of one client (IP address)
    connection_rate: Rate | None = None  # of one client
    message_rate: Rate | None = None  # of one client; the next MAIL gets 450
    # --- time
    latency: float = 0.0  # seconds before each reply, one after the other
    delays: Mapping[Phase, Delay] = field(default_factory=dict)  # instead of it, in these phases
    rtt: float = 0.0  # seconds from a command's arrival to its reply's departure: see delay_line.py
    tarpit: float = 0.0  # seconds before each octet of a reply
    slow_read: Rate | None = None  # reads at most so many octets in such a time
    # --- endings
    cut: Phase | None = None  # closes the connection instead of replying there
    cut_after: int | None = None  # closes it when so many octets were received
    silent: Phase | None = None  # stops replying there, and keeps the connection

    @property
    def takes_time(self) -> bool:
        """Whether anything here waits: then only the lane with a clock can serve it."""
        return bool(
            self.latency or self.delays or self.rtt or self.tarpit or self.slow_read is not None
        )

    @property
    def counts_clients(self) -> bool:
        """Whether anything here depends on what came before, from others too: one process only."""
        return (
            self.greylist is not None
            or bool(self.connections or self.client_connections)
            or self.connection_rate is not None
            or self.message_rate is not None
        )

    @property
    def special_phases(self) -> frozenset[Phase]:
        """Where a reply may be another than the usual one, or late, or missing."""
        if self.latency:
            return frozenset(Phase)
        broken_off = {phase for phase in (self.cut, self.silent) if phase is not None}
        return frozenset({*self.replies, *self.errors, *self.delays, *broken_off})
