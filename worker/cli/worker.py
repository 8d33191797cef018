"""`postrio worker`: one worker process. `postrio run` starts it; people only to debug one."""

import os
import random
import socket
import time
from pathlib import Path

import click
import trio

from worker.cli.daemon import ProcessLog, calm_collector, raise_descriptor_limit
from worker.cli.exits import CommandError
from worker.cli.options import ConfigChoice, config_choice, configured
from worker.cli.preload import preload
from worker.cli.rights import (
    borrowed,
    check_jail,
    enter_jail,
    find_account,
    inside,
    require_root,
)
from worker.config.config import Config
from worker.config.table_files import keep_out_of_sight
from worker.delivery.environment import Environment
from worker.environment import make_environment
from worker.pool.cache_command import cache_socket
from worker.pool.privacy import keep_memory_private
from worker.pool.watchdog import Watchdog
from worker.pool.worker import inherited_listener, run_worker
from worker.status.events import Noted
from worker.status.sinks import LogFormat
from worker.tls.holder import Holder

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
@click.option("--user", metavar="NAME", help="Become this user; with --chroot.")
@click.option("--chroot", type=click.Path(path_type=Path), metavar="DIR", help="See only this.")
@configured
@click.pass_context
def command(
    context: click.Context,
    listen_fd: int,
    log_format: str,
    user: str | None,
    chroot: Path | None,
    *,
    syslog: bool,
) -> int:
    """Deliver for a queue process that passes a listening socket."""
    choice = config_choice(context)
    if (user is None) != (chroot is None):
        raise click.UsageError("--user and --chroot go together")
    try:
        listener = inherited_listener(listen_fd)
    except OSError as exc:
        raise CommandError(f"--listen-fd: {exc}", os.EX_USAGE) from exc
    raise_descriptor_limit()
    if user is None or chroot is None:
        process = _Process(choice, choice.load(), LogFormat(log_format), syslog=syslog)
    else:
        process = _jailed(choice, LogFormat(log_format), user, chroot, syslog=syslog)
    calm_collector()
    try:
        trio.run(process.run, listener)
    finally:
        listener.close()
        process.log.writer.close()
    return os.EX_OK


def _jailed(
    choice: ConfigChoice, log_format: LogFormat, user: str, jail: Path, *, syslog: bool
) -> "_Process":
    """A worker that has read everything, with the user's rights, and is in the jail."""
    account = find_account(user)
    require_root("--chroot")
    check_jail(jail, account)
    with borrowed(account):
        process = _Process(choice, choice.load(), log_format, syslog=syslog, jail=jail)
        preload()
        # Also opens the system's log, which is not to be found later.
        process.log.writer.write_through(Noted(f"worker goes into {jail} as {user}"))
    enter_jail(jail, account)
    for file in keep_out_of_sight():
        text = f"{file} is outside the jail: its contents count as they were read, until SIGHUP"
        process.log.writer.write_through(Noted(text))
    return process


class _Process:
    """Log, watchdog and environment of this process under the configuration in force."""

    def __init__(
        self,
        choice: ConfigChoice,
        config: Config,
        log_format: LogFormat,
        *,
        syslog: bool,
        jail: Path | None = None,
    ) -> None:
        """`jail`: where the process will be. It must not be there yet: all files are opened now."""
        self._choice = choice
        self._jail = jail
        self._config = config
        self.log = ProcessLog(config, log_format, syslog=syslog)
        self._watchdog = Watchdog(config.seconds("daemon_timeout"), self.log.writer.write_through)
        self._holder = Holder(self.log.writer.emit)
        self._environment: Environment | None = self._make(config)

    def _make(self, config: Config) -> Environment:
        cache, sockets = cache_socket(config), None
        if self._jail is not None:  # sockets are looked for later, and under their names there
            cache = None if cache is None else inside(self._jail, cache)
            sockets = inside(self._jail, Path(config.text("queue_directory")))
        return make_environment(
            config,
            self.log.writer.emit,
            time.time,
            random.Random(),
            cache_socket=cache,
            socket_directory=sockets,
            holder=self._holder,
        )

    def _load(self) -> Environment:
        """The environment that was made at the start; later ones are read anew."""
        first, self._environment = self._environment, None
        if first is not None:
            return first
        config = self._choice.load()
        environment = self._make(config)
        try:
            self.log.reopen(config)
        except BaseException:
            environment.close()
            raise
        self._watchdog.limit = config.seconds("daemon_timeout")
        return environment

    async def run(self, listener: socket.socket) -> None:
        """Serve slots until told to stop."""
        keep_memory_private()  # keys of TLS connections will be in it
        emit = self.log.writer.emit
        async with trio.open_nursery() as nursery:
            await nursery.start(self.log.writer.run)
            nursery.start_soon(self._watchdog.run)
            stop_limit = self._config.seconds("postrio_shutdown_timeout")
            await run_worker(listener, self._load, emit, stop_limit=stop_limit, holder=self._holder)
            emit(Noted(f"worker process: {self._watchdog.lateness}"))
            nursery.cancel_scope.cancel()
