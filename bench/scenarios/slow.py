"""Slow peers: thousands of deliveries at once to servers that take seconds for each reply.

What counts is what a delivery under way costs: memory, as the growth of a peer's process tree
divided by the number of its sessions, both at their peak. Memory is the sum of the processes'
shares (Pss of /proc/PID/smaps_rollup), which counts a page that a hundred processes share once; the
kernel's memory for sockets is not in it. Sessions are TCP connections to the sinks, whoever has
them.

Beside it: how late the timers of postrio's worker processes fired, as they say in their logs when
they end. On a machine that others use this says as much about those; so a thread that does nothing
but sleep is measured at the same time, and what it is late by no event loop can be blamed for.

Postfix delivers with as many processes as it may have, a hundred by default, so it gets fewer
messages: two for each process.
"""

import re
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from bench.drain import NO_QMGR, POSTFIX, POSTRIO, QMGR, QUIET, fill_postfix
from bench.harness.costs import session_cpu, share_of_memory
from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.load import destinations
from bench.postfix_instance import PostfixInstance, missing_program
from bench.postrio_instance import PostrioInstance, submit_concurrently
from bench.server_process import ServerProcess
from worker.pool.lateness import Lateness

SUBMITTERS: Final = 50
SAMPLE: Final = 0.2  # seconds for which we sleep and see how late we wake
SAMPLES: Final = 3  # of these between two looks
ANY: Final = "0.0.0.0"  # the sinks listen everywhere; the peers dial addresses in 127.0.0.0/8
REPLIES: Final = 10  # more than the longest dialogue has
SPARE_DESCRIPTORS: Final = 200  # for everything but sessions and slots
SLACK: Final = 120.0  # seconds for everything but waiting for replies
READY: Final = re.compile(r": worker process \d+ is ready")
LATENESS: Final = re.compile(
    r"worker process: event loop: .* 99% at most (\d+) ms, the latest (\d+)"
)
ESTABLISHED: Final = "01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is delivered, to whom, and how much of it at once."""

    messages: int = 5000
    size: int = 4096  # octets of one message
    destinations: int = 50
    concurrency: int = 100  # deliveries at one time to each destination
    latency: float = 5.0  # seconds that a sink takes for each reply
    workers: int = 2  # postrio_worker_processes
    sinks: int = 2  # processes that the destinations are spread over
    postfix_messages: int = 200
    postfix_processes: int = 100  # default_process_limit (100)

    def __post_init__(self) -> None:
        """Raises LoadError."""
        if (
            min(self.messages, self.postfix_messages, self.concurrency, self.sinks, self.workers)
            < 1
        ):
            raise LoadError(
                "slow: messages, postfix_messages, concurrency, sinks, workers: at least one"
            )
        if not 1 <= self.destinations <= 10_000 or self.latency <= 0:
            raise LoadError("slow: 1 <= destinations <= 10000, and latency must be positive")

    def limit(self, messages: int, at_once: int) -> float:
        """Seconds after which so many must have been delivered."""
        return -(-messages // at_once) * REPLIES * self.latency + SLACK


QUICK: Final = Load(
    messages=200, destinations=5, latency=0.2, sinks=1, postfix_messages=20, postfix_processes=10
)


def scenario(load: Load) -> Scenario:
    """postrio with everything at once, Postfix with all the processes that it has."""
    contenders: dict[str, Callable[[], Mapping[str, float]]] = {
        POSTRIO: partial(_postrio_turn, load)
    }
    missing = {}
    if why := missing_program():
        missing[POSTFIX] = f"missing: {why}"
    else:
        contenders[POSTFIX] = partial(_postfix_turn, load)
    return Scenario(
        name="slow",
        about=f"servers that take {load.latency:g} s for each reply",
        figures=[
            Figure(name="memory", unit="kB per delivery in flight", more_is_better=False),
            Figure(name="worker_memory", unit="kB, the same, workers alone", more_is_better=False),
            Figure(name="in_flight", unit="deliveries at once"),
            Figure(name="lag_p99", unit="ms, timers of a worker", more_is_better=False),
            Figure(name="lag_max", unit="ms, the latest of them", more_is_better=False),
            Figure(name="idle_p99", unit="ms, of a thread that sleeps", more_is_better=False),
            Figure(name="rate", unit="messages/s"),
        ],
        contenders=contenders,
        missing=missing,
        targets=[
            Target(figure="memory", at_most=40.0),
            Target(figure="lag_p99", at_most=100.0),
        ],
    )


# --- what is seen from outside ------------------------------------------------------------------


def connections(table: str, ports: set[int]) -> int:
    """How many established connections to these ports /proc/net/tcp tells of."""
    wanted = {f"{port:04X}" for port in ports}
    count = 0
    for line in table.splitlines()[1:]:
        _, _, remote, state = line.split(maxsplit=4)[:4]
        count += state == ESTABLISHED and remote.rpartition(":")[2] in wanted
    return count


@dataclass(slots=True)
class _Peak:
    """The most that was seen in a turn; memory in octets by process id, as first seen."""

    idle: dict[int, int]
    ports: set[int]
    in_flight: int = 0
    memory: int = 0  # growth of all processes together
    workers: int = 0  # growth of those named to look()
    idle_lateness: Lateness = field(default_factory=Lateness)

    def look(self, leader: int, workers: set[int]) -> None:
        """Take a sample of the processes of one session."""
        self.in_flight = max(
            self.in_flight, connections(Path("/proc/net/tcp").read_text(), self.ports)
        )
        now = {pid: share_of_memory(pid) for pid in session_cpu(leader)}
        self.memory = max(self.memory, sum(now.values()) - sum(self.idle.values()))
        grown = sum(now.get(pid, 0) - self.idle.get(pid, 0) for pid in workers)
        self.workers = max(self.workers, grown)

    def figures(self) -> dict[str, float]:
        """Raises LoadError if there was nothing to see."""
        if not self.in_flight:
            raise LoadError("slow: no delivery was seen under way; take more messages or latency")
        return {
            "memory": self.memory / 1000 / self.in_flight,
            "worker_memory": self.workers / 1000 / self.in_flight,
            "in_flight": float(self.in_flight),
            "idle_p99": float(self.idle_lateness.of_share(0.99)),
        }


def _idle(leader: int) -> dict[int, int]:
    return {pid: share_of_memory(pid) for pid in session_cpu(leader)}


def _watch(
    what: str, limit: float, leader: int, workers: set[int], peak: _Peak, left: Callable[[], int]
) -> None:
    """Look until nothing is left. Raises LoadError after `limit` seconds."""
    deadline = time.monotonic() + limit
    while queued := left():
        if time.monotonic() > deadline:
            raise LoadError(f"slow: {what} still has {queued} messages, and time is up")
        peak.look(leader, workers)
        for _ in range(SAMPLES):
            due = time.monotonic() + SAMPLE
            time.sleep(SAMPLE)
            peak.idle_lateness.note(time.monotonic() - due)


def _allow_descriptors(load: Load) -> None:
    """Have enough open files, for us and what we start. Raises LoadError."""
    at_once = min(load.messages, load.destinations * load.concurrency)
    wanted = max(at_once, at_once * 2 // load.workers) + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LoadError(
            f"slow: {at_once} deliveries at once need {wanted} open files in one process, and only"
            f" {hard} are allowed: raise the hard limit (ulimit -Hn), or --set messages=..."
        )
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Sinks:
    """The slow servers of a turn, and the way to them; a context manager."""

    def __init__(self, load: Load) -> None:
        words = ("--behaviour", f"latency={load.latency}", "--listen", f"{ANY}:0")
        self._load = load
        self._processes = [ServerProcess("bench.sink", words) for _ in range(load.sinks)]
        self._opened = ExitStack()
        self.ports: list[int] = []

    def __enter__(self) -> Self:
        _allow_descriptors(self._load)
        with ExitStack() as opened:
            for process in self._processes:
                opened.enter_context(process)
            self._opened = opened.pop_all()
        self.ports = [int(each.addresses[0].rpartition(":")[2]) for each in self._processes]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    @property
    def domains(self) -> list[str]:
        """One for each destination."""
        return list(destinations(self._load.destinations, 0))

    def transport_maps(self) -> str:
        """A route for each domain."""
        routes = []
        for number, (domain, route) in enumerate(destinations(self._load.destinations, 0).items()):
            port = self.ports[number % len(self.ports)]
            routes.append(f"{domain}={route.rpartition(':')[0]}:{port}")
        return f"inline:{{ {', '.join(routes)} }}"


# --- turns --------------------------------------------------------------------------------------


def _postrio_turn(load: Load) -> Mapping[str, float]:
    with _Sinks(load) as sinks:
        main_cf = {
            "transport_maps": sinks.transport_maps(),
            "initial_destination_concurrency": str(load.concurrency),
            "default_destination_concurrency_limit": str(load.concurrency),
            "postrio_worker_processes": str(load.workers),
            "postrio_slot_limit": str(load.concurrency * load.destinations),
        }
        with PostrioInstance(main_cf=main_cf) as postrio:
            figures = _postrio_figures(load, sinks, postrio)
            postrio.stop()
            log = postrio.log_file.read_text(errors="replace")
    late = [(float(most), float(latest)) for most, latest in LATENESS.findall(log)]
    if (sent := log.count("status=sent")) != load.messages or not late:
        raise LoadError(f"slow: {sent} of {load.messages} messages sent, {len(late)} workers ended")
    figures["lag_p99"] = max(most for most, _ in late)
    figures["lag_max"] = max(latest for _, latest in late)
    return figures


def _postrio_figures(load: Load, sinks: _Sinks, postrio: PostrioInstance) -> dict[str, float]:
    deadline = time.monotonic() + SLACK
    while len(READY.findall(postrio.log_file.read_text(errors="replace"))) < load.workers:
        if time.monotonic() > deadline:
            raise LoadError("slow: postrio's workers are not ready")
        time.sleep(SAMPLE)
    workers = {pid for pid in session_cpu(postrio.pid) if _is_worker(pid)}
    peak = _Peak(_idle(postrio.pid), set(sinks.ports))
    began = time.monotonic()
    trio.run(
        submit_concurrently,
        *(postrio.queue_directory, load.messages, SUBMITTERS, sinks.domains, load.size),
    )
    limit = load.limit(load.messages, load.destinations * load.concurrency)
    _watch("postrio", limit, postrio.pid, workers, peak, lambda: load.messages - postrio.removed())
    return {
        **peak.figures(),
        "rate": load.messages / (time.monotonic() - began),
    }


def _is_worker(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[2:5] == [b"-m", b"worker", b"worker"]  # behind python -P


def _postfix_turn(load: Load) -> Mapping[str, float]:
    with _Sinks(load) as sinks:
        main_cf = {
            **QUIET,
            "transport_maps": sinks.transport_maps(),
            "default_process_limit": str(load.postfix_processes),
        }
        postfix = PostfixInstance(main_cf=main_cf, master_cf=[NO_QMGR])
        with postfix:
            peak = _Peak(_idle(postfix.pid), set(sinks.ports))
            fill_postfix(postfix, load.postfix_messages, sinks.domains, load.size)
            postfix.stop()
            postfix.configure(master_cf=[QMGR])
            postfix.start()
            began = time.monotonic()
            limit = load.limit(load.postfix_messages, load.postfix_processes)
            _watch("Postfix", limit, postfix.pid, set(), peak, postfix.queued)
            took = time.monotonic() - began
    figures = peak.figures()
    del figures["worker_memory"]
    return {**figures, "rate": load.postfix_messages / took}
