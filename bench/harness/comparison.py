"""Two results of one scenario: what changed, and whether that is noise.

Turns of two runs are no pairs, so the ratio of the medians has a wider interval than that of a pair
of contenders: from the lowest of now over the highest of then to the opposite. It is noise when the
intervals of the two medians overlap. Peers that did not change show how much the machine did.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.harness.parameters import as_setting
from bench.harness.result import Result
from bench.harness.scenario import Figure, LoadError
from bench.harness.spread import Spread


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one contender, then and now."""

    contender: str
    figure: Figure
    then: Spread
    now: Spread

    @property
    def ratio(self) -> Spread:
        """Now over then; as good as the fewer turns of the two. `then` is not zero."""
        return Spread(
            self.now.median / self.then.median,
            self.now.low / self.then.high,
            self.now.high / self.then.low if self.then.low else float("inf"),
            min(self.now.turns, self.then.turns),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed since an older result, and what makes the two hard to compare."""

    old_date: str
    old_commit: str
    remarks: Sequence[str]
    changes: Sequence[Change]


def compare(old: Result, new: Result) -> Comparison:
    """What changed. Raises LoadError for results of two scenarios."""
    if old.scenario != new.scenario:
        raise LoadError(f"a result of {old.scenario} cannot be compared with {new.scenario}")
    changes = [
        Change(contender, figure, then, now)
        for contender in new.turns
        for figure in new.figures
        if (now := new.spread(contender, figure.name)) is not None
        and (then := old.spread(contender, figure.name)) is not None
        and then.median
    ]
    commit = (old.commit or "unknown")[:12]
    return Comparison(old.date, commit, [*_remarks(old, new)], changes)


def _remarks(old: Result, new: Result) -> Iterator[str]:
    """What besides the code differs."""
    if differences := _differences(old.load, new.load):
        yield f"another load: {differences}"
    # How busy a machine was is no property of it; memory differs by a few pages from boot to boot.
    fixed = ("processors", "model", "kernel", "python")
    if differences := _differences(*({n: r.machine.get(n) for n in fixed} for r in (old, new))):
        yield f"another machine: {differences}"
    if differences := _differences(_versions(old), _versions(new)):
        yield f"other versions: {differences}"
    only = sorted(set(old.turns) ^ set(new.turns))
    if only:
        yield f"not in both: {'; '.join(only)}"


def _versions(result: Result) -> Mapping[str, object]:
    versions = result.machine.get("versions")
    return versions if isinstance(versions, dict) else {}


def _differences(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """ "name then -> now" of everything that differs."""
    return ", ".join(
        f"{name} {as_setting(old.get(name))} -> {as_setting(new.get(name))}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    )
