"""The words that spell a behaviour, on the command line and as the keys of a scenario file.

Answers for one language in two places: the word `latency:rcpt=0.05` is the key `latency` with the
table `{rcpt = 0.05}` in a file, where a list stands for a word that is repeated. Start reading at
`SETTINGS`; `--help` is made of it.
"""

import functools
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bench.sink.behaviour import KEYWORDS, Behaviour, BehaviourError, Chance, Phase, Rate
from bench.sink.delay import SHAPES, parse_delay, seconds

REPLY: Final = re.compile(r"[2-5][0-9][0-9](?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
CHANCE: Final = re.compile(r"([0-9.]+)% *(.*)")
# EHLO keyword with parameters (RFC 5321 section 4.1.1.1).
ANNOUNCED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:[ =][\x21-\x7e]+)*")
PHASES: Final = ", ".join(phase.value for phase in Phase)
MUTE: Final = {  # phases without a reply -> why
    Phase.CONTENT: "content has no reply; the final dot's is called end",
    Phase.HANDSHAKE: "a handshake has no reply; that to STARTTLS is called starttls",
}
MOST: Final = 2**53

# Behaviour, what stands behind a colon (often nothing), and the value (True: no "=" was there) ->
# the behaviour changed. Raises ValueError, which says what is expected.
Apply = Callable[[Behaviour, str, object], Behaviour]


@dataclass(frozen=True, slots=True)
class Setting:
    """One word: how it is written, what it does, for people and for us."""

    shape: str
    about: str
    apply: Apply
    whole_list: bool = False  # a list in a file is the value, not the word repeated


def parse_behaviour(words: Sequence[str], base: Behaviour | None = None) -> Behaviour:
    """`base` changed by words such as "lmtp", "greylist=2", "rcpt=10% 451 4.7.1 try later".

    Raises BehaviourError, which names the word.
    """
    behaviour = base or Behaviour()
    for word in words:
        head, equals, value = word.partition("=")
        name, _, behind = head.partition(":")
        try:
            behaviour = apply_setting(behaviour, name, behind, value if equals else True)
        except ValueError as exc:
            raise BehaviourError(f"{word!r}: {exc}") from exc
    return behaviour


def apply_setting(behaviour: Behaviour, name: str, behind: str, value: object) -> Behaviour:
    """`behaviour` with one setting changed. Raises ValueError: what is wrong, what is known."""
    setting = SETTINGS.get(name)
    if setting is None:
        try:
            phase = Phase(name)
        except ValueError:
            raise ValueError(
                f"unknown; known are {', '.join(SETTINGS)}, and as PHASE=REPLY the phases {PHASES}"
            ) from None
        return _phase_reply(phase, behaviour, behind, value)
    return setting.apply(behaviour, behind, value)


def split_words(text: str) -> list[str]:
    """The words of one argument; one with spaces is quoted as in a shell. Raises BehaviourError."""
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise BehaviourError(f"{text!r}: {exc}") from exc


# --- values -------------------------------------------------------------------------------------


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("takes no value (in a file: true or false)")  # noqa: TRY004
    return value


def _number(least: int, value: object) -> int:
    text = str(value)
    if isinstance(value, (bool, float)) or not text.isascii() or not text.isdigit():
        raise ValueError(f"expected a whole number from {least}")
    if not least <= (number := int(text[:20])) <= MOST:
        raise ValueError(f"expected a whole number from {least}")
    return number


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or " " in value:
        raise ValueError("expected a name without spaces")
    return value


def _reply(value: object) -> str:
    if not isinstance(value, str) or not REPLY.fullmatch(value):
        raise ValueError("expected a reply such as 450 4.2.0 try again")
    return value


def _phase(value: object) -> Phase:
    try:
        return Phase(value)
    except ValueError:
        raise ValueError(f"expected a phase: {PHASES}") from None


def _rate(value: object) -> Rate:
    limit, slash, interval = value.partition("/") if isinstance(value, str) else ("", "", "")
    try:
        rate = Rate(_number(1, limit), seconds(interval))
    except ValueError:
        slash = ""
    if not slash or not rate.interval:
        raise ValueError("expected NUMBER/SECONDS, such as 10/60")
    return rate


