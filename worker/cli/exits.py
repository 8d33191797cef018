"""How commands end: sysexits.h statuses, one line for people, never a traceback unasked.

`run_command` stands around every entry point. Expected failures are exceptions of ours, each with
its status; what nobody expected is one line too, with the traceback behind --debug. An output that
cannot be written is told as such, and a standard error that cannot be written changes no status.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DEBUG_VARIABLE: Final = "POSTRIO_DEBUG"
INTERRUPTED: Final = 128 + signal.SIGINT
CLOSED_PIPE: Final = 128 + signal.SIGPIPE

Entry = Callable[[Sequence[str]], int | None]  # arguments -> exit status


class CommandError(Exception):
    """A command cannot do what it was asked to: why, for people, and its sysexits.h status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class OutputError(CommandError):
    """Standard output takes no more: why, in the system's words."""

    def __init__(self, why: str) -> None:
        super().__init__(f"standard output cannot be written: {why}", os.EX_IOERR)


def run_command(name: str, entry: Entry, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `entry` with the arguments (default: the process's) and end the process.

    `name` begins every line of complaint.
    """
    prepare_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = entry(arguments) or 0
        sys.stdout.flush()
    except BaseException as exc:  # noqa: BLE001  # the last frame of the process: it ends with one
        status = report(name, exc)
    # Not through the interpreter's own flush: a closed pipe would make it complain and exit 120.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, OutputError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


class _Output(FileIO):
    """Standard output, whose failures are told from those of all other files."""

    def write(self, octets: "ReadableBuffer", /) -> int:
        """As of any file. Raises OutputError, and BrokenPipeError where whoever read has gone."""
        try:
            return super().write(octets)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(str(exc.strerror)) from exc


def prepare_streams() -> None:
    """Make standard input, output and error what every command may rely on.

    A descriptor of these that the caller has closed is /dev/null, as for Postfix's commands: else
    the next file that is opened would have its number, and get what is meant for a screen. (For
    reading it stays closed: an empty message is not what was meant.) What the locale has no
    character for is written escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(taken, True)  # noqa: FBT003  # positional only
    if sys.stderr is None:
        sys.stderr = TextIOWrapper(FileIO(os.devnull, "w"), encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = TextIOWrapper(FileIO(os.devnull, "w"), encoding="utf-8")
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.flush()
        sys.stdout = TextIOWrapper(
            BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="backslashreplace" if sys.stdout.errors == "strict" else sys.stdout.errors,
            line_buffering=sys.stdout.line_buffering,
        )


def report(name: str, error: BaseException) -> int:
    """Say on standard error what went wrong, and return the exit status."""
    leaf = first_leaf(error)
    match leaf:
        case SystemExit():
            return leaf.code if isinstance(leaf.code, int) else int(leaf.code is not None)
        case click.exceptions.Exit():
            return leaf.exit_code
        case click.UsageError():
            _report_usage(name, leaf)
            return os.EX_USAGE
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED
        case BrokenPipeError():  # `postrio queue list | head`: whoever read had enough
            return CLOSED_PIPE
        case click.ClickException():
            complain(name, leaf.format_message())
            return leaf.exit_code
        case CommandError():
            complain(name, str(leaf))
            return leaf.status
    expected = _expected(leaf)
    if expected is not None:
        complain(name, str(leaf))
        return expected
    if os.environ.get(DEBUG_VARIABLE):
        complain(name, "".join(traceback.format_exception(error)))
    else:
        what = traceback.format_exception_only(leaf)[-1].strip()
        complain(name, f"internal error: {what} (with --debug: where)")
    return os.EX_SOFTWARE


def complain(name: str, text: str) -> None:
    """Each line of `text` on standard error, if it can be written, after the program's name."""
    with suppress(OSError):
        for line in text.splitlines() or [""]:
            click.echo(f"{name}: {line}", err=True)


def first_leaf(error: BaseException) -> BaseException:
    """The first exception of a group that is no group; another one is itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _report_usage(name: str, error: click.UsageError) -> None:
    text = error.format_message()
    if text.startswith("Usage: "):  # no command was given: all of the help, as it is
        with suppress(OSError):
            click.echo(text, err=True)
        return
    complain(name, text)
    if error.ctx is not None:
        complain(name, f"'{error.ctx.command_path} --help' says how it is used")


def _expected(error: BaseException) -> int | None:
    """The status of an exception that says enough in its own words; None: it is a bug.

    Imported here: most commands end well, and need not load what others could have raised.
    """
    for kind, status in _expected_kinds():
        if isinstance(error, kind):
            return status
    return None


def _expected_kinds() -> Iterator[tuple[type[BaseException], int]]:
    from worker.config.problems import ConfigError
    from worker.queue.store import (
        StoreError,
        StoreNotMade,
        StoreUnusable,
        SubmissionRefused,
    )

    yield ConfigError, os.EX_CONFIG
    yield SubmissionRefused, os.EX_DATAERR
    yield StoreUnusable, os.EX_DATAERR  # before its base: trying again does not help
    yield StoreNotMade, os.EX_CANTCREAT
    yield StoreError, os.EX_TEMPFAIL
    from worker.pool.node import NoWorkerError  # what it needs is loaded only by `postrio run`

    yield NoWorkerError, os.EX_CONFIG
