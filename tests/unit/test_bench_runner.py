"""Contenders take turns; what fails is out, and everything else is kept."""

import io
from collections.abc import Mapping

import pytest
from rich.console import Console

from bench.harness.runner import Reporter, readable, run, told
from bench.harness.scenario import Figure, LoadError, Scenario, Turn

RATE = Figure(name="rate", unit="messages/s")
MEMORY = Figure(name="memory", unit="MB", more_is_better=False)


def scenario(**contenders: Turn) -> Scenario:
    return Scenario(
        name="name", about="about", figures=[RATE, MEMORY], contenders=contenders, base="one"
    )


def figures(*rates: float) -> Turn:
    """A turn that measures these rates, one after the other."""
    values = iter(rates)
    return lambda: {"rate": next(values)}


class Noting(Reporter):
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def begin(self, contender: str, turn: int) -> None:
        self.told.append((contender, turn))

    def end(self, contender: str, turn: int, said: str) -> None:
        self.told.append((contender, turn, said))

    def skip(self, turns: int) -> None:
        self.told.append(turns)


def test_contenders_take_turns_in_their_order_and_each_figure_is_kept() -> None:
    reporter = Noting()
    turns, failed = run(scenario(one=figures(1, 2), two=figures(3, 4)), 2, reporter)
    assert turns == {"one": [{"rate": 1}, {"rate": 2}], "two": [{"rate": 3}, {"rate": 4}]}
    assert not failed
    begun = [told for told in reporter.told if isinstance(told, tuple) and len(told) == 2]
    assert begun == [("one", 1), ("two", 1), ("one", 2), ("two", 2)]


def test_who_fails_is_out_with_a_word_and_the_others_go_on() -> None:
    def breaks() -> Mapping[str, float]:
        raise LoadError("it does not answer")

    reporter = Noting()
    turns, failed = run(scenario(one=breaks, two=figures(3, 4, 5)), 3, reporter)
    assert turns == {"two": [{"rate": 3}, {"rate": 4}, {"rate": 5}]}
    assert failed == {"one": "turn 1: it does not answer"}
    assert reporter.told[:3] == [("one", 1), ("one", 1, "failed: it does not answer"), 2]


def test_turns_before_a_failure_are_kept() -> None:
    def breaks_later() -> Mapping[str, float]:
        left.pop()
        if not left:
            raise LoadError("it has ended")
        return {"rate": 7}

    left = [1, 2]
    turns, failed = run(scenario(one=breaks_later), 3)
    assert (turns, failed) == ({"one": [{"rate": 7}]}, {"one": "turn 2: it has ended"})


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        ({"memory": 1.0}, "turn 1: rate was not measured"),
        ({"rate": float("nan")}, "turn 1: rate is nan"),
        ({"rate": 1.0, "other": float("inf")}, "turn 1: other is inf"),
    ],
)
def test_what_is_no_figure_is_a_failure(measured: dict[str, float], complaint: str) -> None:
    _, failed = run(scenario(one=lambda: measured), 1)
    assert failed == {"one": complaint}


def test_a_bug_is_not_taken_for_a_failed_turn() -> None:
    def bug() -> Mapping[str, float]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(scenario(one=bug), 1)


def test_a_line_for_each_turn_and_no_bar_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    one = scenario(one=lambda: {"rate": 1234.5, "memory": 0.25, "raw": 7})
    with told(one, 2, lambda: Console(file=out, width=30)) as reporter:
        run(one, 2, reporter)
    assert out.getvalue().splitlines() == [
        "  1/2 one: 1234 messages/s, 0.250 MB",
        "  2/2 one: 1234 messages/s, 0.250 MB",
    ]


def test_a_terminal_shows_a_bar_that_is_complete_when_everybody_had_his_turns() -> None:
    out = io.StringIO()

    def breaks() -> Mapping[str, float]:
        raise LoadError("no")

    one = scenario(one=breaks, two=lambda: {"rate": 1})
    console = Console(file=out, width=100, force_terminal=True)
    with told(one, 3, lambda: console) as reporter:
        run(one, 3, reporter)
    assert "6/6" in out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"), (0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"),
        (123.4, "123"),
        (123456.7, "123457"), (-2.5, "-2.50"), (1.0, "1.00"), (10.0, "10.0"),
        (1000.0, "1000"),
    ],
)  # fmt: skip
def test_figures_have_as_many_digits_as_mean_something(value: float, text: str) -> None:
    assert readable(value) == text
