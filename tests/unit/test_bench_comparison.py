"""Two results beside each other: what changed, what is noise, what else differs."""

from dataclasses import replace

import pytest

from bench.harness.comparison import compare
from bench.harness.result import Result
from bench.harness.scenario import Figure, LoadError

RATE = Figure(name="rate", unit="messages/s")
CPU = Figure(name="cpu", unit="ms", more_is_better=False)
FIVE = [100.0, 101.0, 99.0, 102.0, 98.0]


def result(**rates: list[float]) -> Result:
    return Result(
        scenario="drain",
        about="about",
        load={"count": 10},
        date="2026-11-26",
        commit="0123456789abcdef",
        machine={"processors": 2, "model": "x", "load_before": 0.1, "versions": {"trio": "1"}},
        figures=(RATE, CPU),
        turns={name: [{"rate": rate} for rate in values] for name, values in rates.items()},
    )


@pytest.mark.parametrize(
    ("factor", "doubt"), [(1.2, ""), (0.8, ""), (1.03, "noise"), (1.0, "noise")]
)
def test_a_change_is_noise_when_the_intervals_overlap(factor: float, doubt: str) -> None:
    old, new = result(postrio=FIVE), result(postrio=[factor * rate for rate in FIVE])
    (change,) = compare(old, new).changes
    assert change.ratio.median == pytest.approx(factor)
    assert change.ratio.low == pytest.approx(factor * 98 / 102)
    assert change.ratio.high == pytest.approx(factor * 102 / 98)
    assert change.ratio.doubt(1.0) == doubt


def test_a_change_is_as_sure_as_the_fewer_turns() -> None:
    (change,) = compare(result(postrio=[1.0]), result(postrio=FIVE)).changes
    assert change.ratio.doubt(1.0) == "too few turns"


def test_what_was_zero_once_does_not_divide() -> None:
    (change,) = compare(result(postrio=[0.0, 5.0, 6.0]), result(postrio=[5.0])).changes
    assert change.ratio.high == float("inf")
    assert compare(result(postrio=[0.0]), result(postrio=[5.0])).changes == []


def test_a_comparison_says_what_else_differs() -> None:
    old = result(postrio=FIVE, gone=FIVE)
    new = result(postrio=FIVE, new=FIVE)
    machine = {"processors": 4, "model": "x", "load_before": 9, "versions": {"trio": "2", "q": "1"}}
    found = compare(old, replace(new, load={"count": 20, "size": 5}, machine=machine))
    assert found.remarks == [
        "another load: count 10 -> 20, size none -> 5",
        "another machine: processors 2 -> 4",
        "other versions: trio 1 -> 2, q none -> 1",
        "not in both: gone; new",
    ]
    assert [change.contender for change in found.changes] == ["postrio"]
    assert found.old_commit == "0123456789ab"
    assert compare(old, replace(old, machine={**old.machine, "load_before": 3})).remarks == []


def test_two_scenarios_cannot_be_compared() -> None:
    with pytest.raises(LoadError, match="a result of drain cannot be compared with engine"):
        compare(result(), replace(result(), scenario="engine"))
