"""What a run of a scenario found, complete: load, machine, and each figure of each turn.

Answers for its form on disk (JSON) and for what is read off it turn by turn. Whether a difference
means anything is decided in `spread.py`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from bench.harness.scenario import Figure, LoadError, Scenario, Target
from bench.harness.spread import Spread, spread_of

FORMAT: Final = 1  # of the file; another one is refused, not guessed at
EXPECTED: Final = "expected a file that --json has written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of one scenario. The base of the table's ratios may be missing among the turns."""

    scenario: str
    about: str
    load: Mapping[str, object]  # parameter -> value, as JSON has it
    date: str  # ISO 8601, UTC
    commit: str | None  # of the tree that was measured; None: not in a tree
    machine: Mapping[str, object]
    figures: Sequence[Figure]
    targets: Sequence[Target] = ()
    base: str = "postrio"
    turns: Mapping[str, Sequence[Mapping[str, float]]]  # contender -> its turns
    missing: Mapping[str, str] = field(default_factory=dict)  # contender -> why it was left out
    failed: Mapping[str, str] = field(default_factory=dict)  # contender -> how its last turn ended

    def spread(self, contender: str, figure: str) -> Spread | None:
        """The spread of a figure; None: it was not measured."""
        values = [
            turn[figure] for turn in self.turns.get(contender, ()) if turn.get(figure) is not None
        ]
        return spread_of(values) if values else None

    def ratio(self, over: str, under: str, figure: str) -> Spread | None:
        """The spread of the ratio of two contenders, taken turn by turn; None: there is none.

        What slows the machine down for minutes slows both of a turn, so this varies less than the
        ratio of two medians.
        """
        pairs = zip(self.turns.get(over, ()), self.turns.get(under, ()), strict=False)
        ratios = [
            first[figure] / second[figure]
            for first, second in pairs
            if figure in first and second.get(figure)
        ]
        return spread_of(ratios) if ratios else None

    def judge(self, target: Target) -> "Judgement":
        """How a target of ours fares."""
        spread = (
            self.spread(target.contender, target.figure)
            if target.against is None
            else self.ratio(target.contender, target.against, target.figure)
        )
        return Judgement(target, spread)

    def missed(self) -> list["Judgement"]:
        """The targets whose median is on the wrong side."""
        judged = [self.judge(target) for target in self.targets]
        return [one for one in judged if one.spread is not None and not one.met]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target, and what was found. Medians decide; whether they could be noise is said, too."""

    target: Target
    spread: Spread | None

    @property
    def met(self) -> bool:
        """Whether the median is on the right side of every bound; not without figures."""
        if self.spread is None:
            return False
        least, most = self.target.at_least, self.target.at_most
        return (least is None or self.spread.median >= least) and (
            most is None or self.spread.median <= most
        )

    def words(self) -> str:
        """Met or missed, by how much, and whether that is noise."""
        if self.spread is None:
            return "not measured"
        bound = self._bound(self.spread.median)
        by = f" by {abs(self.spread.median / bound - 1):.0%}" if bound else ""
        doubt = self.spread.doubt(bound)
        return f"{'met' if self.met else 'missed'}{by}{doubt and f': {doubt}'}"

    def _bound(self, value: float) -> float:
        """The bound that matters: the one missed, or else the nearest."""
        bounds = [
            bound for bound in (self.target.at_least, self.target.at_most) if bound is not None
        ]
        return min(bounds, key=lambda bound: abs(bound - value))


def bounds(target: Target) -> str:
    """What a target demands, for people: "at least 3"; empty: nothing."""
    demands = (("at least", target.at_least), ("at most", target.at_most))
    return " and ".join(f"{word} {bound:g}" for word, bound in demands if bound is not None)


def describe(target: Target) -> str:
    """A target for people: "rate at least 3 x Postfix, default"."""
    to = "" if target.against is None else f" x {target.against}"
    who = "" if target.contender == "postrio" else f"{target.contender}: "
    return f"{who}{target.figure} {bounds(target)}{to}"


def result_of(
    scenario: Scenario,
    *,
    load: Mapping[str, object],
    date: str,
    commit: str | None,
    machine: Mapping[str, object],
    turns: Mapping[str, Sequence[Mapping[str, float]]],
    failed: Mapping[str, str],
) -> Result:
    """The result of a scenario that was run."""
    return Result(
        scenario=scenario.name,
        about=scenario.about,
        load=load,
        date=date,
        commit=commit,
        machine=machine,
        figures=tuple(scenario.figures),
        targets=tuple(scenario.targets),
        base=scenario.base,
        turns=turns,
        missing=scenario.missing,
        failed=failed,
    )


# --- on disk -------------------------------------------------------------------------------------


def to_json(result: Result) -> str:
    """The text of a result file."""
    return json.dumps({"format": FORMAT, **asdict(result)}, indent=1) + "\n"


class UnreadableError(LoadError):
    """A file that is not there, or that we may not read: not the fault of what is in it."""


def write_result(result: Result, path: Path) -> None:
    """Write a result file, whole or not at all. Raises LoadError."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(to_json(result))
        new.replace(path)
    except OSError as exc:
        raise LoadError(f"{path}: cannot be written: {exc.strerror}") from exc


