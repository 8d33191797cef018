"""How fast the number of slots may grow: a slow start for the node as a whole.

Fast peers are served best through few sessions that are never idle: each further one costs its
set-up and gains nothing once the processors are busy. Slow peers need many. Which of the two it is
shows in what the slots get done: the ceiling rises step by step up to `postrio_slot_limit` while
they answer fewer than FAST requests a second each. Whether slots become free was turned down as the
sign: under a long queue each one that does is wanted at once, so the ceiling rose all the same.
Postfix's fixed limit of 100 processes was turned down, too: it lets slow peers block all others.
Only slots that a worker serves are judged: those that wait for workers to start get nothing done,
however fast the peers are. And nothing is concluded while our own processes have no time for more:
what slots get done is up to us then, and each further one would make all of them slower, until the
last one that is allowed is open.
"""

from collections.abc import Callable
from typing import Final

FREE: Final = 100  # slots that may be opened at once (default_process_limit of Postfix)
STEP: Final = 50  # slots by which the ceiling rises, at least ...
# ... or this part of it: by a fixed number, thousands of deliveries that take half a minute each
# could never be under way at one time, because the first would be over before the last begins.
SHARE: Final = 20
STEP_TIME: Final = 0.5  # so often, after so many seconds at the ceiling: long enough to judge by
# Requests that a slot answers in a second from which the peers are fast. A message that needs a
# connection to the other end of the world takes longer, one for a relay nearby much less; and a
# hundred slots that wait for our own processors are each far above it.
FAST: Final = 4


class Ramp:
    """The ceiling for open slots. Times are seconds of one clock, passed in.

    `saturated`: whether our own processes have no time for more; see SlotOpener.
    """

    def __init__(self, saturated: Callable[[], bool]) -> None:
        self._saturated = saturated
        self._ceiling = FREE
        self._rises_at: float | None = None  # the ceiling is reached, and somebody waits
        self._answered = 0  # requests, since the ceiling was reached or did not rise
        self._served = 0  # slots that a worker has

    def allows(self, slots: int, limit: int, now: float) -> bool:
        """Another slot may be opened beside `slots` open ones; asked when somebody wants one."""
        if slots >= limit:
            self._rises_at = None
            return False
        if slots < self._ceiling:
            return True
        if self._rises_at is None:
            self._wait(now)
        elif now >= self._rises_at:
            slow = self._answered < self._served * FAST * (now - self._rises_at + STEP_TIME)
            if slow and not self._saturated():
                self._ceiling += max(STEP, self._ceiling // SHARE)
                self._rises_at = None
                return True
            self._wait(now)
        return False

    def _wait(self, now: float) -> None:
        self._rises_at = now + STEP_TIME
        self._answered = 0
        self._saturated()  # what it says next is about the time from now on

    def opened(self, now: float) -> None:
        """A slot has got its worker. From the first one on there is something to judge by."""
        if not self._served and self._rises_at is not None:
            self._wait(now)
        self._served += 1

    def answered(self) -> None:
        """A slot has answered a request."""
        self._answered += 1

    def closed(self) -> None:
        """A slot has left its worker; it is released() next."""
        self._served -= 1

    def at_ceiling(self, slots: int, limit: int) -> bool:
        """No slot is to be had now."""
        return slots >= min(self._ceiling, limit)

    def released(self, slots: int) -> None:
        """A slot is no more; `slots` are left. A quiet node starts slowly again."""
        if slots < FREE // 2:
            self._ceiling = FREE
        self._rises_at = None if slots < self._ceiling - STEP else self._rises_at

    @property
    def rises_at(self) -> float | None:
        """When to ask again, if nothing happens before; None: only a closed slot helps."""
        return self._rises_at
