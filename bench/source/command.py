"""The command: options in, a load, a report out.

Run it: `python -m bench.source 127.0.0.1:2525 --sessions 20 --messages 10000`.
"""

import json
import os
import random
import resource
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TextIO

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bench.source import report
from bench.source.load import DIALOGUE, TIME_LIMIT, Load, Phase
from bench.source.messages import (
    Composer,
    Envelopes,
    Generated,
    MessageError,
    UnreadableError,
    parse_sizes,
    read_contents,
)
from bench.source.run import run
from bench.source.security import Security
from bench.source.tally import Outcome, Tally, missing_library
from bench.source.target import TargetError, UnknownHostError, dialler, parse_target
from protocol.command import Ehlo
from protocol.errors import LocalProtocolError
from worker.cli.exits import CommandError

LOOK: Final = 0.2  # seconds between two looks at the tally, for the progress bar
SPARE: Final = 32  # descriptors for everything but sessions
AT_LEAST_ONE: Final = click.IntRange(1)
ABOVE_NOTHING: Final = click.FloatRange(0, 1e9, min_open=True)
PHASES: Final = {phase.name.lower(): phase for phase in DIALOGUE}


def parse_limits(words: tuple[str, ...]) -> dict[Phase, float]:
    """`SECONDS` for every phase, or `PHASE=SECONDS`; later words win. Raises click.BadParameter."""
    limits: dict[Phase, float] = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        try:
            seconds = float(number)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= 86_400 or (equals and name not in PHASES):
            raise click.BadParameter(
                f"{word!r}: expected SECONDS or PHASE=SECONDS, one of {', '.join(PHASES)}"
            )
        limits.update(dict.fromkeys([PHASES[name]] if equals else DIALOGUE, seconds))
    return limits


def make_security(
    server: str, *, starttls: bool, tls: bool, insecure: bool, auth: str | None
) -> Security:
    """What the options want. Raises click.UsageError, which never has the password in it."""
    if starttls and tls:
        raise click.UsageError("--starttls begins in the clear, --tls does not: choose one")
    if insecure and not (starttls or tls):
        raise click.UsageError("--insecure is for --starttls and --tls")
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and auth.isprintable()):
        raise click.UsageError("--auth: expected USER:PASSWORD")
    host = server.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return Security(
        starttls=starttls,
        wrapper=tls,
        insecure=insecure,
        server_name="localhost" if server.startswith("unix:") else host,
        user=user,
        password=password,
    )


def exit_status(tally: Tally) -> int:
    """0: every message was accepted for all its recipients. EX_UNAVAILABLE: none was, for anybody.
    EX_TEMPFAIL: some were, some not.
    """
    if tally.begun and tally.messages[Outcome.ACCEPTED] == tally.begun:
        return os.EX_OK
    return os.EX_TEMPFAIL if tally.accepted else os.EX_UNAVAILABLE


EPILOG: Final = f"""\
Without --rate the load is closed: each session begins its next message when the last one was
answered. With --rate it is open: message n is due n/RATE seconds after the start. If no session is
free then it starts late, and "whole message" counts from when it was due, so a server that stalls
is charged for all messages that it kept waiting (no coordinated omission). The timer has a
resolution of a millisecond: so much of a late start is the source's own.

Times of phases count from the command, or from the flight in which it was pipelined, to its reply;
"whole message" is for accepted messages only, and has its connection in it if it needed a new one.
Every phase ends after {TIME_LIMIT:g} s, see --time-limit.

Exit status: 0 if every message was accepted for all recipients, {os.EX_TEMPFAIL} if some were, and
some not, {os.EX_UNAVAILABLE} if none was, 128 + signal if interrupted; the report comes all the
same.

With --starttls or --tls the server must have a certificate for HOST that the system trusts, or the
file that SSL_CERT_FILE in the environment names; --insecure takes any.
"""


