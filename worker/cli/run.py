"""`postrio run`: the queue process with its embedded queue, and its worker processes."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import trio

from worker.cli.daemon import ProcessLog, calm_collector, raise_descriptor_limit
from worker.cli.options import config_choice, configured
from worker.cli.rights import (
    ROOT,
    become,
    check_jail,
    find_account,
    make_queue_directory,
    require_root,
)
from worker.config.config import Config
from worker.pool.cache_command import cache_command
from worker.pool.node import Node, run_pool
from worker.pool.starter import Starter
from worker.pool.watchdog import Watchdog
from worker.pool.workers import worker_command
from worker.status.events import Emit, Noted
from worker.status.sinks import LogFormat
from worker.status.writer import fan_out

EPILOG = """\b
Examples:
  postrio run
  postrio run -o queue_directory=/var/tmp/queue -o relayhost='[mail.example.com]'
  postrio run --workers 4 --log-format json

\b
The log goes to maillog_file; where that is empty, to standard error or with
--syslog to the system's log.
SIGTERM and Ctrl-C end it in good order, a second one at once. SIGHUP has it read
the configuration again and reopen its log.
"""


@click.command(epilog=EPILOG)
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes.")
@click.option(
    "--log-format",
    type=click.Choice([item.value for item in LogFormat]),
    default=LogFormat.TEXT.value,
    help="Postfix's lines (text), or one object for each event (json).",
)
@click.option("--syslog", is_flag=True, help="Log to the system's log, not standard error.")
@click.option("--user", metavar="NAME", help="Run as this user; for root.")
@click.option(
    "--chroot",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Workers see only this directory; with --user.",
)
@click.option("--live", is_flag=True, help="Show deliveries as a table, if on a terminal.")
@configured
@click.pass_context
def command(
    context: click.Context,
    workers: int | None,
    log_format: str,
    user: str | None,
    chroot: Path | None,
    *,
    syslog: bool,
    live: bool,
) -> int:
    """Run the queue and its worker processes until told to stop."""
    # A reload must not end us before the node listens to it; all is read anew after that.
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    choice = config_choice(context)
    live = live and sys.stderr.isatty()
    config = choice.load()
    if live and not config.text("maillog_file"):
        choice.overrides.append("maillog_file=/dev/null")  # the screen is the table's
        config = choice.load()
    logging = ["--log-format", log_format, *(["--syslog"] if syslog else [])]
    arguments = [*choice.arguments(), *logging]
    starter = _give_up_rights(config, user, chroot, arguments)
    raise_descriptor_limit()
    calm_collector()
    log = ProcessLog(config, LogFormat(log_format), syslog=syslog)
    watchdog = Watchdog(config.seconds("daemon_timeout"), log.writer.write_through)
    count = workers or config.integer("postrio_worker_processes") or os.cpu_count() or 1

    def follow(reloaded: Config) -> None:
        log.reopen(reloaded)
        watchdog.limit = reloaded.seconds("daemon_timeout")

    def node(emit: Emit) -> Node:
        return Node(
            load=choice.load,
            arguments=arguments,
            cache=partial(cache_command, options=["--lifeline", *logging]),
            emit=emit,
            wall=time.time,
            follow=follow,
            start_worker=starter,
        )

    try:
        trio.run(_run_live if live else _run, log, watchdog, node, count)
    finally:
        log.writer.close()
        if starter is not None:
            starter.close()
    return os.EX_OK


def _give_up_rights(
    config: Config, user: str | None, chroot: Path | None, arguments: Sequence[str]
) -> Starter | None:
    """Be `user` from now on; with `chroot` there is a starter that is not. Raises CommandError."""
    if user is None:
        if chroot is not None:
            raise click.UsageError("--chroot needs --user: root can leave a jail")
        return None
    account = find_account(user)
    if chroot is not None:
        require_root("--chroot")
        check_jail(chroot, account)
    starter = None
    if os.geteuid() == ROOT:
        make_queue_directory(Path(config.text("queue_directory")), account)
        if chroot is not None:
            jail = ["--user", user, "--chroot", str(chroot)]
            starter = Starter(worker_command([*arguments, *jail]))
    become(account)
    return starter


MakeNode = Callable[[Emit], Node]


async def _run(log: ProcessLog, watchdog: Watchdog, node: MakeNode, workers: int) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(log.writer.run)
        nursery.start_soon(watchdog.run)
        await run_pool(node(log.writer.emit), workers)
        log.writer.emit(Noted(f"queue process: {watchdog.lateness}"))
        nursery.cancel_scope.cancel()


async def _run_live(log: ProcessLog, watchdog: Watchdog, node: MakeNode, workers: int) -> None:
    from worker.status.live import Deliveries, show_live  # rich, only when asked

    deliveries = Deliveries()
    async with trio.open_nursery() as nursery:
        await nursery.start(log.writer.run)
        nursery.start_soon(watchdog.run)
        await nursery.start(show_live, deliveries)
        await run_pool(node(fan_out(log.writer.emit, deliveries.emit)), workers)
        log.writer.emit(Noted(f"queue process: {watchdog.lateness}"))
        nursery.cancel_scope.cancel()
