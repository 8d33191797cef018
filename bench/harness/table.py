"""A result for people: a table for each figure, the targets, who was left out."""

from collections.abc import Iterator, Mapping
from typing import Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bench.harness.comparison import Change, Comparison
from bench.harness.parameters import as_setting
from bench.harness.result import Result, describe
from bench.harness.runner import readable
from bench.harness.scenario import Figure
from bench.harness.spread import Spread

PLAIN_WIDTH: Final = 110  # columns where there is no terminal to ask


def show(result: Result, comparison: Comparison | None = None) -> None:
    """Print a result on standard output, and how it differs from an older one."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=PLAIN_WIDTH)
    for part in (*tables(result), *(compared(comparison) if comparison else ())):
        console.print(part, soft_wrap=isinstance(part, Text))


def tables(result: Result) -> Iterator[RenderableType]:
    """A result, part by part."""
    yield Text(f"{result.scenario}: {result.about}", style="bold")
    yield Text(_load(result))
    if busy := busy_before(result):
        yield Text(f"beware: {busy}", style="yellow")
    for name, why in result.missing.items():
        yield Text(f"{name} is left out: {why}")
    for name, why in result.failed.items():
        yield Text(f"{name} failed: {why}", style="red")
    for figure in result.figures:
        yield _figures(result, figure)
    if result.targets:
        yield _targets(result)


def _load(result: Result) -> str:
    turns = max((len(taken) for taken in result.turns.values()), default=0)
    machine = result.machine
    return (
        f"{words(result.load)}; turns: {turns}\n"
        f"{result.date}, commit {(result.commit or 'unknown')[:12]}; "
        f"{machine.get('processors')} x {machine.get('model')}, Linux {machine.get('kernel')}, "
        f"Python {machine.get('python')}"
    )


def busy_before(result: Result) -> str:
    """That others used the machine when the run began; empty: hardly."""
    load, processors = result.machine.get("load_before"), result.machine.get("processors")
    if not isinstance(load, int | float) or not isinstance(processors, int):
        return ""
    busy = f"the machine was busy when this began: load average {load:g} on {processors} processors"
    return busy if load > processors / 2 else ""


def words(load: Mapping[str, object]) -> str:
    """A load as --set takes it."""
    return " ".join(f"{name}={as_setting(value)}" for name, value in load.items())


def _figures(result: Result, figure: Figure) -> Table:
    wanted = "more" if figure.more_is_better else "less"
    table = _table(f"{figure.name}: {figure.unit} ({wanted} is better)")
    table.add_column("")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    table.add_column(f"x {result.base}, turn by turn", justify="right")
    table.add_column("")
    for contender, turns in result.turns.items():
        spread = result.spread(contender, figure.name)
        if spread is None:
            table.add_row(contender, "-", "-", "-", "", "")
            continue
        values = [turn[figure.name] for turn in turns if figure.name in turn]
        ratio = result.ratio(contender, result.base, figure.name)
        own = contender == result.base or ratio is None
        table.add_row(
            contender,
            *map(readable, (spread.median, min(values), max(values))),
            "" if own or ratio is None else _interval(ratio),
            "" if own or ratio is None else ratio.doubt(1.0),
        )
    return table


def _targets(result: Result) -> Table:
    table = _table("targets")
    for heading in ("", "found", "verdict"):
        table.add_column(heading)
    for target in result.targets:
        judgement = result.judge(target)
        found = "" if judgement.spread is None else _interval(judgement.spread)
        style = "" if judgement.spread is None else "green" if judgement.met else "red"
        table.add_row(describe(target), found, Text(judgement.words(), style=style))
    return table


def compared(comparison: Comparison) -> Iterator[RenderableType]:
    """What changed since an older result."""
    yield Text(f"\ncompared with {comparison.old_date}, commit {comparison.old_commit}")
    for remark in comparison.remarks:
        yield Text(f"beware: {remark}", style="yellow")
    table = _table("change")
    for heading in ("", "figure", "then", "now", "now / then", ""):
        table.add_column(heading)
    for change in comparison.changes:
        table.add_row(
            change.contender,
            change.figure.name,
            readable(change.then.median),
            readable(change.now.median),
            _interval(change.ratio),
            _change(change),
        )
    yield table


def _change(change: Change) -> str:
    if doubt := change.ratio.doubt(1.0):
        return doubt
    return "better" if (change.ratio.median > 1) is change.figure.more_is_better else "worse"


def _interval(spread: Spread) -> str:
    return f"{readable(spread.median)} ({readable(spread.low)} to {readable(spread.high)})"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="italic", box=None, pad_edge=False)
