"""Draining a full queue, by either side.

Answers for doing it in the same way: the queue is filled while nothing delivers, the peer is
started, time runs from the first to the last message at the sink, and CPU from the first message
there to the empty queue. Why and with what is decided by the figures that use it.
"""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bench.load import LoadError, machine_cpu, session_cpu
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
QUIET: Final[Mapping[str, str]] = {
    "in_flow_delay": "0",  # or cleanup(8) waits for the queue manager that is not there
    "maillog_file": "",  # as on a Debian system without a log daemon: no cost of logging
}


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


def drain_postfix(
    sink: SinkProcess, load: Load, main_cf: Mapping[str, str] | None = None
) -> Drained:
    """Postfix: filled over SMTP with no queue manager, then started with one.

    `main_cf`: parameters besides those that a measurement needs. Raises LoadError, PostfixError.
    """
    postfix = PostfixInstance(main_cf={**QUIET, **(main_cf or {})}, master_cf=[NO_QMGR])
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

        return _watched(
            sink, load.count, postfix.start, lambda: postfix.wait_until_drained(LIMIT), cost
        )


def fill_postfix(
    postfix: PostfixInstance, count: int, domains: Sequence[str], size: int, sessions: int = 20
) -> float:
    """Put messages into a running Postfix over SMTP; messages per second."""
    began = time.monotonic()
    for number, domain in enumerate(domains):
        share = count // len(domains) + (number < count % len(domains))
        if not share:
            continue
        subprocess.run(
            [
                *(SMTP_SOURCE, "-s", str(min(sessions, share)), "-m", str(share)),
                *("-l", str(size), "-f", "load@source.example", "-t", f"user@{domain}"),
                f"{postfix.host}:{postfix.port}",
            ],
            check=True,
        )
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
        return _watched(sink, load.count, postrio.start, wait, cost)
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


def _watched(
    sink: SinkProcess,
    count: int,
    start: Callable[[], object],
    wait: Callable[[], None],
    cost: Callable[[], dict[str, float]],
) -> Drained:
    """Start a peer, wait until its queue is empty, and say what it took.

    `cost`: CPU seconds so far, by process. CPU of the start is left out: it is half a second for a
    Python program, whatever the queue. A process that is new at the end counts from its start.
    """
    looks: list[_Look] = []

    def begin() -> None:
        start()
        sink.wait_for(1, time.monotonic() + LIMIT)
        looks.append(_look(sink, cost))

    took = sink.time_of(count, LIMIT, begin=begin)
    wait()
    first, last = *looks, _look(sink, cost)
    each = 1000 / max(1, last.count - first.count)
    return Drained(
        rate=count / took,
        cpu={name: (cpu - first.cpu.get(name, 0.0)) * each for name, cpu in last.cpu.items()},
        sink_cpu=(last.sink_cpu - first.sink_cpu) * each,
        others=(last.others - first.others) / (last.at - first.at),
    )
