"""Parts that the figures share: messages, what a process costs, and tables of ratios.

Answers for measuring from outside and for showing medians. The sinks are in `sink_process.py`; what
is measured is in `first.py` and `reuse.py`.
"""

import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class LoadError(Exception):
    """A measurement cannot be made: why."""


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
            say(f"  {turn + 1}/{repeats} {name}: {_figure(figures[name][-1])}")
    return figures


def ratio_table(figures: Mapping[str, Sequence[float]], unit: str, base: str) -> str:
    """Medians, spread, and the ratio of each contender to `base`, as lines of text."""
    reference = statistics.median(figures[base])
    lines = [f"{'':34} {'median':>8} {'min':>8} {'max':>8}  {unit}; ratio to {base}"]
    for name, values in figures.items():
        median = statistics.median(values)
        lines.append(
            f"{name:34} {_figure(median):>8} {_figure(min(values)):>8} {_figure(max(values)):>8}"
            f"  {median / reference:.2f}"
        )
    return "\n".join(lines)


def paired_ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio of two contenders in each turn, smallest first.

    What slows the machine down for minutes slows both of a turn, so this varies less than the
    ratio of two medians.
    """
    return sorted(first / second for first, second in zip(over, under, strict=True))


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.3f}"


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
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = _stat(path)
        except OSError:  # it ended meanwhile; its parent counts it from now on
            continue
        if int(fields[3]) == leader:
            seconds[int(path.parent.name)] = _cpu(fields)
    return seconds


def machine_cpu() -> float:
    """CPU seconds that were used for anything since the machine started, or taken from it."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = (int(field) for field in fields)
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


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
