"""Running a scenario: its contenders take turns, so that a busy moment hits all of them alike.

Answers for the order, for what happens when a turn fails, and for what is said meanwhile. A
contender that fails is out of the run, with the turns it had; the others go on, because an hour of
theirs is worth keeping.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.harness.scenario import LoadError, Scenario

HEADLINE: Final = 3  # figures of a turn that are told when it is over
Turns = dict[str, list[Mapping[str, float]]]  # contender -> the figures of each of its turns


class Reporter:
    """What is told while a scenario runs. This one keeps quiet."""

    def begin(self, contender: str, turn: int) -> None:
        """A contender has its turn, counted from 1."""

    def end(self, contender: str, turn: int, said: str) -> None:
        """Its turn is over: the figure, or why there is none."""

    def skip(self, turns: int) -> None:
        """So many turns will not happen."""


def run(
    scenario: Scenario, repeats: int, reporter: Reporter | None = None
) -> tuple[Turns, dict[str, str]]:
    """Every figure of every turn, and for each contender that failed, how."""
    reporter = reporter or Reporter()
    turns: Turns = {name: [] for name in scenario.contenders}
    failed: dict[str, str] = {}
    for number in range(1, repeats + 1):
        for name, turn in scenario.contenders.items():
            if name in failed:
                continue
            reporter.begin(name, number)
            try:
                turns[name].append(checked(turn(), scenario))
            except LoadError as exc:
                failed[name] = f"turn {number}: {exc}"
                reporter.end(name, number, f"failed: {exc}")
                reporter.skip(repeats - number)
            else:
                reporter.end(name, number, headline(turns[name][-1], scenario))
    return {name: taken for name, taken in turns.items() if taken}, failed


def checked(figures: Mapping[str, float], scenario: Scenario) -> Mapping[str, float]:
    """The figures of a turn, as plain numbers. Raises LoadError for what is none.

    A contender may lack a figure that does not apply to it, but not the one it is about. Figures
    that the scenario does not declare are kept as they are, for the JSON alone.
    """
    first = scenario.figures[0].name
    if first not in figures:
        raise LoadError(f"{first} was not measured")
    numbers = {name: float(value) for name, value in figures.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise LoadError(f"{name} is {value}")
    return numbers


def headline(figures: Mapping[str, float], scenario: Scenario) -> str:
    """The first declared figures of a turn in words."""
    return ", ".join(
        f"{readable(figures[figure.name])} {figure.unit}"
        for figure in scenario.figures[:HEADLINE]
        if figure.name in figures
    )


def readable(value: float) -> str:
    """A figure with as many digits as mean something: 12345, 123, 12.3, 1.23, 0.0123, 0.500."""
    if value and abs(value) < 1:
        return f"{value:#.3g}"
    return f"{value:.{max(0, 2 - int(math.log10(abs(value) or 1)))}f}"


class _Told(Reporter):
    """One line for each turn, and a bar below them on a terminal."""

    def __init__(self, progress: Progress, name: str, repeats: int, total: int) -> None:
        self._progress = progress
        self._repeats = repeats
        self._task = progress.add_task(name, total=total, doing="")

    def begin(self, contender: str, turn: int) -> None:
        del turn
        self._progress.update(self._task, doing=contender)

    def end(self, contender: str, turn: int, said: str) -> None:
        self._progress.console.print(
            f"  {turn}/{self._repeats} {contender}: {said}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._progress.advance(self._task)

    def skip(self, turns: int) -> None:
        self._progress.advance(self._task, turns)


@contextmanager
def told(
    scenario: Scenario, repeats: int, console: Callable[[], Console] = lambda: Console(stderr=True)
) -> Iterator[Reporter]:
    """A reporter on standard error; its bar is drawn on a terminal only."""
    out = console()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}", markup=False),
        console=out,
        disable=not out.is_terminal,
        transient=True,
    ) as progress:
        total = repeats * len(scenario.contenders)
        yield _Told(progress, scenario.name, repeats, total)
