"""Draining a full queue, by either side.

Answers for doing it in the same way: the queue is filled while nothing delivers, the peer is
started, time runs from the first to the last message at the sink, CPU from the first message there
to the empty queue, and memory is looked at from the start to the empty queue. Both peers log to a
file, Postfix by its own postlogd(8). Why and with what is decided by the scenarios that use it.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from bench.harness.costs import PeakMemory, machine_cpu, session_cpu
from bench.harness.scenario import LoadError
from bench.postfix_instance import PostfixInstance
from bench.postrio_instance import PostrioInstance, fill_queue
from bench.sink_process import SinkProcess

POSTFIX: Final = "Postfix, default"
POSTFIX_PLAIN: Final = "Postfix, without connection cache"
POSTRIO: Final = "postrio"

LIMIT: Final = 300.0  # seconds to drain any queue
QMGR: Final = "qmgr unix n - n 300 1 qmgr"
NO_QMGR: Final = f"#{QMGR}"
SMTP_SOURCE: Final = "/usr/sbin/smtp-source"
UNCACHED: Final[Mapping[str, str]] = {"smtp_connection_cache_on_demand": "no"}
# Or cleanup(8) waits for the queue manager that is not there.
UNHURRIED: Final[Mapping[str, str]] = {"in_flow_delay": "0"}
# No log either: for measurements of which it is no part.
QUIET: Final[Mapping[str, str]] = {**UNHURRIED, "maillog_file": ""}
POLL: Final = 0.005  # seconds between two looks at the sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is in the queue: `count` messages of `size` octets, by turns for the domains routed."""

    count: int
    size: int
    routes: Mapping[str, str]  # domain -> transport:nexthop


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """How it went."""

    rate: float  # messages/s at the sink
    cpu: Mapping[str, float]  # CPU ms per message, by what the peer's processes are
    sink_cpu: float  # the same of the sink
    others: float  # processors that everything else on the machine took meanwhile
    memory: int  # octets: the most that all its processes had together

    @property
    def per_cpu(self) -> float:
        """Messages for a second of CPU of all the peer's processes. Raises LoadError: for none."""
        if not (milliseconds := sum(self.cpu.values())):
            raise LoadError("it took no CPU that could be measured: too few messages")
        return 1000 / milliseconds


def drain_postfix(
    sink: SinkProcess, load: Load, main_cf: Mapping[str, str] | None = None
) -> Drained:
    """Postfix: filled over SMTP with no queue manager, then started with one.

    `main_cf`: parameters besides those that a measurement needs. Raises LoadError, PostfixError.
    """
    postfix = PostfixInstance(main_cf={**UNHURRIED, **(main_cf or {})}, master_cf=[NO_QMGR])
    table = postfix.directory / "transport"
    table.write_text("".join(f"{domain} {route}\n" for domain, route in load.routes.items()))
    table.chmod(0o644)
    postfix.configure({"transport_maps": f"texthash:{table}"})
    with postfix:
        fill_postfix(postfix, load.count, list(load.routes), load.size)
        postfix.stop()
        if (queued := postfix.queued("incoming")) != load.count:
            raise LoadError(f"Postfix has {queued} of {load.count} messages in its queue")
        postfix.configure(master_cf=[QMGR])

        def cost() -> dict[str, float]:
            return {"Postfix": sum(session_cpu(postfix.pid).values())}

        return _watched(sink, load.count, postfix, lambda: postfix.wait_until_drained(LIMIT), cost)


