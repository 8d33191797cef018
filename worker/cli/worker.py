"""`postrio worker`: one worker process. `postrio run` starts it; people only to debug one."""

import os
import random
import time

import click
import trio

from worker.cli.daemon import ProcessLog, calm_collector, raise_descriptor_limit
from worker.cli.exits import CommandError
from worker.cli.options import config_choice, configured
from worker.delivery.deliver import Environment
from worker.environment import make_environment
from worker.status.sinks import LogFormat
from worker.watchdog import Watchdog
from worker.worker import inherited_listener, run_worker

EPILOG = """\b
The queue process listens on a UNIX socket and passes it; every connection to it
is one slot: delivery requests in, results out. Standard input is the lifeline:
when it ends, the queue process is gone, and so is the worker.
SIGTERM: finish what is past DATA. SIGHUP: read the configuration again.
"""


@click.command(epilog=EPILOG)
@click.option("--listen-fd", type=click.IntRange(0), required=True, metavar="NUMBER")
@click.option(
    "--log-format",
    type=click.Choice([item.value for item in LogFormat]),
    default=LogFormat.TEXT.value,
)
@click.option("--syslog", is_flag=True, help="Log to the system's log, not standard error.")
@configured
@click.pass_context
def command(context: click.Context, listen_fd: int, log_format: str, *, syslog: bool) -> int:
    """Deliver for a queue process that passes a listening socket."""
    choice = config_choice(context)
    config = choice.load()
    try:
        listener = inherited_listener(listen_fd)
    except OSError as exc:
        raise CommandError(f"--listen-fd: {exc}", os.EX_USAGE) from exc
    raise_descriptor_limit()
    calm_collector()
    log = ProcessLog(config, LogFormat(log_format), syslog=syslog)
    watchdog = Watchdog(config.seconds("daemon_timeout"), log.writer.write_through)
    first = [config]  # the one that was just read serves the first load

    def load() -> Environment:
        current = first.pop() if first else choice.load()
        environment = make_environment(current, log.writer.emit, time.time, random.Random())
        if current is not config:
            log.reopen(current)
            watchdog.limit = current.seconds("daemon_timeout")
        return environment

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(log.writer.run)
            nursery.start_soon(watchdog.run)
            stop_limit = config.seconds("postrio_shutdown_timeout")
            await run_worker(listener, load, log.writer.emit, stop_limit=stop_limit)
            nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    finally:
        listener.close()
        log.writer.close()
    return os.EX_OK
