"""What a run found: ratios turn by turn, targets, and the file that keeps it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.result import Result, describe, read_result, to_json, write_result
from bench.harness.scenario import Figure, LoadError, Target

RATE = Figure(name="rate", unit="messages/s")


def result(*, targets: tuple[Target, ...] = (), **rates: list[float]) -> Result:
    """A result with these rates of these contenders."""
    return Result(
        scenario="drain",
        about="a queue is drained",
        load={"count": 10, "sizes": [1, 2]},
        date="2026-11-26T12:00:00+00:00",
        commit=None,
        machine={"processors": 2, "versions": {"trio": "0.35", "Postfix": None}},
        figures=(RATE,),
        targets=targets,
        turns={name: [{"rate": rate} for rate in values] for name, values in rates.items()},
        missing={"Postfix, default": "root"},
    )


def test_ratios_are_taken_turn_by_turn() -> None:
    # In the second turn the machine was busy; the ratio of the medians would be 1.5.
    found = result(postrio=[160.0, 80.0, 150.0], peer=[100.0, 50.0, 100.0])
    ratio = found.ratio("postrio", "peer", "rate")
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high, ratio.turns) == (1.6, 1.5, 1.6, 3)


def test_turns_without_a_pair_or_without_the_figure_make_no_ratio() -> None:
    found = result(postrio=[2.0, 4.0, 6.0], peer=[1.0, 0.0])
    ratio = found.ratio("postrio", "peer", "rate")
    assert ratio is not None
    assert (ratio.median, ratio.turns) == (2.0, 1)
    assert found.ratio("postrio", "nobody", "rate") is None
    assert found.ratio("postrio", "peer", "memory") is None
    assert found.spread("nobody", "rate") is None


@pytest.mark.parametrize(
    ("target", "words", "missed"),
    [
        (Target(figure="rate", at_least=100), "met by 20%", False),
        (Target(figure="rate", at_least=150), "missed by 20%", True),
        (Target(figure="rate", at_most=100), "missed by 20%", True),
        (Target(figure="rate", at_least=119), "met by 1%: noise", False),
        (Target(figure="rate", at_least=122), "missed by 2%: noise", True),
        (Target(figure="rate", at_least=2, against="peer"), "met by 20%", False),
        (Target(figure="rate", at_least=3, against="peer"), "missed by 20%", True),
        (Target(figure="rate", at_least=100, at_most=200), "met by 20%", False),
        (Target(figure="rate", at_least=1, against="nobody"), "not measured", False),
        (Target(figure="rate", at_most=0), "missed", True),
        (Target(figure="rate", at_least=1, contender="short"), "met by 100%: too few turns", False),
    ],
)
def test_a_target_is_met_or_missed_by_so_much(target: Target, words: str, missed: bool) -> None:
    found = result(
        targets=(target,),
        postrio=[120.0, 118.0, 119.0, 123.0, 121.0],
        peer=[50.0, 50.0, 50.0, 50.0, 50.0],
        short=[2.0, 2.0],
    )
    assert found.judge(target).words() == words
    assert bool(found.missed()) is missed


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(figure="rate", at_least=3, against="Postfix"), "rate at least 3 x Postfix"),
        (Target(figure="cpu", at_most=0.15), "cpu at most 0.15"),
        (
            Target(figure="cpu", at_least=1, at_most=2, contender="two"),
            "two: cpu at least 1 and at most 2",
        ),
    ],
)
def test_a_target_in_words(target: Target, words: str) -> None:
    assert describe(target) == words


# --- on disk -------------------------------------------------------------------------------------


@given(
    rates=st.lists(st.floats(0, 1e12), max_size=4),
    commit=st.none() | st.text(),
    target=st.builds(
        Target,
        figure=st.text(),
        at_least=st.none() | st.floats(0, 1e9),
        at_most=st.none() | st.floats(0, 1e9),
        against=st.none() | st.text(),
    ),
)
def test_a_result_comes_back_from_its_file_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rates: list[float], commit: str | None, target: Target
) -> None:
    path = tmp_path_factory.getbasetemp() / "result.json"
    kept = replace(result(targets=(target,), postrio=rates), commit=commit)
    write_result(kept, path)
    assert read_result(path) == kept
    assert not path.with_name("result.json.new").exists()


def test_a_result_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"x/r.json: cannot be written: No such file"):
        write_result(result(), tmp_path / "x" / "r.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"\\ud800"', "not the result of a scenario"),
        ("[1]", "not the result of a scenario"),
        ('{"scenario": "x"}', "not the result of a scenario"),
        ('{"scenario": "x", "turns": {}, "format": 0}', "not a result in format 1"),
        ('{"scenario": "x", "turns": {}, "format": 1}', "a damaged result: 'about'"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(LoadError, match=f"r.json: {complaint}"):
        read_result(path)


DAMAGED = [None, 1, "x", [], [1], {}, {"x": 1}, {"x": [{"rate": "1"}]}, {"x": [{"rate": None}]}]


@pytest.mark.parametrize("key", [key for key in json.loads(to_json(result())) if key != "format"])
@pytest.mark.parametrize("value", DAMAGED, ids=str)
def test_a_damaged_result_is_refused_or_read_but_never_a_bug(
    tmp_path: Path, key: str, value: object
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**json.loads(to_json(result(postrio=[1.0]))), key: value}))
    try:
        read = read_result(path)
    except LoadError as exc:
        assert str(exc).startswith(f"{path}: ")  # noqa: PT017  # either way is right
    else:
        assert json.loads(to_json(read))[key] == value


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="No such file"):
        read_result(tmp_path / "none.json")
