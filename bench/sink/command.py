"""The command: `postrio bench sink`, also `python -m bench.sink`.

Answers for options, for the choice of a lane, and for the words at the beginning and the end.
"""

import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import trio

from bench.sink.behaviour import Behaviour, BehaviourError, Phase
from bench.sink.certificate import server_context
from bench.sink.count import CountFile
from bench.sink.counters import Counters, report
from bench.sink.far_lane import FarLane
from bench.sink.listen import Listen, Listener, open_listeners, parse_listen
from bench.sink.plain_lane import PlainLane
from bench.sink.processes import ProcessError, StopSignals, serve_in_processes
from bench.sink.record import RecordFile
from bench.sink.scenario_file import read_scenario
from bench.sink.sink import Gauge, Sink
from bench.sink.trio_lane import serve_listeners
from bench.sink.words import SETTINGS, parse_behaviour
from worker.cli.exits import CommandError

MOST_PROCESSES: Final = 256
WORDS_HELP: Final = "\b\nWords of behaviour, and keys of a scenario file:\n" + "\n".join(
    f"  {setting.shape}\n      {setting.about}" for setting in SETTINGS.values()
)
PHASES_HELP: Final = f"""\b
  PHASE=REPLY
      in place of the usual reply: 'rcpt=452 4.5.3 too many'
  PHASE=SHARE% REPLY
      for some: 'rcpt=10% 451 4.7.1 try later'; may be repeated
  PHASE is one of
      {", ".join(phase.value for phase in Phase)}"""
FILE_HELP: Final = """\b
A scenario file is TOML; in it, a list stands for a repeated word:
  seed = 7
  [default]                                 # for every listener
  latency = "lognormal:0.05:0.5"
  [[listener]]
  address = "127.0.1.1-127.0.1.250:2525"    # or a list
  rcpt = ["10% 451 4.7.1 later", "1% 550 5.1.1 no such user"]
  latency = {end = 0.5}                     # the word latency:end=0.5
  to = {"a@x.example" = "550 5.1.1 no"}     # the word to:a@x.example=..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line and the scenario file say together."""

    listens: Sequence[Listen]
    seed: int | None
    record: Path | None
    count: Path | None
    dump: bool
    processes: int


@click.command(
    name="sink",
    epilog=f"{WORDS_HELP}\n\n{PHASES_HELP}\n\n{FILE_HELP}",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--listen",
    "addresses",
    multiple=True,
    metavar="'ADDRESS:PORT|unix:PATH [WORD...]'",
    help="Where to listen, and words of behaviour for this listener. Port 0: any free one. "
    "Ranges: 127.0.1.1-127.0.1.250:2525, 127.0.0.1:2525-2530.",
)
@click.option(
    "--scenario",
    "scenario_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Listeners and behaviour from a file (see below).",
)
@click.option("--lmtp", is_flag=True, help="Speak LMTP on every listener.")
@click.option(
    "--behaviour",
    "words",
    multiple=True,
    metavar="WORD",
    help="Behaviour of every listener (see below).",
)
@click.option(
    "--processes",
    type=click.IntRange(1, MOST_PROCESSES),
    default=1,
    show_default=True,
    help="Processes that share the listeners.",
)
@click.option("--seed", type=int, help="Makes chances and random delays the same in each run.")
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append one JSON line per message to FILE.",
)
@click.option("--dump", is_flag=True, help="Put the content into the record, in base64.")
@click.option(
    "--count",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the number of messages taken in FILE: cheaper than to record them.",
)
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Write the final counters to FILE, as JSON; - is standard output.",
)
def main(
    addresses: tuple[str, ...],
    scenario_path: Path | None,
    words: tuple[str, ...],
    processes: int,
    seed: int | None,
    record: Path | None,
    count: Path | None,
    json_path: str | None,
    *,
    lmtp: bool,
    dump: bool,
) -> None:
    """Take mail and throw it away, or refuse it, in ways that tests and figures need.

    Says "listening on ADDRESS:PORT" for each listener when it takes connections; SIGTERM and
    SIGINT end it, and it says what it took.
    """
    options = _options(addresses, scenario_path, [*words, *(["lmtp"] if lmtp else [])])
    options = replace(
        options,
        seed=options.seed if seed is None else seed,
        record=record,
        count=count,
        dump=dump,
        processes=processes,
    )
    if processes > 1 and any(listen.behaviour.counts_clients for listen in options.listens):
        raise CommandError(
            "greylist, connections, client-connections, connection-rate and message-rate are "
            "counted by one process: leave --processes away",
            os.EX_USAGE,
        )
    if dump and record is None:
        raise CommandError("--dump puts contents into the record: --record FILE", os.EX_USAGE)
    for path in (record, count, None if json_path in {None, "-"} else Path(str(json_path))):
        if path is not None:
            _check_writable(path)
    try:
        final = serve(options)
        if json_path is not None:
            _write_json(json_path, final)
    except ProcessError as exc:
        raise CommandError(str(exc), os.EX_SOFTWARE) from exc
    except OSError as exc:
        text = exc.strerror or str(exc)
        where = f"{exc.filename}: " if exc.filename else ""
        raise CommandError(f"{where}{text}", os.EX_OSERR) from exc


