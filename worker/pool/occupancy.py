"""How much of its time a process has something to do: it runs, or it waits for a processor.

Linux counts both for the main thread of each process (/proc/PID/schedstat), and there our event
loops are. Processor time alone would not do: on a busy machine a process gets less of it, and has
no more time for that. Where nobody counts, nothing is known, and no process is taken for busy.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

SPAN: Final = 0.25  # seconds that are looked at, at least
SATURATED: Final = 0.9  # share of its time from which a process has none for more

# Process id -> seconds in which it was occupied since its start; None: nobody knows.
Read = Callable[[int], float | None]


def occupied_seconds(pid: int) -> float | None:
    """What the system says (a `Read`)."""
    with suppress(OSError, ValueError):
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()  # nanoseconds
        return (int(ran) + int(waited)) / 1e9
    return None


class Occupancy:
    """The share of one process, whose id may change when it is started again."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._pid = 0
        self._seconds: float | None = None  # when it was looked at last
        self._at = 0.0
        self._share = 0.0

    def share(self, pid: int, now: float) -> float:
        """Between the last two looks, 0 to 1; `now` in seconds of a clock that nobody sets.

        Looks at most once in SPAN seconds. 0 after the first look.
        """
        if pid != self._pid:
            self._pid, self._share = pid, 0.0
            self._seconds, self._at = self._read(pid), now
        elif now - self._at >= SPAN:
            seconds = self._read(pid)
            if seconds is None or self._seconds is None:
                self._share = 0.0
            else:
                self._share = (seconds - self._seconds) / (now - self._at)
            self._seconds, self._at = seconds, now
        return self._share
