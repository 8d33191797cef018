"""Parts that the figures share: the counting sink, messages, and tables of ratios.

Answers for measuring from outside and for showing medians. What is measured is in `first.py`.
"""

import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.postfix_instance import free_port

SMTP_SINK: Final = "/usr/sbin/smtp-sink"
POLL: Final = 0.005  # seconds between two looks at a counter
COUNT: Final = re.compile(rb"mesg=(\d+)")
COUNT_TAIL: Final = 200  # octets at the end of the sink's output that hold its last count


class LoadError(Exception):
    """A measurement cannot be made: why."""


class CountingSink:
    """Debian's smtp-sink on every address of 127.0.0.0/8, and how many messages it took.

    It listens on the wildcard address, for want of a way to name fifty; the peers dial loopback.
    """

    def __init__(self) -> None:
        self.port = free_port("0.0.0.0")
        self._directory = Path(tempfile.mkdtemp(prefix="sink-"))
        self._output = self._directory / "count"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not Path(SMTP_SINK).exists():
            raise LoadError("smtp-sink is missing: install the Debian package postfix")
        # As root it would refuse to run; as anybody else it must not be told who to be.
        rights = ["-u", "nobody"] if os.geteuid() == 0 else []
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [SMTP_SINK, *rights, "-4", "-c", f":{self.port}", "1024"],
                stdin=subprocess.DEVNULL,
                stdout=output,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def count(self) -> int:
        """Messages taken since the start."""
        with self._output.open("rb") as output:
            size = output.seek(0, 2)
            output.seek(max(0, size - COUNT_TAIL))
            found: list[bytes] = COUNT.findall(output.read())
        return int(found[-1]) if found else 0

    def time_of(self, more: int, limit: float, *, begin: Callable[[], object]) -> float:
        """Seconds that `more` messages take, from the first to the last. Raises LoadError.

        `begin` sets the peer going; start-up is no part of the time (it has a figure of its own).
        Watching the sink, and not one peer's log or queue, is the same effort for every peer. A
        peer may deliver before `begin` returns, so the sink is watched meanwhile.
        """
        before = self.count()
        deadline = time.monotonic() + limit
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(begin)
            while self.count() == before and not started.done():
                time.sleep(POLL)
            if started.done():
                started.result()  # its exception, if it has one
            self._wait(before + 1, deadline)
            first = time.monotonic()
            already = self.count() - before  # the first look may find several
            self._wait(before + more, deadline)
            took = time.monotonic() - first
        return took * more / max(1, more - already)

    def _wait(self, count: int, deadline: float) -> None:
        while (seen := self.count()) < count:
            if time.monotonic() > deadline:
                raise LoadError(f"the sink has {seen} of {count} messages, and time is up")
            time.sleep(POLL)


def destinations(count: int, port: int) -> dict[str, str]:
    """Domains and where they go: each to an address of its own, so that none shares a session."""
    return {
        f"d{number}.example": f"smtp:[127.0.{number // 250}.{number % 250 + 2}]:{port}"
        for number in range(count)
    }


def message(number: int, size: int) -> bytes:
    """A message of `size` octets with CRLF line ends, in lines as people write them."""
    head = (
        f"From: load@source.example\r\nTo: user@d.example\r\nSubject: number {number}\r\n"
        f"Message-ID: <{number}@source.example>\r\n\r\n"
    ).encode()
    line = b"The quick brown fox jumps over the lazy dog, and back again.\r\n"
    body = line * (max(0, size - len(head)) // len(line) + 1)
    return head + body[: max(0, size - len(head) - 2)].rstrip(b"\r") + b"\r\n"


def interleaved(
    contenders: Mapping[str, Callable[[], float]], repeats: int, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Each contender's figures; they take turns, so that a busy moment hits all of them alike."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name, measure in contenders.items():
            figures[name].append(measure())
            say(f"  {turn + 1}/{repeats} {name}: {figures[name][-1]:.0f}")
    return figures


def ratio_table(figures: Mapping[str, Sequence[float]], unit: str, base: str) -> str:
    """Medians, spread, and the ratio of each contender to `base`, as lines of text."""
    reference = statistics.median(figures[base])
    lines = [f"{'':34} {'median':>8} {'min':>8} {'max':>8}  {unit}; ratio to {base}"]
    for name, values in figures.items():
        median = statistics.median(values)
        lines.append(
            f"{name:34} {median:8.0f} {min(values):8.0f} {max(values):8.0f}"
            f"  {median / reference:.2f}"
        )
    return "\n".join(lines)


def resident_memory(pid: int) -> int:
    """Octets of resident memory of one process (VmRSS). Raises LoadError when it is gone."""
    return _status(pid, "VmRSS")


def peak_memory(pid: int) -> int:
    """The largest resident memory of one process so far, in octets (VmHWM)."""
    return _status(pid, "VmHWM")


def session_cpu(leader: int) -> float:
    """CPU seconds of all processes of one session so far, and of those they waited for.

    Both peers run in a session of their own, so this is all they cost; and unlike a rate it hardly
    depends on what else the machine does.
    """
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile; its parent counts it from now on
            continue
        if int(fields[3]) == leader:
            ticks += sum(int(field) for field in fields[11:15])  # own, and children waited for
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
