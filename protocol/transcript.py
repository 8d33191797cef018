"""A session in which something went wrong, on its way to the postmaster (notify_classes).

Made by whoever delivers (`worker/delivery/recorder.py`), mailed by the queue process
(`worker/queue/transcript_notices.py`).
"""

from enum import Enum
from typing import Final

from protocol.value import value

MAX_TRANSCRIPTS: Final = 3  # of one delivery: so many sessions in trouble are told of
MAX_LINES: Final = 120  # of one transcript
MAX_LINE: Final = 300  # characters of one line


class Trouble(Enum):
    """What can go wrong in a session; the values are words of notify_classes."""

    DATA = "data"  # a table that decides about the session or the message cannot be read
    PROTOCOL = "protocol"  # the server said what nobody should say
    RESOURCE = "resource"  # our own copy of the message cannot be read
    SOFTWARE = "software"  # a bug of ours


@value(kw_only=True)
class Transcript:
    """What was said in a session, without secrets, as far as it concerns one message."""

    peer: str  # host[address]:port
    troubles: frozenset[Trouble]  # at least one
    lmtp: bool = False
    lines: tuple[str, ...]  # at most MAX_LINES; "In:  " and "Out: " say who speaks
