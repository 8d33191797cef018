"""What a server can do: the extensions of its reply to EHLO or LHLO (RFC 5321 section 4.1.1.1).

Capabilities belong to one introduction: after STARTTLS they are asked for anew and nothing of the
former answer survives (RFC 3207 section 4.2).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from protocol.reply import Reply

_KEYWORD = re.compile(r"[A-Z0-9][A-Z0-9-]*")
_NUMBER = re.compile(r"[0-9]{1,18}")

# Extensions that are just there or not, with the field that says so.
_FLAGS: Final = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eightbitmime",
    "SMTPUTF8": "smtputf8",
    "DSN": "dsn",
    "ENHANCEDSTATUSCODES": "enhanced_status_codes",
    "STARTTLS": "starttls",
    "CHUNKING": "chunking",
    "REQUIRETLS": "requiretls",
}
_LIMITS: Final = {"MAILMAX": "mail_max", "RCPTMAX": "rcpt_max", "RCPTDOMAINMAX": "rcpt_domain_max"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The extensions of one session. `Capabilities()` is what HELO gives: none."""

    pipelining: bool = False  # RFC 2920
    eightbitmime: bool = False  # RFC 6152
    smtputf8: bool = False  # RFC 6531
    dsn: bool = False  # RFC 3461
    enhanced_status_codes: bool = False  # RFC 2034
    starttls: bool = False  # RFC 3207
    chunking: bool = False  # RFC 3030
    requiretls: bool = False  # RFC 8689
    size_announced: bool = False  # RFC 1870: MAIL may carry SIZE=
    size_limit: int = 0  # octets; 0: none
    xforward: frozenset[str] = frozenset()  # attribute names, upper case
    auth: tuple[str, ...] = ()  # mechanisms, upper case, in the server's order
    dummy_auth: bool = False  # logged in, and AUTH=<> wanted with MAIL (RFC 4954 section 5)
    mail_max: int = 0  # RFC 9422: transactions in this session; 0: no limit told
    rcpt_max: int = 0  # recipients in one transaction
    rcpt_domain_max: int = 0  # recipient domains in one transaction
    discarded: tuple[str, ...] = ()  # keywords that were announced, and ignored as told
    greeting_name: str = ""  # first word of the first line: the server's name for itself (S019)

    @staticmethod
    def from_reply(reply: Reply, discard: Collection[str] = ()) -> "Capabilities":
        """Read a positive reply to EHLO or LHLO; keywords in any case.

        `discard`: keywords to ignore, in any case (`smtp_discard_ehlo_keywords`). Lines that are
        no keyword lines are ignored, as are parameters that make no sense: a broken line must
        not cost the mail.
        """
        unwanted = {keyword.upper() for keyword in discard}
        found = _Found()
        for line in reply.lines[1:]:
            # AUTH=LOGIN is how servers of the nineties wrote AUTH LOGIN; some still do.
            words = line.upper().replace("AUTH=", "AUTH ", 1).split()
            if not words or not _KEYWORD.fullmatch(words[0]):
                continue
            if words[0] not in unwanted:
                found.note(words[0], words[1:])
            elif words[0] not in found.discarded:
                found.discarded.append(words[0])
        greeting = reply.lines[0].split() if reply.lines else []
        return found.capabilities(greeting[0] if greeting else "")


class _Found:
    """The keywords of one reply while it is read."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.xforward: set[str] = set()
        self.auth: dict[str, None] = {}  # ordered, and each once
        self.discarded: list[str] = []

    def note(self, keyword: str, params: list[str]) -> None:
        if keyword in _FLAGS:
            self.flags.add(_FLAGS[keyword])
        elif keyword == "SIZE":
            self.flags.add("size_announced")
            self.numbers["size_limit"] = _number(params[0]) if params else 0
        elif keyword == "AUTH":
            self.auth.update(dict.fromkeys(params))
        elif keyword == "XFORWARD":
            self.xforward.update(params)
        elif keyword == "LIMITS":
            for param in params:
                name, _, value = param.partition("=")
                if name in _LIMITS:
                    self.numbers[_LIMITS[name]] = _number(value)

    def capabilities(self, greeting_name: str) -> Capabilities:
        flag = self.flags.__contains__
        number = self.numbers.get
        return Capabilities(
            pipelining=flag("pipelining"),
            eightbitmime=flag("eightbitmime"),
            smtputf8=flag("smtputf8"),
            dsn=flag("dsn"),
            enhanced_status_codes=flag("enhanced_status_codes"),
            starttls=flag("starttls"),
            chunking=flag("chunking"),
            requiretls=flag("requiretls"),
            size_announced=flag("size_announced"),
            size_limit=number("size_limit", 0),
            xforward=frozenset(self.xforward),
            auth=tuple(self.auth),
            mail_max=number("mail_max", 0),
            rcpt_max=number("rcpt_max", 0),
            rcpt_domain_max=number("rcpt_domain_max", 0),
            discarded=tuple(self.discarded),
            greeting_name=greeting_name,
        )


def _number(text: str) -> int:
    """A decimal number as servers announce it; 0, "no limit", for anything else."""
    return int(text) if _NUMBER.fullmatch(text) else 0
