"""Results as a table in Markdown, for pages that quote them: a row for each target.

Answers for the table in the README, which a test compares with `bench/results/`. A scenario without
targets has a row for each contender besides its base.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from bench.harness.result import Result, bounds
from bench.harness.runner import readable
from bench.harness.scenario import Target
from bench.harness.spread import Spread

HEADINGS: Final = ("scenario", "figure", "found", "beside", "ratio", "target", "taken")


def table(results: Iterable[Result]) -> str:
    """The rows of all results under one head; ends with a newline."""
    lines = [_row(HEADINGS), _row("---" for _ in HEADINGS)]
    for result in results:
        lines += [_row(cells) for cells in _cells(result)]
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> Iterator[tuple[str, ...]]:
    units = {figure.name: figure.unit for figure in result.figures}
    for target in result.targets or _comparisons(result):
        judgement = result.judge(target)
        own = result.spread(target.contender, target.figure)
        if own is None or judgement.spread is None:
            continue
        beside, ratio = "", ""
        if target.against is not None:
            peer = result.spread(target.against, target.figure)
            beside = f"{target.against}: {readable(peer.median)}" if peer else ""
            ratio = _interval(judgement.spread)
        verdict = judgement.words() if bounds(target) else judgement.spread.doubt(1.0)
        who = "" if target.contender == "postrio" else f"{target.contender}: "
        yield (
            f"`{result.scenario}`",
            f"{target.figure}, {units.get(target.figure, '')}",
            who + _interval(own),
            beside,
            ratio,
            f"{bounds(target)}: {verdict}" if bounds(target) else verdict,
            f"{result.date[:10]}, {(result.commit or 'no commit')[:7]}",
        )


def _comparisons(result: Result) -> list[Target]:
    """What is compared where nothing is demanded."""
    return [
        Target(figure=result.figures[0].name, contender=name, against=result.base)
        for name in result.turns
        if name != result.base
    ]


def _interval(spread: Spread) -> str:
    return f"{readable(spread.median)} ({readable(spread.low)} to {readable(spread.high)})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
