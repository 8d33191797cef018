"""First figures: draining a queue, taking in messages, starting with a long queue.

Answers for what is measured and against what; the parts are in `load.py`, `drain.py` and
`sink_process.py`, the peers in `postfix_instance.py` and `postrio_instance.py`. Figures depend on
the machine: quote ratios of one run. Needs root and Debian's package postfix, except
`submit --no-postfix` and `start`.

Run it: `python -m bench.first drain|submit|start`.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import click
import trio

from bench.drain import (
    NO_QMGR,
    POSTFIX,
    POSTFIX_PLAIN,
    POSTRIO,
    QUIET,
    SMTP_SOURCE,
    UNCACHED,
    Drained,
    Load,
    drain_postfix,
    drain_postrio,
    fill_postfix,
    transport_maps,
)
from bench.load import (
    LoadError,
    destinations,
    interleaved,
    peak_memory,
    ratio_table,
    resident_memory,
)
from bench.postfix_instance import PostfixError, PostfixInstance
from bench.postrio_instance import (
    PostrioError,
    PostrioInstance,
    fill_queue,
    submit_concurrently,
)
from bench.sink_process import CountingSink, SinkProcess

SETTLE: Final = 5.0  # seconds between start and the look at memory: the active set is full then


# --- the scenarios -------------------------------------------------------------------------------


def drain(count: int, domains: int, size: int, repeats: int, *, postfix: bool) -> None:
    """Print how fast a full queue is delivered, side by side."""

    def against(side: Callable[[SinkProcess, Load], Drained]) -> float:
        with CountingSink() as sink:  # a new one each time: nobody inherits its connections
            routes = destinations(domains, sink.port)
            drained = side(sink, Load(count=count, size=size, routes=routes))
        click.echo(f"    {sum(drained.cpu.values()):.2f} ms CPU per message")
        return drained.rate

    contenders = {POSTRIO: partial(against, drain_postrio)}
    if postfix:
        contenders = {
            POSTFIX: partial(against, drain_postfix),
            POSTFIX_PLAIN: partial(against, partial(drain_postfix, main_cf=UNCACHED)),
            **contenders,
        }
    click.echo(f"draining {count} messages of {size} octets for {domains} destinations")
    figures = interleaved(contenders, repeats, click.echo)
    click.echo(ratio_table(figures, "messages/s", POSTFIX if postfix else POSTRIO))


def submit(count: int, submitters: int, size: int, repeats: int, *, postfix: bool) -> None:
    """Print how many messages per second are accepted durably."""
    domains = ["d0.example"]
    held = {"default_transport": "smtp:[127.0.0.1]:9"}  # nobody listens there

    def into_postrio() -> float:
        with PostrioInstance(main_cf=held) as postrio:
            return trio.run(
                submit_concurrently, postrio.queue_directory, count, submitters, domains, size
            )

    def into_postfix() -> float:
        with PostfixInstance(main_cf=QUIET, master_cf=[NO_QMGR]) as peer:
            return fill_postfix(peer, count, domains, size, submitters)

    contenders: dict[str, Callable[[], float]] = {POSTRIO: into_postrio}
    if postfix:
        contenders = {"Postfix smtpd, no delivery": into_postfix, POSTRIO: into_postrio}
    click.echo(f"submitting {count} messages of {size} octets, {submitters} at a time")
    figures = interleaved(contenders, repeats, click.echo)
    click.echo(ratio_table(figures, "messages/s", next(iter(contenders))))


def start(count: int, domains: int, size: int, repeats: int) -> None:
    """Print how long a start with a long queue takes, and the memory of the queue process."""
    with CountingSink() as sink:
        routes = destinations(domains, sink.port)
        postrio = PostrioInstance(main_cf={"transport_maps": transport_maps(routes)})
        try:
            click.echo(f"filling a queue with {count} messages")
            trio.run(fill_queue, postrio.queue_directory, count, list(routes), size)
            for turn in range(repeats):
                took = postrio.start()
                time.sleep(SETTLE)
                resident, peak = resident_memory(postrio.pid), peak_memory(postrio.pid)
                postrio.stop()
                click.echo(
                    f"  {turn + 1}/{repeats} start {took:.2f} s, queue process resident "
                    f"{resident / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, "
                    f"delivered meanwhile {sink.count()}"
                )
        finally:
            postrio.stop()
            postrio.remove()


# --- the command ---------------------------------------------------------------------------------


def _leave(number: int, _frame: FrameType | None) -> None:
    """End in good order, so that every peer is stopped and every directory removed."""
    raise SystemExit(128 + number)


AT_LEAST_ONE: Final = click.IntRange(1)
SCENARIOS: Final = ("drain", "submit", "start")


@click.command()
@click.argument("scenario", type=click.Choice(SCENARIOS))
@click.option("--count", type=AT_LEAST_ONE, help="Messages [5000; start: 100000].")
@click.option("--destinations", "domains", type=AT_LEAST_ONE, default=50, show_default=True)
@click.option(
    "--size", type=AT_LEAST_ONE, default=4096, show_default=True, help="Octets of one message."
)
@click.option("--submitters", type=AT_LEAST_ONE, default=20, show_default=True)
@click.option("--repeats", type=AT_LEAST_ONE, default=3, show_default=True)
@click.option("--postfix/--no-postfix", default=True, show_default=True, help="Compare with it.")
def main(
    scenario: str,
    count: int | None,
    domains: int,
    size: int,
    submitters: int,
    repeats: int,
    *,
    postfix: bool,
) -> None:
    """First figures of postrio, against Debian's Postfix where there is something to compare."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    click.echo(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}")
    if not Path(SMTP_SOURCE).exists() and (postfix or scenario != "submit"):
        click.echo("first: install the Debian package postfix", err=True)
        sys.exit(os.EX_UNAVAILABLE)
    try:
        match scenario:
            case "drain":
                drain(count or 5000, domains, size, repeats, postfix=postfix)
            case "submit":
                submit(count or 5000, submitters, size, repeats, postfix=postfix)
            case _:
                start(count or 100_000, domains, size, repeats)
    except (LoadError, PostfixError, PostrioError) as exc:
        click.echo(f"first: {exc}", err=True)
        sys.exit(os.EX_SOFTWARE)


if __name__ == "__main__":
    main()
