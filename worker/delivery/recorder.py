"""Writes down what is said in a session, so that the postmaster can be shown it (S155).

Only where notify_classes asks for it, and not for messages that nobody is told about: those of the
null sender, and our own notices. Content is not written down, and no secret (`spoken.py`).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from protocol.command import Command, EndOfData, Quit
from protocol.reply import Reply
from protocol.sasl.secret import Secret
from protocol.spoken import command_text, reply_lines, response_of
from protocol.transcript import MAX_LINE, MAX_LINES, Transcript, Trouble
from worker.config.config import Config, double_bounce_address

FIRST_LINES: Final = 40  # of a long dialogue its beginning is kept, and its end
_LAST_LINES: Final = MAX_LINES - FIRST_LINES - 1  # one says how many were left out


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRules:
    """Which sessions are written down."""

    troubles: frozenset[Trouble] = frozenset()  # notify_classes, as far as it is about sessions
    double_bounce: str = ""  # who sends them (double_bounce_sender)

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Read from the configuration."""
        wanted = config.words("notify_classes")
        return cls(
            troubles=frozenset(trouble for trouble in Trouble if trouble.value in wanted),
            double_bounce=double_bounce_address(config),
        )

    def wants(self, sender: str) -> bool:
        """Whether to write down the session for a message of this sender.

        A notice about a notice might go round in circles.
        """
        if not self.troubles or not sender:
            return False
        return sender.lower() != self.double_bounce.lower()


NO_RECORDING: Final = RecordingRules()


class Recorder:
    """A witness of one session. What went wrong is added to `troubles` by who finds out."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        """`secrets`: are not shown in replies, and neither is what a log-in says."""
        self._secrets = list(secrets)
        self.troubles: set[Trouble] = set()
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._left_out = 0
        self._dot_said = False
        self._ahead: list[str] = []  # said behind the final dot: of the next message

    def next_message(self) -> None:
        """From now on the session serves another message: what was before is none of its business.

        Its own envelope may be under way already.
        """
        self.troubles = set()
        self._first, self._ahead = self._ahead, []
        self._last.clear()
        self._left_out = 0
        self._dot_said = False

    def said(self, command: Command, wire: bytes) -> None:
        """See Witness."""
        if (response := response_of(command)) is not None:
            self._secrets.append(response)
        line = f"Out: {command_text(command, wire)}"
        if self._dot_said and not isinstance(command, Quit):
            if len(self._ahead) < FIRST_LINES:
                self._ahead.append(line[:MAX_LINE])
            return
        self._dot_said = isinstance(command, EndOfData)
        self._write(line)

    def heard(self, command: Command | None, reply: Reply) -> None:
        """See Witness."""
        for line in reply_lines(command, reply, self._secrets):
            self._write(f"In:  {line}")

    def transcript(
        self, peer: str, wanted: frozenset[Trouble], *, lmtp: bool = False
    ) -> Transcript | None:
        """What is to be told of the session with `peer`; None: nothing that is wanted."""
        troubles = wanted & self.troubles
        if not troubles:
            return None
        lines: Sequence[str] = (*self._first, *self._last)
        if self._left_out:
            lines = (*self._first, f"[{self._left_out} lines left out]", *self._last)
        return Transcript(peer=peer, troubles=troubles, lmtp=lmtp, lines=tuple(lines))

    def _write(self, line: str) -> None:
        line = line[:MAX_LINE]
        if len(self._first) < FIRST_LINES:
            self._first.append(line)
            return
        self._left_out += len(self._last) == _LAST_LINES
        self._last.append(line)