def _keywords(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list):
        raise ValueError("expected EHLO keywords with commas between them (in a file: a list)")  # noqa: TRY004
    upper = tuple(str(name).strip().upper() for name in names if name != "")
    for name in upper:
        _known_keyword(name)
    return upper


def _known_keyword(name: str) -> str:
    if name not in KEYWORDS:
        raise ValueError(
            f"{name!r} is no keyword that the sink obeys; those are {', '.join(KEYWORDS)} "
            "(announce=TEXT announces anything else)"
        )
    return name


# --- settings -----------------------------------------------------------------------------------


def _field(name: str, convert: Callable[[object], object]) -> Apply:
    """A setting that is one field of Behaviour."""

    def apply(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
        if behind:
            raise ValueError("nothing can stand behind a colon here")
        changes: dict[str, Any] = {name: convert(value)}
        return replace(behaviour, **changes)

    return apply


def _greylist(value: object) -> float | None:
    if value is False:
        return None
    return 0.0 if value is True else seconds(value)


def _refuse(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    reply = "550 5.1.1 mailbox unavailable" if value in (True, "") else value
    return _phase_reply(Phase.RCPT, behaviour, behind, reply)


def _file(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("expected the name of a file")
    return value


def _starttls(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    """Offered; with a reply, that one is given."""
    if isinstance(value, bool):
        return _field("starttls", _flag)(behaviour, behind, value)
    return _phase_reply(Phase.STARTTLS, replace(behaviour, starttls=True), behind, value)


def _auth(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    """`auth`, `auth=REPLY`, `auth:USER=PASSWORD`; offered in any case."""
    if behind:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError("expected a password (in a file: a table of users and passwords)")
        return replace(behaviour, auth=True, users={**behaviour.users, behind: value})
    if isinstance(value, bool):
        return replace(behaviour, auth=value)
    return _phase_reply(Phase.AUTH, replace(behaviour, auth=True), behind, value)


def _without(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    del behind
    name = _known_keyword(str(value).upper())
    return replace(behaviour, keywords=tuple(kept for kept in behaviour.keywords if kept != name))


def _announce(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    del behind
    if not isinstance(value, str) or not ANNOUNCED.fullmatch(value):
        raise ValueError("expected an EHLO keyword and its parameters, such as AUTH PLAIN LOGIN")
    return replace(behaviour, announced=(*behaviour.announced, value))


def _latency(behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    """For one phase, or for all of them; a fixed one for all is a field of its own."""
    delay = parse_delay(value)
    if behind:
        return replace(behaviour, delays={**behaviour.delays, _replying(behind): delay})
    if delay.kind == "fixed":
        return replace(behaviour, latency=delay.first, delays={})
    return replace(behaviour, latency=0.0, delays=dict.fromkeys(Phase, delay))


def _replying(name: object) -> Phase:
    phase = _phase(name)
    if phase in MUTE:
        raise ValueError(MUTE[phase])
    return phase


def _for_address(name: str, behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    if not behind:
        raise ValueError("expected an address and a reply (in a file: a table of them)")
    changes: dict[str, Any] = {name: {**getattr(behaviour, name), behind: _reply(value)}}
    return replace(behaviour, **changes)


def _phase_reply(phase: Phase, behaviour: Behaviour, behind: str, value: object) -> Behaviour:
    """`rcpt=550 ...`: in place of the usual reply. `rcpt=10% 451 ...`: for some, so far."""
    if behind:
        raise ValueError(f"nothing can stand behind a colon here; expected {phase.value}=REPLY")
    _replying(phase)
    match = CHANCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return replace(behaviour, replies={**behaviour.replies, phase: _reply(value)})
    try:
        percent = float(match[1])
    except ValueError:
        percent = math.nan
    chances = (*behaviour.errors.get(phase, ()), Chance(percent / 100, _reply(match[2])))
    if not percent > 0 or sum(chance.share for chance in chances) > 1 + 1e-9:
        raise ValueError("expected shares over 0 % that are 100 % at most together")
    return replace(behaviour, errors={**behaviour.errors, phase: chances})


_from_0 = functools.partial(_number, 0)
_from_1 = functools.partial(_number, 1)

SETTINGS: Final[dict[str, Setting]] = {
    "lmtp": Setting("lmtp", "speak LMTP", _field("lmtp", _flag)),
    "accept": Setting(
        "accept", "what it does anyway", lambda behaviour, _behind, _value: behaviour
    ),
    "hostname": Setting(
        "hostname=NAME", "what it calls itself (sink.example)", _field("hostname", _text)
    ),
    "keywords": Setting(
        "keywords=A,B",
        f"announce these EHLO keywords and obey them ({','.join(KEYWORDS)})",
        _field("keywords", _keywords),
        whole_list=True,
    ),
    "without": Setting("without=KEYWORD", "announce it not", _without),
    "announce": Setting("announce=TEXT", "announce this, too, and do nothing about it", _announce),
    "starttls": Setting("starttls[=REPLY]", "announce STARTTLS and do it, or reply so", _starttls),
    "tls": Setting("tls", "speak TLS from the first octet", _field("wrapper", _flag)),
    "certificate": Setting(
        "certificate=FILE",
        "for TLS: PEM, the server's first; else the sink makes one (P-256, self-signed)",
        _field("certificate", _file),
    ),
    "key": Setting("key=FILE", "its key in PEM, if it is not there, too", _field("key", _file)),
    "auth": Setting(
        "auth[:USER=PASSWORD|=REPLY]",
        "announce AUTH PLAIN LOGIN and do it, for anybody, for these users, or reply so",
        _auth,
    ),
    "size": Setting("size=OCTETS", "largest content", _field("size_limit", _from_0)),
    "recipient-limit": Setting(
        "recipient-limit=N",
        "recipients of one message, others get 452 (10000)",
        _field("recipient_limit", _from_1),
    ),
    "refuse": Setting("refuse[=REPLY]", "refuse every recipient", _refuse),
    "to": Setting(
        "to:ADDRESS=REPLY",
        "answer this recipient so",
        functools.partial(_for_address, "recipients"),
    ),
    "mailbox": Setting(
        "mailbox:ADDRESS=REPLY",
        "answer so for this recipient after an LMTP final dot",
        functools.partial(_for_address, "mailboxes"),
    ),
    "greylist": Setting(
        "greylist[=SECONDS]",
        "450 for a sender and recipient until so long after their first try",
        _field("greylist", _greylist),
    ),
    "messages": Setting(
        "messages=N", "421 after so many on one connection", _field("message_limit", _from_0)
    ),
    "connections": Setting(
        "connections=N", "421 at connect for more at once", _field("connections", _from_0)
    ),
    "client-connections": Setting(
        "client-connections=N",
        "421 at connect for more at once from one address",
        _field("client_connections", _from_0),
    ),
    "connection-rate": Setting(
        "connection-rate=N/SECONDS",
        "421 at connect for more in such a time from one address",
        _field("connection_rate", _rate),
    ),
    "message-rate": Setting(
        "message-rate=N/SECONDS",
        "450 at MAIL for more in such a time from one address",
        _field("message_rate", _rate),
    ),
    "latency": Setting(
        "latency[:PHASE]=DELAY", f"pause before each reply. DELAY: {SHAPES}", _latency
    ),
    "rtt": Setting("rtt=SECONDS", "be that far away", _field("rtt", seconds)),
    "tarpit": Setting(
        "tarpit=SECONDS", "pause before each octet of a reply", _field("tarpit", seconds)
    ),
    "slow-read": Setting(
        "slow-read=OCTETS/SECONDS",
        "read no more than that in such a time",
        _field("slow_read", _rate),
    ),
    "cut": Setting("cut=PHASE", "close the connection instead of replying", _field("cut", _phase)),
    "cut-after": Setting(
        "cut-after=OCTETS", "close it when so much was received", _field("cut_after", _from_0)
    ),
    "silent": Setting("silent=PHASE", "reply no more from there on", _field("silent", _phase)),
}