def fill_postfix(
    postfix: PostfixInstance, count: int, domains: Sequence[str], size: int, sessions: int = 20
) -> float:
    """Put messages into a running Postfix over SMTP; messages per second. Raises LoadError."""
    began = time.monotonic()
    for number, domain in enumerate(domains):
        share = count // len(domains) + (number < count % len(domains))
        if not share:
            continue
        done = subprocess.run(
            [
                *(SMTP_SOURCE, "-s", str(min(sessions, share)), "-m", str(share)),
                *("-l", str(size), "-f", "load@source.example", "-t", f"user@{domain}"),
                f"{postfix.host}:{postfix.port}",
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise LoadError(f"smtp-source failed: {said}")
    return count / (time.monotonic() - began)


def _is_cache(pid: int) -> bool:
    """Whether a process is the connection cache of a node."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False
    return b"scache" in words


def drain_postrio(
    sink: SinkProcess, load: Load, main_cf: Mapping[str, str] | None = None
) -> Drained:
    """postrio: the queue is filled, then `postrio run` is started.

    `main_cf`: parameters besides those that a measurement needs. Raises LoadError, PostrioError.
    """
    maps = {"transport_maps": transport_maps(load.routes)}
    postrio = PostrioInstance(main_cf={**maps, **(main_cf or {})})

    def cost() -> dict[str, float]:
        seconds = session_cpu(postrio.pid)
        queue = seconds.pop(postrio.pid, 0.0)
        caches = [pid for pid in seconds if _is_cache(pid)]
        cache = sum(seconds.pop(pid) for pid in caches)
        workers = [seconds[pid] for pid in sorted(seconds)]
        numbered = {f"worker {n}": cpu for n, cpu in enumerate(workers, start=1)}
        return {"queue": queue, **numbered, "cache": cache}

    def wait() -> None:
        deadline = time.monotonic() + LIMIT
        while (gone := postrio.removed()) < load.count:
            if time.monotonic() > deadline:
                raise LoadError(f"only {gone} of {load.count} messages left postrio's queue")
            time.sleep(0.1)

    try:
        trio.run(fill_queue, postrio.queue_directory, load.count, list(load.routes), load.size)
        return _watched(sink, load.count, postrio, wait, cost)
    finally:
        postrio.stop()
        postrio.remove()


def transport_maps(routes: Mapping[str, str]) -> str:
    """The routes as the value of transport_maps."""
    table = ", ".join(f"{domain}={route}" for domain, route in routes.items())
    return f"inline:{{ {table} }}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What everything had used at one moment, in CPU seconds."""

    at: float  # monotonic seconds
    count: int  # messages at the sink
    cpu: Mapping[str, float]  # the peer's processes
    sink_cpu: float
    others: float  # everything else on the machine


def _look(sink: SinkProcess, cost: Callable[[], dict[str, float]]) -> _Look:
    cpu, sink_cpu = cost(), sink.cpu()
    own = sum(cpu.values()) + sink_cpu + time.process_time()  # we look at the sink all the time
    return _Look(
        at=time.monotonic(),
        count=sink.count(),
        cpu=cpu,
        sink_cpu=sink_cpu,
        others=machine_cpu() - own,
    )


class SinkWatch:
    """When the first and the last of `count` messages reached a sink; a context manager.

    A thread looks, because a peer delivers before its start() returns.
    """

    def __init__(self, sink: SinkProcess, count: int) -> None:
        self._sink = sink
        self._count = count
        self._before = sink.count()
        self._seen: list[tuple[float, int]] = []  # monotonic seconds, messages: first, last
        self._first, self._all, self._over = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._watch, name="sink", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            taken = self._sink.count() - self._before
            if taken and not self._first.is_set():
                self._seen.append((time.monotonic(), taken))
                self._first.set()
            if taken >= self._count:
                self._seen.append((time.monotonic(), taken))
                self._all.set()
                return

    def wait_for_first(self) -> None:
        """Return when a message was taken. Raises LoadError."""
        if not self._first.wait(LIMIT):
            raise LoadError(f"no message reached the sink in {LIMIT:.0f} s")

    def wait_for_all(self) -> float:
        """Return messages/s, from the first message to the last. Raises LoadError."""
        if not self._all.wait(LIMIT):
            taken = self._sink.count() - self._before
            raise LoadError(f"the sink has {taken} of {self._count} messages, and time is up")
        (began, already), (ended, _) = self._seen  # the first look may find several
        return max(1, self._count - already) / max(POLL, ended - began)


def _watched(
    sink: SinkProcess,
    count: int,
    peer: PostfixInstance | PostrioInstance,
    wait: Callable[[], None],
    cost: Callable[[], dict[str, float]],
) -> Drained:
    """Start a peer, wait until its queue is empty, and say what it took.

    `cost`: CPU seconds so far, by process. CPU of the start is left out: it is half a second for a
    Python program, whatever the queue. A process that is new at the end counts from its start.
    """

    def leader() -> int | None:
        try:
            return peer.pid
        except LoadError:  # it has not started yet
            return None

    with PeakMemory(leader) as memory, SinkWatch(sink, count) as watch:
        peer.start()
        watch.wait_for_first()
        first = _look(sink, cost)
        rate = watch.wait_for_all()
        wait()
        last = _look(sink, cost)
    each = 1000 / max(1, last.count - first.count)
    return Drained(
        rate=rate,
        cpu={name: (cpu - first.cpu.get(name, 0.0)) * each for name, cpu in last.cpu.items()},
        sink_cpu=(last.sink_cpu - first.sink_cpu) * each,
        others=(last.others - first.others) / (last.at - first.at),
        memory=memory.octets,
    )
