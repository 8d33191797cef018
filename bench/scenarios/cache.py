"""Saving connections to a cache and finding them again: our daemon beside the real scache(8).

Clients in one process (`bench/cache_load.py`) save and find as fast as the cache answers, the load
being the same for both. Rates depend on how long a processor takes to wake up, so the daemon's CPU
for each pair is a figure, too.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.cache_load import pairs_per_second, process_cpu
from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.postfix_instance import PostfixInstance, missing_program

POSTRIO: Final = "postrio"
POSTFIX: Final = "Postfix, default"
START_LIMIT: Final = 10.0  # seconds

Cache = Callable[[], AbstractContextManager[tuple[Path, int]]]  # its socket, its process id


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the clients do."""

    pairs: int = 20_000  # of a save and a find, by all of them together
    clients: int = 10  # at a time


QUICK: Final = Load(pairs=500)


def scenario(load: Load) -> Scenario:
    """Our cache and, with Postfix here, scache(8)."""
    caches: Mapping[str, Cache] = {POSTRIO: our_cache, POSTFIX: real_cache}
    why = missing_program()
    missing = {POSTFIX: f"missing: {why}"} if why else {}
    return Scenario(
        name="cache",
        about="clients save a connection and find it again, as fast as the cache answers",
        figures=[
            Figure(name="rate", unit="pairs/s"),
            Figure(name="cpu", unit="ms of the daemon's CPU a pair", more_is_better=False),
        ],
        contenders={
            name: partial(turn, cache, load)
            for name, cache in caches.items()
            if name not in missing
        },
        missing=missing,
        targets=[
            Target(figure="rate", against=POSTFIX, at_least=0.5),
            Target(figure="cpu", at_most=0.15),
        ],
    )


def turn(cache: Cache, load: Load) -> Mapping[str, float]:
    """The load on a daemon of its own. Raises LoadError."""
    with cache() as (path, pid):
        before = process_cpu(pid)
        rate = pairs_per_second(path, load.clients, load.pairs)
        cpu = process_cpu(pid) - before
    return {"rate": rate, "cpu": cpu / load.pairs * 1000}


# --- the daemons ---------------------------------------------------------------------------------


@contextmanager
def our_cache(options: Sequence[str] = ()) -> Iterator[tuple[Path, int]]:
    """Our daemon as a process: its socket and its process id."""
    directory = Path(tempfile.mkdtemp(prefix="scache-"))
    path = directory / "private" / "scache"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scache", *options),
            *("--socket", path, "--log-file", directory / "log"),
        ]
    )
    try:
        deadline = time.monotonic() + START_LIMIT
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LoadError("our cache did not start")
            time.sleep(0.01)
        yield path, process.pid
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def real_cache() -> Iterator[tuple[Path, int]]:
    """The scache(8) of a Postfix instance: its socket and its process id."""
    with PostfixInstance(smtpd=False) as postfix:
        path = postfix.queue_directory / "private" / "scache"
        deadline = time.monotonic() + START_LIMIT
        while not path.exists() and time.monotonic() < deadline:  # master makes them one by one
            time.sleep(0.01)
        pairs_per_second(path, 1, 1)  # master(8) starts it for its first client
        yield path, _child(postfix.pid, "scache")


def _child(parent: int, name: str) -> int:
    """The process id of a child by its program's name. Raises LoadError."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if head.partition("(")[2] == name and int(rest.split()[1]) == parent:
            return int(path.parent.name)
    raise LoadError(f"there is no process {name}")
