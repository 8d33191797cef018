"""smtp_delivery_status_filter: another status or text for what became of a recipient (S181).

Answers for what the tables are asked, and what their text makes of an outcome. Success stays
success and failure stays failure; but a failure may become one to be tried again, or a final one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from protocol.delivery_wire import TEXT_LIMIT
from protocol.outcome import Action, RecipientOutcome
from protocol.request import Protocol
from worker.config.config import Config
from worker.config.tables import Maps, TableError

# A status of RFC 3463, and perhaps a text.
_RESULT: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+(.*))?", re.DOTALL)
_ACTIONS: Final = {"2": Action.SENT, "4": Action.DEFERRED, "5": Action.BOUNCED}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFilter:
    """The tables of one protocol, and the parameter that names them."""

    parameter: str
    maps: Maps

    @classmethod
    def from_config(cls, config: Config, protocol: Protocol) -> Self | None:
        """Read smtp_delivery_status_filter or lmtp_delivery_status_filter; None: it is empty."""
        parameter = config.mirror("smtp_delivery_status_filter", protocol)
        maps = config.maps(parameter)
        return cls(parameter=parameter, maps=maps) if maps else None


_NO_ANSWER: Final = TableError("no answer")  # the lookup was cut off


class Filtering:
    """What filters make of the outcomes of one request: look_up(), then result()."""

    def __init__(
        self,
        pairs: Sequence[tuple[RecipientOutcome, StatusFilter | None]],
        warn: Callable[[str], None],
    ) -> None:
        """`pairs`: each outcome with the filter that it goes through; `warn` is told of trouble."""
        self._pairs = pairs
        self._warn = warn
        self._found: dict[tuple[str, str], str | TableError | None] = {}

    async def look_up(self) -> None:
        """Ask the tables, once for all recipients that share a reason. May be cancelled."""
        for outcome, status_filter in self._pairs:
            if status_filter is None:
                continue
            question = _question(outcome, status_filter)
            if question in self._found:
                continue
            try:
                self._found[question] = await status_filter.maps.find(question[1])
            except TableError as exc:
                self._found[question] = exc
                self._warn(f"{status_filter.parameter}: {exc}"[:TEXT_LIMIT])

    def result(self) -> tuple[RecipientOutcome, ...]:
        """The outcomes, each in its place. Whoever was not looked up got no answer."""
        return tuple([self._filtered(*pair) for pair in self._pairs])

    def _filtered(
        self, outcome: RecipientOutcome, status_filter: StatusFilter | None
    ) -> RecipientOutcome:
        if status_filter is None:
            return outcome
        question = _question(outcome, status_filter)
        text = self._found.get(question, _NO_ANSWER)
        if isinstance(text, TableError):
            return _unanswered(outcome, status_filter)
        if text is None:
            return outcome
        found = _RESULT.fullmatch(text.strip())
        action = _ACTIONS[found[1][0]] if found else None
        sent = outcome.action is Action.SENT
        if found is None or action is None or (action is Action.SENT) is not sent:
            self._warn(f"{status_filter.parameter}: bad status code: {_shown(text)}")
            self._found[question] = None  # one warning for all
            return outcome
        # What the server said stays: a notice has it as diagnostic code.
        reason = _shown(found[2]) if found[2] else outcome.reason
        return replace(outcome, action=action, dsn=found[1], reason=reason)


def _question(outcome: RecipientOutcome, status_filter: StatusFilter) -> tuple[str, str]:
    """Who is asked, and what: no more of a long reason than anybody is told of."""
    return status_filter.parameter, f"{outcome.dsn} {outcome.reason[:TEXT_LIMIT]}"


def _unanswered(outcome: RecipientOutcome, status_filter: StatusFilter) -> RecipientOutcome:
    """A bounce could not be taken back, so the recipient waits. What was delivered stays so."""
    if outcome.action is not Action.BOUNCED:
        return outcome
    reason = f"no answer from {status_filter.parameter}, so not bounced: {outcome.reason}"
    return replace(outcome, action=Action.DEFERRED, dsn="4.3.0", reason=reason)


def _shown(text: str) -> str:
    """In one line, and not without end."""
    line = text[:TEXT_LIMIT].strip()
    return "".join([char if char.isprintable() else "?" for char in line])