def _check_writable(path: Path) -> None:
    """Refuse at the beginning what could not be written at the end. Raises CommandError."""
    try:
        path.open("ab").close()
    except OSError as exc:
        raise CommandError(f"{path}: {exc.strerror}", os.EX_CANTCREAT) from exc


def _options(addresses: Sequence[str], scenario_path: Path | None, words: Sequence[str]) -> Options:
    """Listeners from the command line and from the file. Raises CommandError."""
    seed: int | None = None
    listens: list[Listen] = []
    try:
        base = parse_behaviour(words)
        if scenario_path is not None:
            try:
                scenario = read_scenario(scenario_path, words)
            except BehaviourError as exc:
                raise CommandError(str(exc), os.EX_CONFIG) from exc
            except OSError as exc:
                raise CommandError(f"{scenario_path}: {exc.strerror}", os.EX_NOINPUT) from exc
            seed, base = scenario.seed, scenario.default
            listens += scenario.listens
        for text in addresses:
            listens += parse_listen(text, base)
    except BehaviourError as exc:
        raise CommandError(str(exc), os.EX_USAGE) from exc
    if not listens:
        raise CommandError(
            "nowhere to listen: --listen ADDRESS:PORT, or a [[listener]] in --scenario", os.EX_USAGE
        )
    for listen in listens:
        _check_certificate(listen)
    return Options(listens=listens, seed=seed, record=None, count=None, dump=False, processes=1)


def _check_certificate(listen: Listen) -> None:
    """Make what handshakes need now, for all processes. Raises CommandError."""
    try:
        server_context(listen.behaviour)
    except BehaviourError as exc:
        raise CommandError(f"{listen.name}: {exc}", os.EX_DATAERR) from exc
    except OSError as exc:
        raise CommandError(f"{listen.name}: {exc.filename}: {exc.strerror}", os.EX_NOINPUT) from exc


def serve(options: Options) -> Any:
    """Serve until a signal comes; the final report. Raises OSError, ProcessError."""
    _allow_descriptors()
    with StopSignals() as signals, _listening(options.listens) as listeners:
        names = [listener.name for listener in listeners]
        with (
            _record_file(options.record) as record,
            _count_file(options.count, options.processes) as count,
        ):

            def serve_one(process: int, stop: Sequence[int]) -> object:
                if record is not None:
                    record.process = process
                if count is not None:
                    count.leave_to(process)
                return _serve_one(listeners, options, record, count, process, signals, stop)

            def started() -> None:
                click.echo("".join(f"listening on {name}\n" for name in names), nl=False)

            parts = serve_in_processes(options.processes, serve_one, signals, started)
    counted = [[Counters(**fields) for fields in part["counters"]] for part in parts]
    final = report(names, counted, [part["open_most"] for part in parts])
    _say(names, counted, final)
    return final


