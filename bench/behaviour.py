"""How one listener of the sink treats its clients: plain data, and the words that spell it.

Answers for what a sink does instead of accepting everything. The dialogue itself is in
`sink_session.py`.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final


class Phase(Enum):
    """The places of a session where a sink can misbehave; the values are the words for them."""

    CONNECT = "connect"  # the greeting
    EHLO = "ehlo"  # EHLO, HELO, LHLO
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the command
    CONTENT = "content"  # while content arrives, before the final dot
    END = "end"  # the final dot
    RSET = "rset"
    QUIT = "quit"


KEYWORDS: Final = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One listener's manners. The default: an ESMTP server that accepts everything at once.

    Replies are texts of one line, without the line end; a "4xx" or "5xx" greeting is followed by
    closing the connection, and a "421" anywhere too.
    """

    lmtp: bool = False
    hostname: str = "sink.example"
    keywords: Sequence[str] = KEYWORDS  # announced after EHLO/LHLO; SIZE gets its number
    size_limit: int = 0  # octets of content; 0: none
    replies: Mapping[Phase, str] = field(default_factory=dict)  # in place of the usual reply
    recipients: Mapping[str, str] = field(default_factory=dict)  # at RCPT: address -> reply
    mailboxes: Mapping[str, str] = field(default_factory=dict)  # after the dot, LMTP: same shape
    greylist: float | None = None  # seconds from first sight to acceptance; None: no greylisting
    latency: float = 0.0  # seconds before each reply, one after the other
    rtt: float = 0.0  # seconds from a command's arrival to its reply's departure: see delay_line.py
    cut: Phase | None = None  # closes the connection instead of replying there
    cut_after: int | None = None  # closes it when so many octets were received
    silent: Phase | None = None  # stops replying there, and keeps the connection


class BehaviourError(ValueError):
    """A word that spells no behaviour; the text says which are known."""


def parse_behaviour(words: Sequence[str], base: Behaviour | None = None) -> Behaviour:
    """`base` changed by words such as "lmtp", "greylist=2", "rcpt=550 5.1.1 no such user".

    `PHASE=REPLY` replaces a reply, `cut=PHASE` and `silent=PHASE` break off there,
    `to:ADDRESS=REPLY` answers one recipient at RCPT and `mailbox:ADDRESS=REPLY` after an LMTP
    final dot. Raises BehaviourError.
    """
    behaviour = base or Behaviour()
    for word in words:
        try:
            behaviour = _with_word(behaviour, *word.partition("="))
        except ValueError as exc:
            raise BehaviourError(f"{word!r}: {exc}") from exc
    return behaviour


def split_words(text: str) -> list[str]:
    """The words of one command-line argument; a word with spaces is quoted as in a shell."""
    return shlex.split(text)


def _with_word(behaviour: Behaviour, name: str, equals: str, value: str) -> Behaviour:
    """`behaviour` with one word applied; ValueError says what is wrong with it."""
    match name:
        case "lmtp":
            return replace(behaviour, lmtp=True)
        case "accept":
            return behaviour
        case "greylist":
            return replace(behaviour, greylist=_seconds(value) if equals else 0.0)
        case "refuse":
            reply = value or "550 5.1.1 mailbox unavailable"
            return replace(behaviour, replies={**behaviour.replies, Phase.RCPT: reply})
        case "latency":
            return replace(behaviour, latency=_seconds(value))
        case "rtt":
            return replace(behaviour, rtt=_seconds(value))
        case "cut":
            return replace(behaviour, cut=Phase(value))
        case "cut-after":
            return replace(behaviour, cut_after=int(value))
        case "silent":
            return replace(behaviour, silent=Phase(value))
        case "size":
            return replace(behaviour, size_limit=int(value))
        case "hostname":
            return replace(behaviour, hostname=value)
        case "without":
            kept = tuple(keyword for keyword in behaviour.keywords if keyword != value.upper())
            return replace(behaviour, keywords=kept)
    return _with_reply(behaviour, name, value)


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError("expected seconds, such as NAME=0.05")
    return seconds


def _with_reply(behaviour: Behaviour, name: str, value: str) -> Behaviour:
    """`behaviour` with one reply replaced: `PHASE`, `to:ADDRESS` or `mailbox:ADDRESS`."""
    if len(value) < 3 or not value[:3].isdigit():
        raise ValueError("expected a reply such as NAME=450 4.2.0 try again")
    kind, _, address = name.partition(":")
    if kind == "to" and address:
        return replace(behaviour, recipients={**behaviour.recipients, address: value})
    if kind == "mailbox" and address:
        return replace(behaviour, mailboxes={**behaviour.mailboxes, address: value})
    try:
        phase = Phase(name)
    except ValueError:
        known = ", ".join(phase.value for phase in Phase)
        raise ValueError(f"unknown word; as a phase it would be one of {known}") from None
    return replace(behaviour, replies={**behaviour.replies, phase: value})