@click.command(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("server", metavar="HOST:PORT|unix:PATH")
@click.option("--lmtp", is_flag=True, help="Speak LMTP.")
@click.option("--starttls", is_flag=True, help="Go on inside TLS; fail where that is not offered.")
@click.option("--tls", is_flag=True, help="Speak TLS from the first octet.")
@click.option("--insecure", is_flag=True, help="Take any certificate.")
@click.option(
    "--auth",
    metavar="USER:PASSWORD",
    envvar="POSTRIO_SOURCE_AUTH",
    show_envvar=True,
    help="Authenticate with PLAIN or LOGIN, whether or not there is TLS.",
)
@click.option("--sessions", "-s", type=AT_LEAST_ONE, default=1, show_default=True, help="At once.")
@click.option("--messages", "-m", type=AT_LEAST_ONE, help="In all [1, or what --duration allows].")
@click.option("--duration", type=ABOVE_NOTHING, help="Seconds in which messages are begun.")
@click.option("--rate", type=ABOVE_NOTHING, help="Messages/s over all sessions: an open load.")
@click.option("--per-connection", type=AT_LEAST_ONE, help="Messages on one connection [no limit].")
@click.option("--pipelining/--no-pipelining", default=True, show_default=True)
@click.option("--sender", default="load@source.example", show_default=True, metavar="PATTERN")
@click.option(
    "--recipient",
    default="user{r}@sink.example",
    show_default=True,
    metavar="PATTERN",
    help="{n}: the message's number, {r}: the recipient's in it; {n%1000} counts to 999.",
)
@click.option(
    "--recipients",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    help="Of each message.",
)
@click.option(
    "--size",
    default="4096",
    show_default=True,
    metavar="SIZE",
    help="Octets: OCTETS, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA[:LARGEST].",
)
@click.option(
    "--content",
    type=click.Path(path_type=Path),
    help="Real messages instead, in turn: a file, an mbox, or all files in a directory.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="ADDRESS",
    help="Of this machine, to connect from; several: by turns of the sessions.",
)
@click.option("--helo", default="source.example", show_default=True, metavar="NAME")
@click.option(
    "--time-limit",
    "limits",
    multiple=True,
    metavar="[PHASE=]SECONDS",
    help=f"Phases: {', '.join(PHASES)}.",
)
@click.option(
    "--give-up",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="After so many connections in a row that led to no session; 0: never.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the sizes drawn.")
@click.option(
    "--json",
    "path",
    metavar="FILE",
    help="Write every figure there; -: to standard output, instead of the report.",
)
def main(
    server: str,
    *,
    lmtp: bool,
    starttls: bool,
    tls: bool,
    insecure: bool,
    auth: str | None,
    sessions: int,
    messages: int | None,
    duration: float | None,
    rate: float | None,
    per_connection: int | None,
    pipelining: bool,
    sender: str,
    recipient: str,
    recipients: int,
    size: str,
    content: Path | None,
    sources: tuple[str, ...],
    helo: str,
    limits: tuple[str, ...],
    give_up: int,
    seed: int,
    path: str | None,
) -> None:
    """Load an SMTP or LMTP server with mail, and say how it answered: rates, percentiles of each
    phase, counts of replies.
    """
    if missing := missing_library():
        raise CommandError(f"missing: {missing}", os.EX_UNAVAILABLE)
    security = make_security(server, starttls=starttls, tls=tls, insecure=insecure, auth=auth)
    load = Load(
        security=security,
        sessions=sessions,
        messages=1 if messages is None and duration is None else messages,
        duration=duration,
        rate=rate,
        per_connection=per_connection,
        lmtp=lmtp,
        pipelining=pipelining,
        helo=helo,
        limits=parse_limits(limits),
        give_up=give_up,
    )
    try:
        make_room(sessions)
        Ehlo(helo).to_wire()
        envelopes = Envelopes(sender, recipient, recipients)
        contents = (
            read_contents(content)
            if content
            else Generated(parse_sizes(size, random.Random(seed)), secrets.token_hex(4))
        )
        words = Composer(envelopes, contents)
        tally = Tally()
        with _json_file(path) as file:
            caught = trio.run(_run, load, server, sources, words, tally)
            if file is not sys.stdout:
                report.show(tally, Console())
            if file is not None:
                json.dump(report.as_json(tally), file, indent=1)
                file.write("\n")
    except UnknownHostError as exc:
        raise CommandError(str(exc), os.EX_NOHOST) from exc
    except UnreadableError as exc:
        raise CommandError(str(exc), os.EX_NOINPUT) from exc
    except (MessageError, TargetError, LocalProtocolError) as exc:
        raise click.UsageError(str(exc)) from exc
    sys.exit(128 + caught if caught else exit_status(tally))


@contextmanager
def _json_file(path: str | None) -> Iterator[TextIO | None]:
    """Where figures go; opened before a load that may take hours. Raises CommandError."""
    if path is None or path == "-":
        yield sys.stdout if path else None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("w", encoding="ascii"))
        except OSError as exc:
            raise CommandError(f"--json {path}: {exc.strerror}", os.EX_CANTCREAT) from exc
        yield file


def make_room(sessions: int) -> None:
    """Let this process have a descriptor for each session. Raises click.UsageError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sessions + SPARE
    if hard not in (-1, resource.RLIM_INFINITY) and hard < needed:
        raise click.UsageError(
            f"{sessions} sessions need {needed} descriptors, and this process may have {hard}:"
            " use fewer, or raise the limit (ulimit -Hn)"
        )
    if soft not in (-1, resource.RLIM_INFINITY) and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _run(
    load: Load, server: str, sources: Sequence[str], composer: Composer, tally: Tally
) -> int:
    """Run the load until its end, or until a signal; returns the signal's number, or 0.

    Raises TargetError.
    """
    dial = await dialler(parse_target(server), sources)
    caught = 0
    console = Console(stderr=True)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal caught
                async for number in signals:
                    caught = number
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            if console.is_terminal:
                nursery.start_soon(_show_progress, load, tally, console)
            await run(load, dial, composer, tally)
            nursery.cancel_scope.cancel()
    return caught


async def _show_progress(load: Load, tally: Tally, console: Console) -> None:
    """A bar, until cancelled. Messages if their number is known, else seconds."""
    began = trio.current_time()
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=load.messages or load.duration)
        while True:
            done = tally.messages.total()
            passed = trio.current_time() - began
            progress.update(
                task,
                completed=done if load.messages else passed,
                description=f"{tally.accepted} accepted, {done - tally.accepted} not",
                refresh=True,
            )
            await trio.sleep(LOOK)