def _serve_one(
    listeners: Sequence[Listener],
    options: Options,
    record: RecordFile | None,
    count: CountFile | None,
    process: int,
    signals: StopSignals,
    stop: Sequence[int],
) -> object:
    """Serve in this process, through the lane that can; its counters, for JSON."""
    gauge = Gauge()
    sinks = [
        Sink(
            behaviour=listener.behaviour,
            name=listener.name,
            take=record,
            count=count,
            keep=options.dump,
            random=_random(options.seed, process, number),
            gauge=gauge,
        )
        for number, listener in enumerate(listeners)
    ]
    served = [(one.socket, sink) for one, sink in zip(listeners, sinks, strict=True)]
    if rtt := only_distance([listener.behaviour for listener in listeners]):
        FarLane(served, stop, rtt).run()
    elif any(listener.behaviour.takes_time for listener in listeners):
        signals.leave_to_trio()
        failure: OSError | None = None
        try:
            trio.run(_serve_with_trio, listeners, sinks, stop)
        except* OSError as group:
            failure = next(leaves(group))  # type: ignore[assignment]
        if failure is not None:
            raise failure
    else:
        PlainLane(served, stop).run()
    return {"counters": [_fields(sink.counters) for sink in sinks], "open_most": gauge.most}


def only_distance(behaviours: Sequence[Behaviour]) -> float:
    """The round-trip time if all have the same and nothing else takes time, else 0."""
    first = behaviours[0].rtt
    near = (replace(behaviour, rtt=0.0) for behaviour in behaviours)
    plain = all(not (one.takes_time or one.starttls or one.wrapper) for one in near)
    return first if plain and all(one.rtt == first for one in behaviours) else 0.0


async def _serve_with_trio(
    listeners: Sequence[Listener], sinks: Sequence[Sink], stop: Sequence[int]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_listeners, listeners, sinks)

        async def watch(descriptor: int) -> None:
            await trio.lowlevel.wait_readable(descriptor)
            nursery.cancel_scope.cancel()

        for descriptor in stop:
            nursery.start_soon(watch, descriptor)


def _random(seed: int | None, process: int, listener: int) -> Random:
    return Random() if seed is None else Random(f"{seed}/{process}/{listener}")


def _fields(counters: Counters) -> dict[str, object]:
    return {name: getattr(counters, name) for name in Counters.__slots__}


@contextmanager
def _listening(listens: Sequence[Listen]) -> Iterator[list[Listener]]:
    listeners = open_listeners(listens)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@contextmanager
def _record_file(path: Path | None) -> Iterator[RecordFile | None]:
    """The record file, open as long as the block runs; None for no path."""
    if path is None:
        yield None
        return
    record = RecordFile(path, wall=time.time)
    try:
        yield record
    finally:
        record.close()


@contextmanager
def _count_file(path: Path | None, processes: int) -> Iterator[CountFile | None]:
    """The count file, mapped as long as the block runs; None for no path."""
    if path is None:
        yield None
        return
    count = CountFile(path, processes)
    try:
        yield count
    finally:
        count.close()


def leaves(failure: BaseException) -> Iterator[BaseException]:
    """The plain exceptions in a group, however deep."""
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from leaves(inner)
    else:
        yield failure


def _allow_descriptors() -> None:
    """As many connections as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(names: Sequence[str], counted: Sequence[Sequence[Counters]], final: Any) -> None:
    """The counters of each listener; of several, their sum, too."""
    for name, parts in zip(names, zip(*counted, strict=True), strict=True):
        click.echo(f"{name}: {Counters.total(parts).line()}")
    if len(names) > 1:
        total = Counters.total(counters for parts in counted for counters in parts)
        total.open_most = final["total"]["open_most"]
        click.echo(f"total: {total.line()}")


def _write_json(path: str, final: object) -> None:
    text = json.dumps(final, indent=2) + "\n"
    if path == "-":
        click.echo(text, nl=False)
    else:
        Path(path).write_text(text)
