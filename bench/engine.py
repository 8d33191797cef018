"""Figures of the delivery engine alone: messages for a second of CPU, beside other SMTP clients.

Reused sessions, messages from memory, no queue, one process for each contender (`engine_loops.py`),
to smtp-sink. CPU is what the figure is about: a rate would mostly tell how much of the machine the
sink has left. Contenders that are not installed are left out, and named.

Run it: `python -m bench.engine`. Needs Debian's package postfix for smtp-sink.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Final

import click

from bench.engine_loops import LOOPS
from bench.load import LoadError, interleaved, paired_ratios, ratio_table
from bench.sink_process import CountingSink

POSTRIO: Final = "postrio"
TARGETS: Final = {"aiosmtplib": 2.5, "smtplib, threads": 1.5, "bare trio loop": 0.5}
PACKAGES: Final = ("postrio", "trio", "aiosmtplib")


def contenders() -> list[str]:
    """Who can be run here; says who cannot."""
    found = []
    for name in LOOPS:
        if name == "aiosmtplib" and find_spec(name) is None:
            click.echo(f"{name} is left out: it is not installed")
        else:
            found.append(name)
    return found


def messages_per_cpu_second(name: str, count: int, sessions: int, size: int) -> float:
    """One turn of one contender, against a sink of its own. Raises LoadError."""
    with CountingSink() as sink:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bench.engine_loops", name),
                *map(str, (sink.port, count, sessions, size)),
            ],
            capture_output=True,
            check=False,
        )
        if done.returncode or (taken := sink.count()) < count:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise LoadError(f"{name} failed: {said or f'{taken} of {count} messages arrived'}")
    cost: dict[str, float] = json.loads(done.stdout)
    return count / cost["cpu"]


def report(figures: dict[str, list[float]]) -> list[str]:
    """The table, and how postrio stands to each of the others, turn by turn."""
    lines = [ratio_table(figures, "messages per CPU second", POSTRIO)]
    for name, target in TARGETS.items():
        if name in figures:
            ratios = paired_ratios(figures[POSTRIO], figures[name])
            lines.append(
                f"postrio / {name}: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}),"
                f" target {target}"
            )
    return lines


def machine() -> dict[str, object]:
    """What the figures were taken with."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": versions,
    }


@click.command()
@click.option("--count", default=10_000, show_default=True, help="Messages in each turn.")
@click.option("--sessions", default=20, show_default=True)
@click.option("--size", default=4096, show_default=True, help="Octets of one message.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every figure there.")
def main(count: int, sessions: int, size: int, repeats: int, path: Path | None) -> None:
    """Messages for a second of CPU, of our engine and of other SMTP clients."""
    click.echo(f"{count} messages of {size} octets over {sessions} sessions, one process each")
    names: Sequence[str] = contenders()
    turns = {name: partial(messages_per_cpu_second, name, count, sessions, size) for name in names}
    try:
        figures = interleaved(turns, repeats, click.echo)
    except LoadError as exc:
        click.echo(f"engine: {exc}", err=True)
        sys.exit(os.EX_SOFTWARE)
    for line in report(figures):
        click.echo(line)
    if path is not None:
        load = {"count": count, "sessions": sessions, "size": size}
        found = {"scenario": "engine", "load": load, "machine": machine(), "figures": figures}
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
