"""What a source is asked to do, checked at the edge and passed down.

Answers for the numbers; where the mail goes is in `target.py`, what it says in `messages.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from bench.source.security import Security


class Phase(Enum):
    """What is timed. The dialogue's phases have a time limit each; the last two are sums."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "EHLO"  # or LHLO, or HELO where EHLO was refused; a second time after STARTTLS
    STARTTLS = "STARTTLS"  # the command
    HANDSHAKE = "TLS handshake"  # after it, or before the greeting
    AUTH = "AUTH"  # each of its questions
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    CONTENT = "content"  # from its first octet to the reply to its final dot
    RSET = "RSET"  # only after a transaction that was not finished
    QUIT = "QUIT"
    LATE = "late start"  # with a rate: how long after its time a message was begun
    MESSAGE = "whole message"


# Those of the dialogue: what a time limit can be set for.
DIALOGUE: Final = tuple(phase for phase in Phase if phase not in (Phase.LATE, Phase.MESSAGE))
TIME_LIMIT: Final = 60.0  # seconds for each phase, unless told otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much, how fast, over which sessions. Either `messages` or `duration` bounds it, or both.

    With a `rate` the load is open: message n is due n / rate seconds after the start, whatever the
    server does, and its time counts from then. Without one it is closed: each session begins its
    next message when the last one was answered.
    """

    sessions: int = 1  # at one time
    messages: int | None = 1  # in all; None: as many as the duration has room for
    duration: float | None = None  # seconds in which messages are begun; None: no limit
    rate: float | None = None  # messages/s over all sessions; None: as fast as the server answers
    per_connection: int | None = None  # messages; None: until the end, or until the server closes
    lmtp: bool = False
    pipelining: bool = True  # where the server announces it
    helo: str = "source.example"
    security: Security = Security()  # noqa: RUF009  # it is frozen
    limits: Mapping[Phase, float] = field(default_factory=dict)  # seconds; else TIME_LIMIT
    give_up: int = 100  # connections in a row that led to no session; 0: never

    def limit(self, phase: Phase) -> float:
        """Seconds that `phase` may take."""
        return self.limits.get(phase, TIME_LIMIT)
