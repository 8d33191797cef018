"""`python -m scache`: options, start-up in the order that rights demand, exit statuses.

`postrio scache` reads main.cf and executes this with explicit options; nothing here knows main.cf.
"""

import gc
import os
import signal
import socket
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import trio

from scache.daemon import DaemonSettings, run_daemon
from scache.listening import (
    NoListener,
    Owners,
    UnsafePath,
    inherited_socket,
    open_socket,
    passed_socket,
    removed_at_end,
)
from scache.log import FACILITIES, LogSettings, open_log
from scache.report import NoReport, ask_report, report_table
from scache.rights import User, borrowed, connections_that_fit, find_user, give_up_rights
from scache.server import ServerSettings, log
from scache.store import StoreLimits

DEBUG_VARIABLE: Final = "POSTRIO_DEBUG"  # as for `postrio --debug`
COLLECT_AFTER: Final = 50_000  # container objects made and not freed since the last collection

EPILOG: Final = """\b
One of --socket, --listen-fd and systemd's socket activation says where clients
come to. SIGTERM and SIGINT: QUIT to what is held, statistics, end. SIGHUP:
statistics, a new log file where the old one was renamed.
"""


class StartError(Exception):
    """The daemon cannot start: why, for people, and its sysexits.h status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def _user(_: click.Context, __: click.Parameter, name: str | None) -> User | None:
    """The account that an option names."""
    if name is None:
        return None
    try:
        return find_user(name)
    except LookupError as exc:
        raise click.BadParameter(str(exc)) from exc


def _users(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> list[User | None]:
    """The accounts that an option names."""
    return [_user(context, parameter, name) for name in names]


_PATH: Final = click.Path(path_type=Path)
_POSITIVE: Final = click.IntRange(1, 0x7FFF_FFFF)
_SECONDS: Final = click.FloatRange(0.0, 1e9, min_open=True)


@click.command(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--socket", "path", type=_PATH, metavar="PATH", help="Listen here.")
@click.option("--listen-fd", type=click.IntRange(0), metavar="N", help="Inherited socket.")
@click.option("--ttl-limit", type=_POSITIVE, default=2, show_default=True, help="Seconds.")
@click.option("--protocol-timeout", type=_SECONDS, default=5.0, show_default=True, help="Seconds.")
@click.option("--status-update-time", type=_SECONDS, default=600.0, show_default=True)
@click.option("--connection-limit", type=_POSITIVE, default=2000, show_default=True)
@click.option("--endpoint-limit", type=_POSITIVE, default=100, show_default=True)
@click.option("--clients", type=_POSITIVE, default=1000, show_default=True)
@click.option("--trust", metavar="USER", multiple=True, callback=_users, help="May be a client.")
@click.option("--user", metavar="USER", callback=_user, help="Run as this user.")
@click.option("--chroot", type=_PATH, metavar="DIR", help="Run in this directory.")
@click.option("--syslog", is_flag=True, help="Log to the system's log, not standard error.")
@click.option("--syslog-name", default="postfix", show_default=True)
@click.option("--syslog-facility", type=click.Choice(FACILITIES), default="mail")
@click.option("--log-file", type=_PATH, metavar="PATH", help="Log there.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.option("--lifeline", is_flag=True, help="End when standard input ends.")
@click.option("--status", is_flag=True, help="Ask the daemon at --socket what it holds.")
@click.option("--json", "as_json", is_flag=True, help="With --status: for scripts.")
def scache(path: Path | None, *, status: bool, as_json: bool, **options: Any) -> None:
    """Keep idle SMTP and LMTP connections for whoever delivers next: Postfix's scache(8)."""
    if as_json and not status:
        raise click.UsageError("--json goes with --status")
    if status:
        if path is None:
            raise click.UsageError("--status needs --socket")
        report = ask_report(path)
        try:
            click.echo(report if as_json else report_table(report))
        except BrokenPipeError:
            raise
        except OSError as exc:
            text = f"standard output cannot be written: {exc.strerror}"
            raise StartError(text, os.EX_IOERR) from exc
        return
    _serve(path, **options)


