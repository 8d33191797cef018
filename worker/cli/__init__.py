"""The commands: `postrio` (`main`) and `postrio-sendmail` (`sendmail.py`). One module for each.

Modules of commands are loaded when their command is called: `postrio send` must not pay for the
resolver. Others may add commands by the entry point group `postrio.commands`, as `bench` does,
which we may not import. How commands end is in `exits.py`, what all of them take in `options.py`.
"""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Final, NoReturn

import click

from worker.cli.exits import run_command
from worker.cli.options import configured

# Command -> module with a `command`, and its line of help (so that --help loads no module).
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "run": ("worker.cli.run", "Run the queue and its worker processes."),
    "send": ("worker.cli.send", "Put a message on the queue."),
    "queue": ("worker.cli.queue", "Look at the queue, and change what is in it."),
    "deliver": ("worker.cli.deliver", "Deliver one message now, without a queue."),
    "config": ("worker.cli.config", "Show parameters, as postconf."),
    "table": ("worker.cli.table", "Ask lookup tables, as postmap -q."),
    "check": ("worker.cli.check", "Say what is wrong with configuration and queue."),
    "scache": ("worker.cli.scache", "Keep idle connections: the connection cache daemon."),
    "worker": ("worker.cli.worker", "Deliver for a queue process; started by `run`."),
}
# Entry points with more of these pairs: name = "package:COMMAND".
MORE_COMMANDS: Final = "postrio.commands"


@cache
def commands() -> Mapping[str, tuple[str, str]]:
    """All commands: ours, and those that installed packages add. None takes the place of ours."""
    found = dict(COMMANDS)
    for entry in sorted(entry_points(group=MORE_COMMANDS), key=lambda entry: entry.name):
        # A package that is broken or half removed must not keep anybody from the other commands:
        # loading runs code of its own, which may raise anything and return anything.
        with suppress(Exception):
            match entry.load():
                case (str(module), str(text)):
                    found.setdefault(entry.name, (module, text))
    return found


class LazyGroup(click.Group):
    """A group whose commands are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order that a reader meets them."""
        del ctx
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded; None: there is none of that name."""
        del ctx
        # Ours first: whoever calls one of them does not pay for a look at all installed packages.
        known = COMMANDS if cmd_name in COMMANDS else commands()
        if cmd_name not in known:
            return None
        command = importlib.import_module(known[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in --help, from the table alone."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in commands().items()])


def program_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("postrio")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'postrio COMMAND --help' explains a command.",
)
@click.version_option(program_version(), prog_name="postrio", message="%(prog)s %(version)s")
@configured
def postrio() -> None:
    """Postfix's SMTP and LMTP delivery client, with a queue of its own."""


def invoke(arguments: Sequence[str]) -> int | None:
    """Run `postrio` with these arguments; returns the exit status or raises."""
    status = postrio.main(list(arguments), prog_name="postrio", standalone_mode=False)
    return status if isinstance(status, int) else None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command `postrio`: runs and ends the process."""
    run_command("postrio", invoke, arguments)
