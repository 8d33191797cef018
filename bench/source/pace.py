"""When the next message begins: an open load by the clock, a closed one as sessions come back.

With a rate, message n is due n / rate seconds after the start and belongs to the first session
that is free. If none is, it starts late, and its time counts from when it was due: a source that
waited for a stalled server before it looked at the clock again would leave out just the messages
that suffered ("coordinated omission").
"""

from dataclasses import dataclass

import trio

from bench.source.load import Load

# A closed load of fast replies might never wait for anything, and never look at the clock either.
_BREATH = 16  # messages


@dataclass(frozen=True, slots=True)
class Turn:
    """One message to send: its number, from 0 on, and when it was due (trio's clock)."""

    number: int
    due: float


class Pace:
    """Hands out the turns of one run; the clock starts with it. One for all sessions."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._began = trio.current_time()
        self._end = self._began + load.duration if load.duration is not None else float("inf")
        self.begun = 0  # turns handed out

    async def next(self) -> Turn | None:
        """The next turn, when it is due; None: there are no more."""
        load = self._load
        if load.messages is not None and self.begun >= load.messages:
            return None
        now = trio.current_time()
        due = self._began + self.begun / load.rate if load.rate is not None else now
        if due >= self._end:
            return None
        number = self.begun
        self.begun += 1  # before we wait: nobody else may take it
        if due > now:
            await trio.sleep_until(due)
        elif number % _BREATH == 0:
            await trio.lowlevel.checkpoint()
        return Turn(number, due)
