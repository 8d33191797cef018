"""What processes cost, seen from outside: CPU seconds and memory, read from /proc.

Answers for single processes and for all of a session. Every peer is started in a session of its
own, so that a sum over it is all that the peer costs.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.harness.scenario import LoadError

SAMPLE: Final = 0.2  # seconds between two looks at memory


def resident_memory(pid: int) -> int:
    """Octets of resident memory of one process (VmRSS). Raises LoadError when it is gone."""
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> int:
    """The largest resident memory of one process so far, in octets (VmHWM)."""
    return _status(pid, "VmHWM")


def process_cpu(pid: int) -> float:
    """CPU seconds of one process so far, and of the children it waited for. Raises LoadError."""
    try:
        return _cpu(_stat(Path(f"/proc/{pid}/stat")))
    except OSError as exc:
        raise LoadError(f"process {pid} is gone") from exc


def session_cpu(leader: int) -> dict[int, float]:
    """CPU seconds by process id of all processes of one session, as process_cpu().

    Both peers run in a session of their own, so the sum is all they cost; and unlike a rate it
    hardly depends on what else the machine does.
    """
    seconds = {}
    for pid, fields in _session(leader):
        seconds[pid] = _cpu(fields)
    return seconds


def session_memory(leader: int) -> int:
    """Octets of memory of all processes of one session now: the sum of their shares (Pss).

    A page that several processes use is divided among them: a sum of resident memory would count
    Postfix's libraries a hundred times.
    """
    return sum(share_of_memory(pid) for pid, _ in _session(leader))


def share_of_memory(pid: int) -> int:
    """Octets of a process, shared pages divided among those that use them (Pss); 0: it is gone.

    Of one that only root may look into (a worker, whose memory holds keys of TLS connections), what
    it has for itself (RssAnon).
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError:
        with suppress(LoadError):
            return _status(pid, "RssAnon")
        return 0
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class PeakMemory:
    """The most memory that a session's processes had together while this context was open.

    Sampled by a thread, five times a second: what is shorter is not seen. `leader`: asked at each
    sample, because a peer may be started meanwhile; None: it does not run.
    """

    def __init__(self, leader: Callable[[], int | None]) -> None:
        self.octets = 0  # complete when the context was left
        self._leader = leader
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._failure: LoadError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop looking. Raises LoadError when nothing could be seen, unless something else went."""
        self._over.set()
        self._thread.join()
        if self._failure is not None and exc is None:
            raise self._failure

    def _watch(self) -> None:
        try:
            while True:
                last = self._over.wait(SAMPLE)
                if (leader := self._leader()) is not None:
                    self.octets = max(self.octets, session_memory(leader))
                if last:
                    return
        except LoadError as exc:
            self._failure = exc


def machine_cpu() -> float:
    """CPU seconds that were used for anything since the machine started, or taken from it."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = (int(field) for field in fields)
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def _session(leader: int) -> Iterator[tuple[int, list[str]]]:
    """The processes of a session, with the fields of their stat files."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile; its parent counts it from now on
            fields = _stat(path)
            if int(fields[3]) == leader:
                yield int(path.parent.name), fields


def _stat(path: Path) -> list[str]:
    """The fields of a stat file behind the name of the program. OSError when it is gone."""
    return path.read_text().rpartition(")")[2].split()


def _cpu(fields: Sequence[str]) -> float:
    ticks = sum(int(field) for field in fields[11:15])  # own, and children waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as exc:
        raise LoadError(f"process {pid} is gone") from exc
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise LoadError(f"process {pid} has no {name}: it has ended")
    return int(found[1]) * 1024