def _serve(
    path: Path | None,
    *,
    listen_fd: int | None,
    user: User | None,
    chroot: Path | None,
    trust: list[User],
    syslog_name: str,
    syslog_facility: str,
    log_file: Path | None,
    log_format: str,
    syslog: bool,
    **options: Any,
) -> None:
    """Open what needs rights, give them up, serve until told to stop."""
    owners = Owners(
        user=user,
        trusted=frozenset(account.uid for account in trust),
    )
    settings = LogSettings(
        syslog_name=syslog_name,
        facility=syslog_facility,
        file=log_file,
        syslog=syslog,
        json=log_format == "json",
    )
    try:
        # The user opens it again after a rename, and may have made it a link.
        with borrowed(user):
            handler = open_log(settings)
    except OSError as exc:
        raise StartError(
            f"cannot open the log {log_file}{_as(user)}: {exc.strerror}", os.EX_CANTCREAT
        ) from exc
    listener, left_behind = _listener(path, listen_fd, owners)
    with listener, left_behind:
        try:
            give_up_rights(user, chroot)
        except OSError as exc:
            raise StartError(f"cannot give up rights: {exc}", os.EX_NOPERM) from exc
        daemon = _daemon_settings(owners.trusted | {0, os.geteuid()}, **options)
        handler.start()
        # What a request makes is freed by counting references: the collector finds nothing.
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER, 20, 50)
        try:
            trio.run(run_daemon, listener, daemon)
        finally:
            handler.close()


def _listener(
    path: Path | None, listen_fd: int | None, owners: Owners
) -> tuple[socket.socket, AbstractContextManager[None]]:
    """The socket to serve, and what has to be removed at the end. Raises StartError."""
    try:
        if listen_fd is not None:
            return inherited_socket(listen_fd), nullcontext()
        if (passed := passed_socket(os.environ)) is not None:
            return passed, nullcontext()
        if path is None:
            raise click.UsageError("one of --socket and --listen-fd is needed")
        return open_socket(path, owners), removed_at_end(path)
    except UnsafePath as exc:
        raise StartError(str(exc), os.EX_NOPERM) from exc
    except NoListener as exc:
        raise StartError(str(exc), os.EX_UNAVAILABLE) from exc
    except OSError as exc:
        raise StartError(
            f"cannot listen at {path}{_as(owners.user)}: {exc.strerror}", os.EX_CANTCREAT
        ) from exc


def _as(user: User | None) -> str:
    """Whose rights were not enough, for a complaint."""
    return "" if user is None else f" as {user.name}"


def _daemon_settings(
    trusted: frozenset[int],
    *,
    ttl_limit: int,
    protocol_timeout: float,
    status_update_time: float,
    connection_limit: int,
    endpoint_limit: int,
    clients: int,
    lifeline: bool,
) -> DaemonSettings:
    connections = connections_that_fit(connection_limit, clients)
    if connections < connection_limit:
        log.warning(
            "only %d connections are held, not %d: raise the limit of open files",
            connections,
            connection_limit,
        )
    return DaemonSettings(
        server=ServerSettings(
            trusted=trusted,
            limits=StoreLimits(
                ttl=ttl_limit, connections=connections, endpoint_connections=endpoint_limit
            ),
            protocol_timeout=protocol_timeout,
            clients=clients,
        ),
        status_update_time=status_update_time,
        lifeline=lifeline,
    )


def main() -> NoReturn:
    """Run and end the process; complaints are one line each, never a traceback."""
    try:
        scache.main(standalone_mode=False, prog_name="scache")
    except click.UsageError as exc:
        _end(exc.format_message(), os.EX_USAGE)
    except (StartError, NoReport) as exc:
        _end(str(exc), exc.status if isinstance(exc, StartError) else os.EX_UNAVAILABLE)
    except BrokenPipeError:  # `scache --status | head`: whoever read had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(128 + signal.SIGINT)
    except Exception as exc:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        what = "".join(traceback.format_exception_only(exc)).strip()
        _end(f"internal error: {what} (with {DEBUG_VARIABLE}=1: where)", os.EX_SOFTWARE)
    sys.exit(os.EX_OK)


def _end(text: str, status: int) -> NoReturn:
    click.echo(f"scache: {text}", err=True)
    sys.exit(status)
