"""Figures of the connection cache: ours and the real scache(8), side by side in one run.

Ten clients save and find all the time (`cache_load.py`), the load being the same for both. Printed:
pairs of a save and a find per second, and CPU of the daemon for each pair. Needs root and Debian's
package postfix, except with `--no-postfix`.

Run it: `python -m bench.cache`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import click

from bench.cache_load import pairs_per_second, process_cpu
from bench.load import LoadError, interleaved, ratio_table
from bench.postfix_instance import PostfixError, PostfixInstance

OURS: Final = "postrio's scache"
REAL: Final = "Postfix's scache(8)"
START_LIMIT: Final = 10.0  # seconds
TARGET_RATIO: Final = 0.5  # of the real one's rate, at least
TARGET_CPU: Final = 0.15  # ms for each pair, at most


@contextmanager
def our_cache() -> Iterator[tuple[Path, int]]:
    """Our daemon as a process: its socket and its process id."""
    directory = Path(tempfile.mkdtemp(prefix="scache-"))
    path = directory / "private" / "scache"
    process = subprocess.Popen(
        [sys.executable, "-m", "scache", "--socket", path, "--log-file", directory / "log"]
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


def measure(clients: int, pairs: int, repeats: int, *, postfix: bool) -> bool:
    """Print rates and CPU, and return whether both targets are met."""
    cpu: dict[str, list[float]] = {}
    with ExitStack() as stack:
        caches = {REAL: stack.enter_context(real_cache())} if postfix else {}
        caches[OURS] = stack.enter_context(our_cache())

        def against(name: str) -> Callable[[], float]:
            path, pid = caches[name]

            def once() -> float:
                before = process_cpu(pid)
                rate = pairs_per_second(path, clients, pairs)
                cpu.setdefault(name, []).append((process_cpu(pid) - before) / pairs * 1000)
                return rate

            return once

        figures = interleaved({name: against(name) for name in caches}, repeats, click.echo)
    click.echo(ratio_table(figures, "pairs/s", REAL if postfix else OURS))
    for name, values in cpu.items():
        click.echo(f"{name:34} {median(values):8.3f} ms CPU of the daemon for each pair (median)")
    fast = not postfix or median(figures[OURS]) >= TARGET_RATIO * median(figures[REAL])
    return fast and median(cpu[OURS]) <= TARGET_CPU


@click.command()
@click.option("--clients", default=10, show_default=True)
@click.option("--pairs", default=20_000, show_default=True, help="Of a save and a find, each time.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--postfix/--no-postfix", default=True, show_default=True, help="Compare with it.")
def main(clients: int, pairs: int, repeats: int, *, postfix: bool) -> None:
    """Figures of the connection cache, against Debian's Postfix."""
    click.echo(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, {clients} clients")
    try:
        met = measure(clients, pairs, repeats, postfix=postfix)
    except (LoadError, PostfixError) as exc:
        click.echo(f"cache: {exc}", err=True)
        sys.exit(os.EX_SOFTWARE)
    click.echo(
        f"targets (at least {TARGET_RATIO} of the real one's rate, at most {TARGET_CPU} ms):"
        f" {'met' if met else 'missed'}"
    )
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
