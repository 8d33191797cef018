"""What notices say to people. The parts for programs are in notices.py."""

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

_SUBJECTS: Final = {
    "failure": "Your message could not be delivered",
    "delay": "Your message is delayed",
    "probe": "Report on the addresses you asked about",
    "postmaster failure": "Postmaster copy: message could not be delivered",
    "postmaster delay": "Postmaster copy: message is delayed",
    "double bounce": "Postmaster: mail without a sender could not be delivered",
}

_OPENINGS: Final = {
    "failure": "Your message could not be delivered to the recipients listed below, and no more"
    " attempts will be made. What the other side said is given with each of them. The original"
    " message, or its header, is attached.",
    "delay": "Your message has not reached the recipients listed below yet. You need not send it"
    " again: attempts go on until {give_up}. If the message cannot be delivered by then, you will"
    " be told.",
    "success": "You asked for a report when your message is delivered. It has reached the"
    " recipients listed below, or a mail system on the way to them that sends no reports by"
    " itself.",
    "delay cleared": "You were told that your message is delayed. It has now reached the recipients"
    " listed below, or a mail system on the way to them.",
    "probe": "You asked whether mail for the recipients listed below can be delivered. Nothing was"
    " sent to them. What the other side said is given with each of them.",
    "postmaster failure": "A message passing through this system could not be delivered to the"
    " recipients listed below. Its sender has been told, where that is allowed.",
    "postmaster delay": "A message passing through this system has not reached the recipients"
    " listed below yet. Attempts go on until {give_up}.",
    "double bounce": "A notice, or other mail from the null sender, could not be delivered to the"
    " recipients listed below. There is no sender to be told. The mail, or its header, is"
    " attached.",
}


def date(seconds: float) -> datetime:
    """Wall-clock seconds as a date for people, in UTC."""
    return datetime.fromtimestamp(max(0.0, seconds), UTC)


def subject(kind: str, action: str) -> str:
    """The subject of a notice, by the value of its NoticeKind."""
    if kind == "success":
        return f"Your message was {action}"
    if kind == "delay cleared":
        return f"Your delayed message was {action}"
    return _SUBJECTS[kind]


def explanation(
    kind: str,
    recipients: Sequence[tuple[str, str]],
    *,
    hostname: str,
    mail_name: str,
    give_up: float,
) -> str:
    """The first part of a notice; lines end in CRLF. `recipients`: (address, reason) pairs."""
    opening = _OPENINGS[kind].format(give_up=format_datetime(date(give_up)))
    paragraphs = [
        f"This is {mail_name}, the mail system of {hostname}.",
        textwrap.fill(opening, 72),
        *(_about(address, reason) for address, reason in recipients),
        "If you need help, write to the postmaster of your own mail system and include"
        "\nthis report.",
    ]
    return "\n\n".join(paragraphs).replace("\n", "\r\n") + "\r\n"


def _about(address: str, reason: str) -> str:
    # Long addresses and words stay whole: people copy them. Only absurd ones are cut.
    text = textwrap.fill(
        reason, 72, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    lines = "\n".join(line[:900] for line in text.split("\n"))
    return f"<{address[:900]}>:\n{lines}"
