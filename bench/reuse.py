"""Figures of reuse: transactions for each round trip of a session, and what a second worker brings.

Answers for what is measured and against what; how a queue is drained is in `drain.py`. What each
figure shows and what it does not is in README.md, and belongs beside the figure wherever it is
quoted. Needs root and Debian's package postfix, except `latency --no-postfix`.

Run it: `python -m bench.reuse latency|workers`.
"""

import os
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import click

from bench.drain import (
    POSTFIX,
    POSTFIX_PLAIN,
    POSTRIO,
    SMTP_SOURCE,
    UNCACHED,
    Drained,
    Load,
    drain_postfix,
    drain_postrio,
)
from bench.load import LoadError, destinations, interleaved, paired_ratios, ratio_table
from bench.postfix_instance import PostfixError
from bench.postrio_instance import PostrioError
from bench.sink_process import CountingSink, FarSink, SinkProcess

RTT: Final = 0.05  # seconds
SMALL: Final = 4096  # octets
LARGE: Final = 1_000_000  # octets
FARTHER: Final = 0.15  # seconds of a round trip: far enough that slots, not processors, are few
FAR_SLOTS: Final = 50  # for one worker process: the limit of the set-up with far servers
DISTURBED: Final = 0.1  # processors taken by others from which a turn says little
ONE_SESSION: Final[Mapping[str, str]] = {
    "initial_destination_concurrency": "1",
    "default_destination_concurrency_limit": "1",
}

# --- one session, far away -----------------------------------------------------------------------


def latency(count: int, repeats: int, *, postfix: bool) -> None:
    """Print how many messages one busy session takes in the time of a round trip."""

    def against(side: Callable[[SinkProcess, Load], Drained]) -> float:
        with FarSink(RTT) as sink:
            routes = destinations(1, sink.port)
            drained = side(sink, Load(count=count, size=SMALL, routes=routes))
            click.echo(f"    {sink.connections()} connections for {count} messages")
        return drained.rate * RTT

    contenders = {POSTRIO: partial(against, partial(drain_postrio, main_cf=ONE_SESSION))}
    if postfix:
        plain = {**ONE_SESSION, **UNCACHED}
        contenders = {
            POSTFIX: partial(against, partial(drain_postfix, main_cf=ONE_SESSION)),
            POSTFIX_PLAIN: partial(against, partial(drain_postfix, main_cf=plain)),
            **contenders,
        }
    click.echo(
        f"{count} messages of {SMALL} octets for one destination {RTT * 1000:.0f} ms away, "
        "one connection at a time"
    )
    figures = interleaved(contenders, repeats, click.echo)
    click.echo(ratio_table(figures, "messages per round trip", next(iter(contenders))))


# --- one worker process and two ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """What is drained, and into what."""

    title: str
    count: int
    size: int
    sink: Callable[[], SinkProcess]
    main_cf: Mapping[str, str] = field(default_factory=dict)


SET_UPS: Final[Mapping[str, SetUp]] = {
    "small": SetUp(
        title="small messages, a sink that costs little: the processors are the limit",
        count=10_000,
        size=SMALL,
        sink=CountingSink,
    ),
    "large": SetUp(
        title="large messages, a sink that costs little: the processors are the limit",
        count=400,
        size=LARGE,
        sink=CountingSink,
    ),
    "far": SetUp(
        title=f"servers {FARTHER * 1000:.0f} ms away, {FAR_SLOTS} slots for a worker process: "
        "its slots are the limit",
        count=4000,
        size=SMALL,
        sink=partial(FarSink, FARTHER),
        main_cf={"postrio_slot_limit": str(FAR_SLOTS)},
    ),
}


