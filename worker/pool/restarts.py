"""When a process that ended by itself is started again, and what is said about it. No I/O.

The first early end costs nothing: the process comes back at once, because most deaths are single
ones. Each further one doubles the pause, so that a crash loop is reported and does not spin. A
process that lived long enough starts with a clean record.
"""

import os
import signal
from typing import Final

FIRST_PAUSE: Final = 1.0  # seconds, from the second early end on
LONGEST_PAUSE: Final = 60.0
HEALTHY_AFTER: Final = 60.0  # seconds of life after which an end is not "early" any more
LOOP_FROM: Final = 3  # early ends in a row that are called a crash loop

_HINTS: Final = {
    os.EX_USAGE: "another version of postrio may have been installed: restart postrio",
    os.EX_OSERR: "memory, the number of processes, or the program's file",
    os.EX_SOFTWARE: "its stacks or its traceback are in the log above",
    os.EX_CANTCREAT: "it cannot open the log: see maillog_file",
    os.EX_CONFIG: "run 'postrio check'",
    -signal.SIGKILL: "out of memory? see the kernel's log",
}
_SIGNALLED: Final = "a bug in an extension module? see the kernel's log"
_USUAL_HINT: Final = "its last words are in the log above, or on standard error"


class Restarts:
    """The record of one process. Times are seconds of a steady clock."""

    def __init__(self) -> None:
        self._count = 0  # ends of short lives in a row
        self._since = 0.0  # when the first of them was

    def ended(self, started: float, now: float) -> float:
        """A life is over. Returns seconds to wait until the next one."""
        if now - started > HEALTHY_AFTER:
            self._count = 0
        if not self._count:
            self._since = now
        self._count += 1
        if self._count == 1:
            return 0.0
        return min(FIRST_PAUSE * 2.0 ** min(self._count - 2, 30), LONGEST_PAUSE)

    def describe(self, name: str, status: int, pause: float, now: float) -> str:
        """One line about the end that ended() was just told of.

        `status`: as of a subprocess, negative for a signal.
        """
        how = f"was killed by signal {signal_name(-status)}"
        if status >= 0:
            how = f"ended with status {status}"
        when = f"in {pause:.0f} s" if pause else "at once"
        if self._count < LOOP_FROM:
            return f"{name} {how} -- restarting {when}"
        hint = _HINTS.get(status, _SIGNALLED if status < 0 else _USUAL_HINT)
        span = max(1, round(now - self._since))
        return (
            f"{name} {how}, its end number {self._count} in {span} s: a crash loop"
            f" -- restarting {when}; {hint}"
        )


def signal_name(number: int) -> str:
    """SIGKILL for 9; the number where the system has no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
