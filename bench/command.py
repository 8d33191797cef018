"""`postrio bench`, also `python -m bench`: run a scenario, or stand in for a server, a load, a DNS.

Answers for the command line: each scenario of `scenarios/` is a command with the same options, its
load is set by `--set NAME=VALUE`. Modules are loaded when their command is called. What a run is
made of lies in `harness/`.
"""

import importlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Final

import click

from bench.harness.comparison import Comparison, compare
from bench.harness.machine import commit, machine, now
from bench.harness.markdown import table
from bench.harness.parameters import as_setting, parameters, with_settings
from bench.harness.plot import FORMATS, check_plots, draw
from bench.harness.result import (
    Result,
    UnreadableError,
    check_directory,
    read_result,
    result_of,
    write_result,
)
from bench.harness.runner import run, told
from bench.harness.scenario import LoadError, Scenario
from bench.harness.table import show
from bench.scenarios import SCENARIOS, Definition, load_scenario
from worker.cli.exits import CommandError, first_leaf, run_command

MISSED: Final = 1  # exit status of --check
REPEATS: Final = 5  # turns of each contender: the fewest that say anything (harness/spread.py)

# Command -> module with a click command `main`, and its line of help.
TOOLS: Final[Mapping[str, tuple[str, str]]] = {
    "sink": ("bench.sink.command", "Take mail, or refuse it in every way that a server may."),
    "source": ("bench.source.command", "Load a mail server, and say how long each phase takes."),
    "dns": ("bench.dns", "Answer DNS questions from a small zone, failures included."),
    "demo": ("bench.demo", "Show postrio at work on loopback."),
}
OWN: Final[Mapping[str, str]] = {
    "all": "Run every scenario, and keep each result.",
    "show": "Show results that were kept.",
    "list": "List the scenarios.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How a scenario is to be run, and what is to become of the result."""

    quick: bool = False
    settings: Sequence[str] = ()
    repeats: int | None = None  # None: REPEATS, or 1 for a quick run
    only: Sequence[str] = ()  # contenders; none: all
    json: Path | None = None
    plot: Path | None = None
    old: Path | None = None
    check: bool = False


# --- running -------------------------------------------------------------------------------------


def carry_out(name: str, order: Order) -> int:
    """Run a scenario, show, keep and compare the result; returns the exit status.

    What can be found wrong beforehand is. Raises CommandError, click.UsageError.
    """
    with complaints(os.EX_UNAVAILABLE):
        definition = load_scenario(name)
    load = with_settings(definition.quick if order.quick else definition.usual, order.settings)
    with complaints(os.EX_DATAERR):
        old = None if order.old is None else read_result(order.old)
        if old is not None and old.scenario != name:
            raise LoadError(f"{order.old}: a result of {old.scenario}, not of {name}")
    check_writable(order.json, order.plot)
    with complaints(os.EX_USAGE if order.settings else os.EX_UNAVAILABLE):
        scenario = chosen(definition.build(load), order.only)
    result = measured(scenario, load, order.repeats or (1 if order.quick else REPEATS))
    try:
        with complaints(os.EX_CANTCREAT):
            if order.json is not None:
                write_result(result, order.json)
    finally:  # it took long enough
        show(result, None if old is None else _compared(old, result))
    with complaints(os.EX_CANTCREAT):
        if order.plot is not None and result.turns:
            draw(result, order.plot)
    if result.failed:
        return os.EX_SOFTWARE
    return MISSED if order.check and result.missed() else os.EX_OK


def check_writable(json: Path | None, plot: Path | None) -> None:
    """Refuse what could only fail when everything is measured.

    Raises CommandError, click.UsageError.
    """
    if plot is not None:
        if plot.suffix not in FORMATS:
            raise click.UsageError(f"--plot {plot}: a plot ends in {' or '.join(FORMATS)}")
        with complaints(os.EX_UNAVAILABLE):
            check_plots()
    for path in (json, plot):
        if path is not None:
            with complaints(os.EX_CANTCREAT):
                check_directory(path)


def chosen(scenario: Scenario, only: Sequence[str]) -> Scenario:
    """The scenario with some of its contenders. Raises CommandError when none can be run."""
    unknown = [name for name in only if name not in {*scenario.contenders, *scenario.missing}]
    if unknown:
        names = "; ".join((*scenario.contenders, *scenario.missing))
        raise click.UsageError(f"--contender {unknown[0]!r}: there are: {names}")
    contenders = {
        name: turn for name, turn in scenario.contenders.items() if not only or name in only
    }
    if not contenders:
        reasons: dict[str, list[str]] = {}
        for name, reason in scenario.missing.items():
            reasons.setdefault(reason, []).append(name)
        why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise CommandError(f"{scenario.name}: nothing can be run here: {why}", os.EX_UNAVAILABLE)
    return replace(scenario, contenders=contenders)


def measured(scenario: Scenario, load: object, repeats: int) -> Result:
    """Run a scenario and return its result, whoever failed."""
    on, date, tree = machine(), now(), commit()
    with ended_in_good_order(), told(scenario, repeats) as reporter:
        turns, failed = run(scenario, repeats, reporter)
    return result_of(
        scenario,
        load=asdict(load),  # type: ignore[call-overload]  # any dataclass
        date=date,
        commit=tree,
        machine=on,
        turns=turns,
        failed=failed,
    )


def _compared(old: Result, result: Result) -> Comparison:
    with complaints(os.EX_DATAERR):
        return compare(old, result)


@contextmanager
def complaints(status: int) -> Iterator[None]:
    """A LoadError from here on ends the command with this status; a missing file with its own."""
    try:
        yield
    except UnreadableError as exc:
        raise CommandError(str(exc), os.EX_NOINPUT) from exc
    except LoadError as exc:
        raise CommandError(str(exc), status) from exc


@contextmanager
def ended_in_good_order() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind what runs as SIGINT does, so that every peer is stopped.

    By way of SIGINT, and not by an exception of ours from the handler: a turn may be a trio
    program, and trio knows where it can be interrupted.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        # A shell's script starts what it puts in the background with SIGINT ignored.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    kept = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
    }
    kept[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as exc:
        if received and isinstance(first_leaf(exc), KeyboardInterrupt):
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


# --- the command of a scenario -------------------------------------------------------------------


class ScenarioCommand(click.Command):
    """A scenario; its help names the parameters of its load."""

    definition: Definition

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and behind them what --set can change."""
        super().format_options(ctx, formatter)
        quick = self.definition.quick
        rows = []
        for each in parameters(self.definition.usual):
            in_quick = getattr(quick, each.name)
            then = "" if in_quick == each.default else f"; quick: {as_setting(in_quick)}"
            note = f"{each.note}  " if each.note else ""
            rows.append((each.name, f"{note}[{as_setting(each.default)}{then}]"))
        with formatter.section("Load (--set NAME=VALUE)"):
            formatter.write_dl(rows)


def scenario_command(name: str) -> click.Command:
    """The command of a scenario in the table. Raises CommandError: it is not there."""
    with complaints(os.EX_UNAVAILABLE):
        definition = load_scenario(name)

    def callback(settings: tuple[str, ...], only: tuple[str, ...], **rest: object) -> int:
        return carry_out(name, Order(settings=settings, only=only, **rest))  # type: ignore[arg-type]

    command = ScenarioCommand(
        name, callback=callback, help=SCENARIOS[name], params=[*_scenario_options()]
    )
    command.definition = definition
    return command


def _scenario_options() -> Iterator[click.Option]:
    file = click.Path(dir_okay=False, path_type=Path)
    yield click.Option(
        ["--set", "settings"], multiple=True, metavar="NAME=VALUE", help="Change the load (below)."
    )
    yield from _run_options()
    yield click.Option(
        ["--contender", "only"],
        multiple=True,
        metavar="NAME",
        help="Run this one only. May be repeated.",
    )
    yield click.Option(["--json"], type=file, help="Write every figure of every turn there.")
    yield click.Option(["--plot"], type=file, help="Draw the result: FILE.svg or FILE.png.")
    yield click.Option(
        ["--compare", "old"],
        type=file,
        metavar="OLD.json",
        help="Show what changed since that result, and what of it is noise.",
    )


def _run_options() -> Iterator[click.Option]:
    yield click.Option(["--quick"], is_flag=True, help="A load of seconds, to see that it works.")
    yield click.Option(
        ["--repeats"],
        type=click.IntRange(1, 1000),
        metavar="N",
        help=f"Turns of each contender.  [{REPEATS}; quick: 1]",
    )
    yield click.Option(["--check"], is_flag=True, help="Exit with 1 when a target is missed.")


# --- the other commands --------------------------------------------------------------------------


def _all_command() -> click.Command:
    def callback(
        results: Path,
        old: Path | None,
        plots: str | None,
        repeats: int | None,
        *,
        quick: bool,
        check: bool,
    ) -> int:
        try:
            results.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise CommandError(f"{results}: {exc.strerror}", os.EX_CANTCREAT) from exc
        worst = os.EX_OK
        for name in SCENARIOS:
            before = None if old is None else old / f"{name}.json"
            order = Order(
                quick=quick,
                repeats=repeats,
                json=results / f"{name}.json",
                plot=None if plots is None else results / f"{name}.{plots}",
                old=before if before is not None and before.exists() else None,
                check=check,
            )
            try:
                worst = max(worst, carry_out(name, order))
            except CommandError as exc:  # the others can still be run
                click.echo(f"bench: {exc}", err=True)
                worst = max(worst, exc.status)
        return worst

    return click.Command(
        "all",
        callback=callback,
        help=OWN["all"],
        params=[
            click.Option(
                ["--results"],
                required=True,
                type=click.Path(file_okay=False, path_type=Path),
                help="Write one NAME.json for each scenario into this directory.",
            ),
            *_run_options(),
            click.Option(
                ["--compare", "old"],
                type=click.Path(file_okay=False, exists=True, path_type=Path),
                metavar="DIRECTORY",
                help="Show what changed since the results in there.",
            ),
            click.Option(
                ["--plots"],
                type=click.Choice([suffix.removeprefix(".") for suffix in FORMATS]),
                help="Draw each result, too.",
            ),
        ],
    )


@click.command("show", help=OWN["show"])
@click.argument(
    "paths",
    metavar="FILE.json...",
    nargs=-1,
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it, too.")
@click.option(
    "--compare",
    "old",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OLD.json",
    help="Show what changed since that result.",
)
@click.option("--markdown", is_flag=True, help="One table for a page: a row for each target.")
def show_command(
    paths: tuple[Path, ...], plot: Path | None, old: Path | None, *, markdown: bool
) -> None:
    """Print result files as the runs themselves did."""
    if len(paths) > 1 and (plot or old):
        raise click.UsageError("--plot and --compare are for one result")
    check_writable(None, plot)
    with complaints(os.EX_DATAERR):
        results = [read_result(path) for path in paths]
        if markdown:
            click.echo(table(results), nl=False)
        else:
            for result in results:
                show(result, None if old is None else compare(read_result(old), result))
    if plot is not None:
        with complaints(os.EX_CANTCREAT):
            draw(results[0], plot)


@click.command("list", help=OWN["list"])
def list_command() -> None:
    """Print the table of scenarios."""
    for name, text in SCENARIOS.items():
        click.echo(f"{name:10} {text}")


class BenchGroup(click.Group):
    """Commands that are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Scenarios first."""
        del ctx
        return [*SCENARIOS, *OWN, *TOOLS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, loaded; None: there is none of that name. Raises CommandError."""
        del ctx
        if cmd_name in SCENARIOS:
            return scenario_command(cmd_name)
        own: Mapping[str, Callable[[], click.Command]] = {
            "all": _all_command,
            "show": lambda: show_command,
            "list": lambda: list_command,
        }
        if cmd_name in own:
            return own[cmd_name]()
        return _tool(cmd_name) if cmd_name in TOOLS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lists of commands in --help, from the tables alone."""
        del ctx
        for title, rows in (
            ("Scenarios", [*SCENARIOS.items()]),
            ("All of them", [*OWN.items()]),
            ("Parts", [(name, text) for name, (_, text) in TOOLS.items()]),
        ):
            with formatter.section(title):
                formatter.write_dl(rows)


def _tool(name: str) -> click.Command:
    """The command of a module that is a program of its own. Raises CommandError."""
    module = TOOLS[name][0]
    try:
        command = importlib.import_module(module).main
    except ModuleNotFoundError as exc:
        if not module.startswith(exc.name or "?"):  # a library of theirs
            extra = "install the extra bench (pip install 'postrio[bench]')"
            raise CommandError(f"{name} needs {exc.name}: {extra}", os.EX_UNAVAILABLE) from exc
        raise CommandError(f"{module} is not part of this installation", os.EX_UNAVAILABLE) from exc
    assert isinstance(command, click.Command)
    return command


@click.group(
    cls=BenchGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Examples:  postrio bench engine --quick;  postrio bench drain --set count=5000 "
    "--json new.json --compare old.json.  'postrio bench NAME --help' lists what --set can change.",
)
def command() -> None:
    """Load mail servers, stand in for them, and compare figures.

    Contenders take turns, peers are used when they are installed, and what may be noise is called
    noise.
    """


def invoke(arguments: Sequence[str]) -> int | None:
    """Run `bench` with these arguments; returns the exit status or raises."""
    status = command.main(list(arguments), prog_name="bench", standalone_mode=False)
    return status if isinstance(status, int) else None


def main() -> None:
    """`python -m bench`: runs and ends the process."""
    run_command("bench", invoke)