def check_directory(path: Path) -> None:
    """Find out whether a file can be made beside `path`, by making one. Raises LoadError.

    Not by permissions: root has them all, even where nothing can be made.
    """
    if not path.absolute().parent.is_dir():
        raise LoadError(f"{path}: there is no such directory")
    try:
        with TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as exc:
        raise LoadError(f"{path}: cannot be written: {exc.strerror}") from exc


def read_result(path: Path) -> Result:
    """The result in a file. Raises LoadError: it is none, and what is wrong with it.

    UnreadableError: there is nothing to judge.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as exc:
        raise UnreadableError(f"{path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise LoadError(f"{path}: not JSON ({exc}): {EXPECTED}") from exc
    if not isinstance(found, dict) or "scenario" not in found or "turns" not in found:
        raise LoadError(f"{path}: not the result of a scenario: {EXPECTED}")
    if found.pop("format", None) != FORMAT:
        raise LoadError(f"{path}: not a result in format {FORMAT}: written by another version")
    try:
        return _parsed(found)
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise LoadError(f"{path}: a damaged result: {exc}") from exc


def _parsed(found: Mapping[str, object]) -> Result:
    """A result from JSON. Raises TypeError, ValueError, KeyError, AttributeError."""
    texts = {name: _text(found[name]) for name in ("scenario", "about", "date", "base")}
    commit = found["commit"]
    return Result(
        **texts,
        load=_mapping(found["load"]),
        commit=None if commit is None else _text(commit),
        machine=_mapping(found["machine"]),
        figures=tuple(_figure(each) for each in _sequence(found["figures"])),
        targets=tuple(_target(each) for each in _sequence(found["targets"])),
        turns={
            contender: [
                {name: _number(value) for name, value in _mapping(turn).items()}
                for turn in _sequence(turns)
            ]
            for contender, turns in _mapping(found["turns"]).items()
        },
        missing={name: _text(why) for name, why in _mapping(found["missing"]).items()},
        failed={name: _text(why) for name, why in _mapping(found["failed"]).items()},
    )


def _figure(found: object) -> Figure:
    given = _mapping(found)
    return Figure(
        name=_text(given["name"]),
        unit=_text(given["unit"]),
        more_is_better=bool(given["more_is_better"]),
    )


def _target(found: object) -> Target:
    given = _mapping(found)
    bounds = {
        name: None if given[name] is None else _number(given[name])
        for name in ("at_least", "at_most")
    }
    against = given["against"]
    return Target(
        figure=_text(given["figure"]),
        **bounds,
        contender=_text(given["contender"]),
        against=None if against is None else _text(against),
    )


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError(f"a text is expected, not {found!r:.50}")
    return found


def _number(found: object) -> float:
    if not isinstance(found, int | float) or not math.isfinite(found):
        raise TypeError(f"a number is expected, not {found!r:.50}")
    return float(found)


def _mapping(found: object) -> Mapping[str, object]:
    if not isinstance(found, dict):
        raise TypeError(f"an object is expected, not {found!r:.50}")
    return found


def _sequence(found: object) -> Sequence[object]:
    if not isinstance(found, list):
        raise TypeError(f"a list is expected, not {found!r:.50}")
    return found
