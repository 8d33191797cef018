"""First figures: draining a queue, taking in messages, starting with a long queue.

Answers for what is measured and against what; the parts are in `load.py`, the peers in
`postfix_instance.py` and `postrio_instance.py`. Figures depend on the machine: quote ratios of one
run. Needs root and Debian's package postfix, except `submit --no-postfix` and `start`.

Run it: `python -m bench.first drain|submit|start`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import click
import trio

from bench.load import (
    CountingSink,
    LoadError,
    destinations,
    interleaved,
    peak_memory,
    ratio_table,
    resident_memory,
    session_cpu,
)
from bench.postfix_instance import PostfixError, PostfixInstance
from bench.postrio_instance import (
    PostrioError,
    PostrioInstance,
    fill_queue,
    submit_concurrently,
)

DRAIN_LIMIT: Final = 300.0  # seconds
SETTLE: Final = 5.0  # seconds between start and the look at memory: the active set is full then
QMGR: Final = "qmgr unix n - n 300 1 qmgr"
SMTP_SOURCE: Final = "/usr/sbin/smtp-source"
POSTFIX: Final = "Postfix, default"
POSTFIX_PLAIN: Final = "Postfix, without connection cache"
POSTRIO: Final = "postrio"


# --- the peers -----------------------------------------------------------------------------------


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


def drain_postfix(
    sink: CountingSink, count: int, routes: dict[str, str], size: int, *, cache: bool
) -> float:
    """Messages per second of Postfix: filled with no queue manager, then started with one."""
    postfix = PostfixInstance(
        main_cf={
            "in_flow_delay": "0",  # or cleanup(8) waits for the queue manager that is not there
            "maillog_file": "",  # as on a Debian system without a log daemon: no cost of logging
            "smtp_connection_cache_on_demand": "yes" if cache else "no",
        },
        master_cf=[f"#{QMGR}"],
    )
    table = postfix.directory / "transport"
    table.write_text("".join(f"{domain} {route}\n" for domain, route in routes.items()))
    table.chmod(0o644)
    postfix.configure({"transport_maps": f"texthash:{table}"})
    with postfix:
        fill_postfix(postfix, count, list(routes), size)
        postfix.stop()
        if (queued := postfix.queued("incoming")) != count:
            raise LoadError(f"Postfix has {queued} of {count} messages in its queue")
        postfix.configure(master_cf=[QMGR])
        took = sink.time_of(count, DRAIN_LIMIT, begin=postfix.start)
        postfix.wait_until_drained(DRAIN_LIMIT)
        _say_cpu(postfix.pid, count)
        return count / took


def drain_postrio(sink: CountingSink, count: int, routes: dict[str, str], size: int) -> float:
    """Messages per second of postrio: the queue is filled, then `postrio run` is started."""
    table = ", ".join(f"{domain}={route}" for domain, route in routes.items())
    postrio = PostrioInstance(main_cf={"transport_maps": f"inline:{{ {table} }}"})
    try:
        trio.run(fill_queue, postrio.queue_directory, count, list(routes), size)
        took = sink.time_of(count, DRAIN_LIMIT, begin=postrio.start)
        deadline = time.monotonic() + DRAIN_LIMIT
        while (gone := postrio.removed()) < count:
            if time.monotonic() > deadline:
                raise LoadError(f"only {gone} of {count} messages left postrio's queue")
            time.sleep(0.1)
        _say_cpu(postrio.pid, count)
        return count / took
    finally:
        postrio.stop()
        postrio.remove()


def _say_cpu(leader: int, count: int) -> None:
    each = session_cpu(leader) / count * 1000
    click.echo(f"    {each:.2f} ms CPU per message, start-up included")


# --- the scenarios -------------------------------------------------------------------------------


def drain(count: int, domains: int, size: int, repeats: int, *, postfix: bool) -> None:
    """Print how fast a full queue is delivered, side by side."""

    def against(measure: Callable[[CountingSink, dict[str, str]], float]) -> float:
        with CountingSink() as sink:  # a new one each time: nobody inherits its connections
            return measure(sink, destinations(domains, sink.port))

    contenders = {
        POSTRIO: partial(against, lambda sink, to: drain_postrio(sink, count, to, size)),
    }
    if postfix:
        contenders = {
            POSTFIX: partial(
                against, lambda sink, to: drain_postfix(sink, count, to, size, cache=True)
            ),
            POSTFIX_PLAIN: partial(
                against, lambda sink, to: drain_postfix(sink, count, to, size, cache=False)
            ),
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
        quiet = {"maillog_file": "", "in_flow_delay": "0"}
        with PostfixInstance(main_cf=quiet, master_cf=[f"#{QMGR}"]) as peer:
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
        table = ", ".join(f"{domain}={route}" for domain, route in routes.items())
        postrio = PostrioInstance(main_cf={"transport_maps": f"inline:{{ {table} }}"})
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


SCENARIOS: Final = ("drain", "submit", "start")


@click.command()
@click.argument("scenario", type=click.Choice(SCENARIOS))
@click.option("--count", type=click.IntRange(1), help="Messages [5000; start: 100000].")
@click.option("--destinations", "domains", default=50, show_default=True)
@click.option("--size", default=4096, show_default=True, help="Octets of one message.")
@click.option("--submitters", default=20, show_default=True)
@click.option("--repeats", default=3, show_default=True)
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
