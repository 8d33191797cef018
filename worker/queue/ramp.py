"""How fast the number of slots may grow: a slow start for the node as a whole.

Fast peers are served best through few sessions that are never idle: each further one costs its
set-up and gains nothing once the processors are busy. Slow peers need many. Which of the two it is
shows by itself: under fast peers slots become free for the destinations that wait, under slow ones
they do not, and then the ceiling rises step by step up to `postrio_slot_limit`. Postfix's fixed
limit of 100 processes was turned down: it is what lets slow peers block all others there.
"""

from typing import Final

FREE: Final = 100  # slots that may be opened at once (default_process_limit of Postfix)
STEP: Final = 10  # slots by which the ceiling rises ...
STEP_TIME: Final = 0.1  # ... after so many seconds at the ceiling


class Ramp:
    """The ceiling for open slots. Times are seconds of one clock, passed in."""

    def __init__(self) -> None:
        self._ceiling = FREE
        self._rises_at: float | None = None  # the ceiling is reached, and somebody waits

    def allows(self, slots: int, limit: int, now: float) -> bool:
        """Another slot may be opened beside `slots` open ones; asked when somebody wants one."""
        if slots >= limit:
            self._rises_at = None
            return False
        if slots < self._ceiling:
            return True
        if self._rises_at is None:
            self._rises_at = now + STEP_TIME
        if now < self._rises_at:
            return False
        self._ceiling += STEP
        self._rises_at = None
        return True

    def at_ceiling(self, slots: int, limit: int) -> bool:
        """No slot is to be had now."""
        return slots >= min(self._ceiling, limit)

    def released(self, slots: int) -> None:
        """A slot was closed; `slots` are left. A quiet node starts slowly again."""
        if slots < FREE // 2:
            self._ceiling = FREE
        self._rises_at = None if slots < self._ceiling - STEP else self._rises_at

    @property
    def rises_at(self) -> float | None:
        """When to ask again, if nothing happens before; None: only a closed slot helps."""
        return self._rises_at
