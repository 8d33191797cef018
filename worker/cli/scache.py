"""`postrio scache`: the connection cache daemon, with main.cf for its defaults.

Translates and executes: the daemon is `python -m scache`, which takes every option given here.
"""

import os
import sys
from typing import NoReturn

import click

from worker.cli.exits import CommandError
from worker.cli.options import config_choice, configured
from worker.pool.cache_command import cache_command, cache_socket

EPILOG = """\b
Examples:
  postrio scache
  postrio scache --user postrio --syslog
  postrio scache --status

\b
What main.cf says of the cache are the defaults; 'python -m scache --help' lists
the options. SIGTERM: QUIT to what is held, statistics, end. SIGHUP: statistics,
and a new log file where the old one was renamed.
"""


@click.command(
    epilog=EPILOG,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]...")
@configured
@click.pass_context
def command(context: click.Context, options: tuple[str, ...]) -> NoReturn:
    """Keep idle connections for whoever delivers next: Postfix's scache(8)."""
    config = config_choice(context).load_without_tables()
    if cache_socket(config) is None and not options:
        raise CommandError(
            "connection_cache_service_name is empty: name a socket, or give --socket", os.EX_CONFIG
        )
    arguments = cache_command(config, options)
    sys.stdout.flush()
    try:
        os.execv(arguments[0], arguments)  # this process becomes the daemon: pid and all
    except OSError as exc:
        raise CommandError(f"cannot run {arguments[0]}: {exc.strerror}", os.EX_OSERR) from exc
