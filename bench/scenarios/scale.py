"""scale: what one message costs and how much memory each process takes, for queues of any length.

Answers for the same drain with ever more in the queue; no peer takes part: the contenders are queue
lengths, and the base is the shortest. What would make the cost grow shows here: indices, rescans, a
log that must be written again, memory.

How the cost is taken. CPU of all processes of the node counts from the first message at the sink to
the empty queue. What a node pays once (the rest of its start, the connections, the first claims) is
in there, and would be most of the cost of a short queue; so a queue of `fixed` messages is drained
beside each, and what that took is subtracted: the cost is that of each message more. All queues are
served over the same few sessions, so no length pays for more connects. A short queue is drained
several times in one turn, because CPU is counted in hundredths of a second.
"""

import itertools
import shutil
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from bench.drain import transport_maps
from bench.harness.costs import peak_memory, session_cpu
from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.load import destinations
from bench.postrio_instance import PostrioInstance, fill_queue
from bench.sink_process import SMTP_SINK, CountingSink, SinkProcess

MEGABYTE: Final = 1e6
POLL: Final = 0.05  # seconds between looks whether the queue is empty
PATIENCE: Final = 60.0  # seconds for a drain, and
SLOWEST: Final = 200.0  # messages/s: a drain that is slower than that ends the measurement
MEMORY: Final = {"queue": "queue_peak_memory", "worker": "worker_peak_memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is queued, and for whom."""

    queued: tuple[int, ...] = (1_000, 10_000, 50_000, 200_000)  # messages, shortest first
    fixed: int = 200  # messages of the queue whose cost is subtracted
    enough: int = 5_000  # messages: a shorter queue is drained until so many have left
    size: int = 4_096  # octets of a message
    destinations: int = 10  # domains, by turns
    sessions: int = 2  # to each of them, from the beginning to the end


QUICK: Final = Load(queued=(200, 1_000), fixed=50, enough=1)


def scenario(load: Load) -> Scenario:
    """The scenario under this load. Raises LoadError for a load that measures nothing."""
    if not load.queued or min(load.queued) <= load.fixed:
        raise LoadError(f"scale: every queue must be longer than `fixed` ({load.fixed} messages)")
    queues = _Queues(load)
    shortest, longest = _name(min(load.queued)), _name(max(load.queued))
    turns = {_name(count): partial(_turn, queues, count) for count in load.queued}
    missing = {}
    if not Path(SMTP_SINK).exists():
        missing = dict.fromkeys(turns, "smtp-sink is missing: install the Debian package postfix")
    return Scenario(
        name="scale",
        about="Queues of different lengths are drained by postrio to a fast sink",
        figures=[
            Figure(name="cpu_ms", unit="CPU ms/message", more_is_better=False),
            Figure(name="queue_peak_memory", unit="MB", more_is_better=False),
            Figure(name="worker_peak_memory", unit="MB", more_is_better=False),
            Figure(name="start", unit="s until it takes submissions", more_is_better=False),
            Figure(name="rate", unit="messages/s"),
        ],
        contenders={} if missing else turns,
        missing=missing,
        targets=[
            Target(figure="cpu_ms", contender=longest, against=shortest, at_most=1.25),
            *(
                Target(figure=figure, contender=_name(longer), against=_name(shorter), at_most=1.1)
                for shorter, longer in _beyond_the_active_set(load.queued)
                for figure in MEMORY.values()
            ),
        ],
        base=shortest,
    )


def _name(count: int) -> str:
    return f"{count:,} queued"


def _beyond_the_active_set(queued: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours among the lengths from where on memory must not grow any more.

    The active set holds 20,000 messages (qmgr_message_active_limit).
    """
    long = sorted(count for count in queued if count > 20_000)
    return list(itertools.pairwise(long))


def _turn(queues: "_Queues", count: int) -> Mapping[str, float]:
    rounds = max(1, -(-queues.load.enough // count))
    drained = [_drain(queues, count) for _ in range(rounds)]
    fixed = [_drain(queues, queues.load.fixed) for _ in range(rounds)]
    messages = sum(one.messages for one in drained)
    more = messages - sum(one.messages for one in fixed)
    cpu = sum(one.cpu for one in drained) - sum(one.cpu for one in fixed)
    return {
        "cpu_ms": cpu * 1000 / more,
        **{
            figure: max(one.memory[process] for one in drained) / MEGABYTE
            for process, figure in MEMORY.items()
        },
        "start": min(one.start for one in drained),
        "rate": messages / sum(one.took for one in drained),
    }


class _Queues:
    """Filled queue directories, each made once and copied for every drain: filling takes longer.

    They are removed with this object, or when the program ends.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self._directory: Path | None = None
        self._domains = list(destinations(load.destinations, 0))

    def copy(self, count: int, to: Path) -> None:
        """Put a queue of `count` messages into the directory `to`, which must not exist."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="scale-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        filled = self._directory / str(count)
        if not filled.exists():
            trio.run(fill_queue, filled, count, self._domains, self.load.size)
        shutil.copytree(filled, to)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drained:
    """How one queue was drained, from the first look at the sink that found a message."""

    messages: int  # that left from then on
    took: float  # seconds
    cpu: float  # seconds, of all processes
    memory: Mapping[str, int]  # octets at most, by kind of process
    start: float  # seconds until submissions were taken


def _drain(queues: _Queues, count: int) -> _Drained:
    """Drain a copy of the queue of `count` messages. Raises LoadError, PostrioError."""
    load = queues.load
    with CountingSink() as sink:
        postrio = PostrioInstance(
            main_cf={
                "transport_maps": transport_maps(destinations(load.destinations, sink.port)),
                "initial_destination_concurrency": str(load.sessions),
                "default_destination_concurrency_limit": str(load.sessions),
            }
        )
        try:
            queues.copy(count, postrio.queue_directory)
            start = postrio.start()
            deadline = time.monotonic() + PATIENCE + count / SLOWEST
            sink.wait_for(1, deadline)
            began, before, already = time.monotonic(), _cpu(postrio), sink.count()
            _wait_until_empty(postrio, sink, count, deadline)
            return _Drained(
                messages=count - already,
                took=time.monotonic() - began,
                cpu=_cpu(postrio) - before,
                memory=_memory(postrio),
                start=start,
            )
        finally:
            postrio.stop()
            postrio.remove()


def _wait_until_empty(
    postrio: PostrioInstance, sink: SinkProcess, count: int, deadline: float
) -> None:
    sink.wait_for(count, deadline)
    while (gone := postrio.removed()) < count:
        if time.monotonic() > deadline:
            raise LoadError(f"only {gone} of {count} messages left postrio's queue")
        time.sleep(POLL)


def _cpu(postrio: PostrioInstance) -> float:
    return sum(session_cpu(postrio.pid).values())


def _memory(postrio: PostrioInstance) -> dict[str, int]:
    """The largest resident memory so far of any process of each kind, in octets."""
    largest: dict[str, int] = {}
    for pid in session_cpu(postrio.pid):
        kind = "queue" if pid == postrio.pid else _kind(pid)
        largest[kind] = max(largest.get(kind, 0), peak_memory(pid))
    return largest


def _kind(pid: int) -> str:
    """What a child of the queue process is, by its command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return "cache" if b"scache" in words else "worker"