def workers(names: Sequence[str], domains: int, repeats: int) -> None:
    """Print how much faster two worker processes are than one, set-up by set-up."""
    for name in names:
        set_up = SET_UPS[name]
        runs: dict[str, list[Drained]] = {"one worker": [], "two workers": []}

        def drained(into: list[Drained], processes: int, set_up: SetUp = set_up) -> float:
            own = {"postrio_worker_processes": str(processes)}
            with set_up.sink() as sink:
                load = Load(
                    count=set_up.count, size=set_up.size, routes=destinations(domains, sink.port)
                )
                into.append(drain_postrio(sink, load, {**set_up.main_cf, **own}))
            click.echo(
                f"    others took {max(0.0, into[-1].others):.1f} of {os.cpu_count()} processors"
            )
            return into[-1].rate

        click.echo(f"{name}: {set_up.title}")
        click.echo(f"{set_up.count} messages of {set_up.size} octets for {domains} destinations")
        contenders = {
            label: partial(drained, into, number)
            for number, (label, into) in enumerate(runs.items(), start=1)
        }
        figures = interleaved(contenders, repeats, click.echo)
        click.echo(ratio_table(figures, "messages/s", "one worker"))
        click.echo(ratio_in_words(runs["two workers"], runs["one worker"]))
        click.echo("\n".join(f"{label}: {cost(run)}" for label, run in runs.items()))


def ratio_in_words(over: Sequence[Drained], under: Sequence[Drained]) -> str:
    """The ratio turn by turn, of all turns and of those in which others left us alone."""
    turns = list(zip(over, under, strict=True))
    undisturbed = [turn for turn in turns if max(run.others for run in turn) < DISTURBED]
    lines = []
    for title, kept in (("all", turns), ("undisturbed", undisturbed)):
        ratios = paired_ratios([two.rate for two, _ in kept], [one.rate for _, one in kept])
        said = "no figure"
        if ratios:
            said = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(f"two / one, median of {len(kept)} {title} turns: {said}")
    return "\n".join(lines)


def cost(runs: Sequence[Drained]) -> str:
    """CPU of each process per message, and of all together: medians, in words."""
    names = dict.fromkeys(name for run in runs for name in run.cpu)
    columns = {
        name: statistics.median(run.cpu[name] for run in runs if name in run.cpu) for name in names
    }
    columns["sink"] = statistics.median(run.sink_cpu for run in runs)
    # ms per message times messages/s: thousandths of a processor.
    busy = statistics.median(
        (sum(run.cpu.values()) + run.sink_cpu) * run.rate / 1000 for run in runs
    )
    each = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in columns.items())
    return f"CPU ms per message: {each}; all together {busy:.2f} of {os.cpu_count()} processors"


# --- the command ---------------------------------------------------------------------------------


def _leave(number: int, _frame: FrameType | None) -> None:
    """End in good order, so that every peer is stopped and every directory removed."""
    raise SystemExit(128 + number)


AT_LEAST_ONE: Final = click.IntRange(1)


@click.command()
@click.argument("scenario", type=click.Choice(["latency", "workers"]))
@click.option("--count", type=AT_LEAST_ONE, default=100, show_default=True, help="(latency)")
@click.option("--postfix/--no-postfix", default=True, help="Compare with it (latency).")
@click.option(
    "--set-up",
    "names",
    multiple=True,
    type=click.Choice([*SET_UPS]),
    default=[*SET_UPS],
    show_default=True,
    help="What to drain (workers); may be given several times.",
)
@click.option(
    "--destinations", "domains", type=AT_LEAST_ONE, default=50, show_default=True, help="(workers)"
)
@click.option("--repeats", type=AT_LEAST_ONE, default=3, show_default=True)
def main(
    scenario: str, count: int, names: Sequence[str], domains: int, repeats: int, *, postfix: bool
) -> None:
    """How well sessions and worker processes are used."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    click.echo(
        f"{os.cpu_count()} processors, load before the start {os.getloadavg()[0]:.1f}, "
        f"Python {sys.version.split()[0]}"
    )
    if not Path(SMTP_SOURCE).exists() and (postfix or scenario == "workers"):
        click.echo("reuse: install the Debian package postfix", err=True)
        sys.exit(os.EX_UNAVAILABLE)
    try:
        if scenario == "latency":
            latency(count, repeats, postfix=postfix)
        else:
            workers(names, domains, repeats)
    except (LoadError, PostfixError, PostrioError) as exc:
        click.echo(f"reuse: {exc}", err=True)
        sys.exit(os.EX_SOFTWARE)


if __name__ == "__main__":
    main()
