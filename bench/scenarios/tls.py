"""tls: what a message costs inside TLS, over sessions that are reused, shared, and new.

Each contender (`bench/tls_loops.py`) is a process of its own, with messages from memory and no
queue or log, that talks to a sink of its own, whose CPU is not counted. Certificates are P-256,
TLS is 1.3. It is about CPU: round trips, which reuse spares as well, do not show on loopback.

Shared sessions take three processes: one that made the TLS connections and holds them, one that
finds them in the connection cache, delivers a message and gives them back, and the cache. *cpu* is
that of the first two, since the cache does nothing that it would not do in the clear; with it, the
figure is *all_cpu*.

Targets compare with full handshakes: whether a session is resumed is the server's choice, and many
do not.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.harness.scenario import Figure, LoadError, Scenario, Target, Turn
from bench.scenarios.cache import our_cache
from bench.scenarios.sinks import cpu_seconds
from bench.sink_process import SINK_SESSIONS, OurSink
from bench.tls_loops import AIOSMTPLIB, CLEAR, FULL, LENT, NEW, REUSED, SHARED

MANY: Final = (CLEAR, REUSED)  # contenders for which connecting is not what is measured
TTL: Final = ("--ttl-limit", "100")  # seconds; the second process takes a while to start


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each contender delivers in a turn."""

    count: int = 5_000  # messages over sessions that are reused
    connections: int = 500  # messages with a connection each
    shared: int = 1_000  # messages over sessions of another process
    sessions: int = field(default=10, metadata={"most": SINK_SESSIONS})  # at a time
    size: int = 4096  # octets of one message


QUICK: Final = Load(count=200, connections=20, shared=40, sessions=4)


def scenario(load: Load) -> Scenario:
    """Our engine in its ways of using TLS, and aiosmtplib."""
    contenders: dict[str, Turn] = {
        name: partial(turn, name, load) for name in (CLEAR, REUSED, NEW, FULL)
    }
    contenders[SHARED] = partial(shared_turn, load)
    missing = {}
    if find_spec("aiosmtplib") is None:
        missing[AIOSMTPLIB] = "it is not installed"
    else:
        contenders[AIOSMTPLIB] = partial(turn, AIOSMTPLIB, load)
    return Scenario(
        name="tls",
        about="messages from memory inside TLS, over sessions that are reused, shared and new",
        figures=[
            Figure(name="cpu", unit="ms of CPU a message", more_is_better=False),
            Figure(name="all_cpu", unit="ms a message, the cache's too", more_is_better=False),
        ],
        contenders=contenders,
        missing=missing,
        targets=[
            Target(figure="cpu", contender=REUSED, against=CLEAR, at_most=1.9),
            Target(figure="cpu", contender=FULL, against=AIOSMTPLIB, at_most=1.0),
            Target(figure="cpu", contender=SHARED, against=FULL, at_most=0.6),
            Target(figure="cpu", contender=REUSED, against=FULL, at_most=0.2),
        ],
        base=NEW,
    )


def turn(name: str, load: Load) -> Mapping[str, float]:
    """One turn of a contender in one process. Raises LoadError."""
    count = load.count if name in MANY else load.connections
    with OurSink("starttls") as sink:
        cost = _run(name, sink, load, count)
        made = sink.connections()
    if made != (load.sessions if name in MANY else count):
        raise LoadError(f"{name}: {made} connections brought {count} messages")
    each = cost["cpu"] / count * 1000
    return {"cpu": each, "all_cpu": each, "seconds": cost["seconds"]}


def shared_turn(load: Load) -> Mapping[str, float]:
    """One turn over connections that another process holds. Raises LoadError."""
    with (
        OurSink("starttls") as sink,
        our_cache(TTL) as (cache, daemon),
        _lender(sink, load, cache) as lender,
    ):
        before = cpu_seconds(lender), cpu_seconds(daemon)
        cost = _run("share", sink, load, load.shared, str(cache))
        held, cached = (
            (cpu_seconds(pid) - cpu) / load.shared * 1000
            for pid, cpu in zip((lender, daemon), before, strict=True)
        )
        made = sink.connections()
    if made != load.sessions:
        raise LoadError(f"{made} connections were made, and {load.sessions} shared")
    used = cost["cpu"] / load.shared * 1000
    return {
        "cpu": used + held,
        "all_cpu": used + held + cached,
        "seconds": cost["seconds"],
        "user_cpu": used,
        "holder_cpu": held,
        "cache_cpu": cached,
    }


def _run(name: str, sink: OurSink, load: Load, count: int, *more: str) -> dict[str, float]:
    """What a loop has cost. Raises LoadError: it failed, or not all messages arrived."""
    before = sink.count()
    done = subprocess.run(
        _command(name, sink, load, count, *more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode or (taken := sink.count() - before) < count:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise LoadError(f"{name}: {said or f'{taken} of {count} messages arrived'}")
    cost: dict[str, float] = json.loads(done.stdout)
    return cost


@contextmanager
def _lender(sink: OurSink, load: Load, cache: Path) -> Iterator[int]:
    """A process that holds connections while the block runs: its id. Raises LoadError."""
    process = subprocess.Popen(
        _command("lend", sink, load, load.sessions, str(cache)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != LENT.encode():
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()[-1:]
            raise LoadError(f"connections could not be lent: {said}")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def _command(name: str, sink: OurSink, load: Load, count: int, *more: str) -> list[str]:
    numbers = (sink.port, count, load.sessions, load.size)
    return [sys.executable, "-m", "bench.tls_loops", name, *map(str, numbers), *more]
